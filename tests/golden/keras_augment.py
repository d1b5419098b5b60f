#!/usr/bin/env python3
"""Prints what Keras's preprocessing layers make of a picture and its mask, for KerasVectors in
tests/kernels/test_augment_keras.cpp.

    KERAS_BACKEND=jax python tests/golden/keras_augment.py

Needs Keras 3 and JAX; no build and no test runs it. The numbers that a layer would draw are given to it: they are those
that the engine draws of the seeds in the test. The picture is 5x6 of (37 i + 11 i i) mod 256, i the place of a pixel,
and its mask is the picture divided by 52.
"""
import keras
import numpy as np

L = keras.layers
H, W = 5, 6
i = np.arange(H * W)
image = ((37 * i + 11 * i * i) % 256).reshape(1, H, W, 1).astype("float32")
mask = image // 52


def column(*values):
    return keras.ops.convert_to_tensor(np.float32([values]))


def rotation(turns):
    return L.RandomRotation((turns, turns), fill_mode="wrap").get_random_transformation(image, True)


def erased(x0, x1, y0, y1):
    box = [keras.ops.convert_to_tensor(np.float32([v])) for v in (x0, x1, y0, y1)]
    layer = L.RandomErasing(fill_value=99.0)
    return {"batch_masks": layer._generate_batch_mask(image.shape, box), "apply_erasing": np.array([True]),
            "fill_value": 99.0}


size = {"input_shape": image.shape}
cases = [
    ("flip", L.RandomFlip("horizontal"), {"flips": np.ones((1, 1, 1, 1), bool), "input_shape": image.shape}),
    ("zoom", L.RandomZoom(0.1), {"height_zoom": column(1.3), "width_zoom": column(1.3), **size}),
    ("translation", L.RandomTranslation(0.3, 0.3, fill_mode="nearest"),
     {"translations": column(1.79477906, 0.751107216), **size}),
    ("rotation", L.RandomRotation(0.1, fill_mode="wrap"), rotation(0.07)),
    ("shear", L.RandomShear(0.3, 0.4, fill_mode="constant", fill_value=31.0),
     {"shear_factor": column(0.247221947, -0.358619601), **size}),
    ("brightness", L.RandomBrightness(0.2), {"rgb_delta": np.float32(0.2 * 255)}),
    ("contrast", L.RandomContrast(0.5), {"contrast_factor": np.float32(1.5)}),
    ("erasing", L.RandomErasing(fill_value=99.0), erased(2.24274421, 5.93435383, 1.2189821, 3.18172693)),
]
print("Keras", keras.__version__)
for name, layer, numbers in cases:
    outputs = [layer.transform_images(keras.ops.convert_to_tensor(image), numbers, training=True)]
    if name in ("brightness", "contrast", "erasing"):
        outputs.append(mask)
    else:
        outputs.append(layer.transform_segmentation_masks(keras.ops.convert_to_tensor(mask), numbers, training=True))
    lists = ["{" + ", ".join(f"{float(v):.7g}" for v in np.asarray(o).ravel()) + "}" for o in outputs]
    print(f'{{"{name}",\n {lists[0]},\n {lists[1]}}},')
