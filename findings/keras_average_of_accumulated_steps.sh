#!/usr/bin/env bash
# Keras with gradient accumulation: the weights are the same, their moving average is not.
#
# An optimizer of Keras 3.15.1 with gradient_accumulation_steps=k changes the weights at every k-th batch, and its property
# `iterations` counts these changes; with use_ema=True it averages the weights after every batch. So from one change to the
# next the average keeps ema_momentum to the power k: 0.99 with k 8 is 0.923, an average over 13 steps and not 100.
# One would guess otherwise: the option promises that the model's and the optimizer's variables change every k batches, and
# the average is one of the latter. Who trains a segmentation network by k batches because one large batch does not fit, and
# evaluates the average, gets other weights than the large batch gives. The k-th root of the momentum nearly mends it.
# Seen: "30 steps: weights 0.3000, averaged 0.0497; of 4 batches each: weights 0.3000, averaged 0.1271; with the 4th root of
# the momentum 0.0478".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check keras==3.15.1 jax==0.10.2 numpy==2.4.6
KERAS_BACKEND=jax "$work/env/bin/python" - <<'PY'
import keras
import numpy as np


def trained(k, momentum=0.99, steps=30):  # each of the k batches of a step has the gradient of the whole: -1
    w = keras.Variable(np.zeros(1, np.float32))
    options = {"gradient_accumulation_steps": k} if k > 1 else {}
    sgd = keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=momentum, **options)
    for _ in range(steps * k):
        sgd.apply([np.full(1, -1, np.float32)], [w])
    assert int(sgd.iterations) == steps
    weight = float(np.asarray(w)[0])
    sgd.finalize_variable_values([w])  # what fit() does at the end: the average becomes the weights
    return weight, float(np.asarray(w)[0])


print("Keras", keras.__version__)
(w1, average1), (w4, average4), (w, root) = trained(1), trained(4), trained(4, momentum=0.99 ** (1 / 4))
print(f"30 steps: weights {w1:.4f}, averaged {average1:.4f}; of 4 batches each: weights {w4:.4f}, averaged {average4:.4f}; "
      f"with the 4th root of the momentum {root:.4f}")
assert abs(w1 - w4) < 1e-5 and average4 > 1.5 * average1 and abs(root - average1) < 0.01, "this has changed"
PY
