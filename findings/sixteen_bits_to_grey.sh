#!/usr/bin/env bash
# A PNG of 12-bit values in 16 bits, made 8 bits by the usual call of two libraries: white in one, black in the other.
#
# Pillow 13.0.0's Image.open(f).convert("L") clips: every value beyond 255 is 255, so that 94% of a ramp of 0 to 4095 are
# white. OpenCV 5.0.0's imread(f, IMREAD_GRAYSCALE) keeps the high byte: the same ramp becomes 0 to 15, nearly black.
# Neither warns. One would guess that both scale the range to 0..255, as they do for 8-bit colour and 1-bit files, or that
# they agree. Cameras and radar products store 10 to 14 bits that way, so a network trained on what one library reads sees
# nothing of what the other gives it.
# Seen: "mode I;16; Pillow: 0.938 of the pixels are 255; OpenCV: largest value 15".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$work/env/bin/python" - <<'PY'
import io

import cv2
import numpy as np
from PIL import Image

ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
png = io.BytesIO()
Image.fromarray(ramp).save(png, "PNG")
image = Image.open(io.BytesIO(png.getvalue()))
white = float((np.asarray(image.convert("L")) == 255).mean())
largest = int(cv2.imdecode(np.frombuffer(png.getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE).max())
print(f"mode {image.mode}; Pillow: {white:.3f} of the pixels are 255; OpenCV: largest value {largest}")
assert white > 0.93 and largest == 15, "this has changed"
PY
