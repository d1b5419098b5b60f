#!/usr/bin/env python3
"""Prints what Keras's AdamW makes of single weights, for OptimizerPresets in tests/engine/test_optimizer.cpp.

    KERAS_BACKEND=jax python tests/golden/keras_adamw.py

Needs Keras 3 and JAX; no build and no test runs it. A weight of 0.5 gets the same gradient in each of three steps, in
float32, with Keras's own defaults but for the learning rate. Gradients near epsilon tell where it is added: Keras
adds it before the bias correction ("epsilon hat"), PyTorch after it.
"""
import keras
import numpy as np

LR = 1e-2
print("Keras", keras.__version__)
for gradient in (1e-7, 1e-6, 1e-4, -0.5):
    optimizer = keras.optimizers.AdamW(learning_rate=LR)
    weight = keras.Variable(np.float32(0.5))
    optimizer.build([weight])
    steps = []
    for _ in range(3):
        optimizer.apply([keras.ops.convert_to_tensor(np.float32(gradient))])
        steps.append(float(weight.value))
    print(f"{{{gradient:g}, {{" + ", ".join(f"{w:.9g}" for w in steps) + "}},")
