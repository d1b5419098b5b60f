#!/usr/bin/env bash
# A lossless PNG optimiser changes class ids, for some readers.
#
# pyoxipng 9.1.1 (oxipng) turns a grey mask of few values into a palette of greys where that is smaller. The picture is
# the same to the last pixel; the palette is not in the order of the greys. Pillow 13.0.0 gives the indices of a palette
# (np.asarray of the image), OpenCV 5.0.0 and Pillow's convert("L") its greys: one file, two sets of class ids.
# One would guess otherwise: "lossless" promises the same values, and most loaders of masks are np.asarray(Image.open(f)).
# Masks of 64x128 stay grey, so a small trial shows nothing; of 128x256 all 20 tried are turned.
# Seen: "masks whose ids Pillow gives otherwise: 20 of 20; OpenCV: 0; convert(L): 0", a palette that begins 0 4 3 2 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check pyoxipng==9.1.1 pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$work/env/bin/python" - <<'PY'
import io

import cv2
import numpy as np
import oxipng
from PIL import Image

rng = np.random.default_rng(0)
pillow = opencv = grey = 0
for _ in range(20):
    mask = np.zeros((128, 256), np.uint8)  # four rectangles, each of a class of its own
    for c in range(1, 5):
        y, x = rng.integers(0, 108), rng.integers(0, 226)
        mask[y : y + 20, x : x + 30] = c
    png = io.BytesIO()
    Image.fromarray(mask).save(png, "PNG")
    small = oxipng.optimize_from_memory(png.getvalue(), level=2)
    image = Image.open(io.BytesIO(small))
    pillow += bool((np.asarray(image) != mask).any())
    grey += bool((np.asarray(image.convert("L")) != mask).any())
    opencv += bool((cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_GRAYSCALE) != mask).any())
print(f"masks whose ids Pillow gives otherwise: {pillow} of 20; OpenCV: {opencv}; convert(L): {grey}")
assert pillow >= 10 and opencv == 0 and grey == 0, "this has changed"
PY
