#!/usr/bin/env python3
"""Weights of a Keras 3 model for the engine, and back.

    from_keras.py MODEL.keras|MODEL.weights.h5 --config CONFIG.yaml --output W.safetensors [--map NAMES.json]
    from_keras.py MODEL.keras --config CONFIG.yaml --back W.safetensors --output NEW.keras

A layer belongs to the node of the same name ("e1_1_conv": node e1/1/conv); where names differ, to the one at its place
in the order, if all shapes agree; a .weights.h5, and a model that is a class, keep an order among layers of one class
only. The network must be the same: paddings "same", epsilons (1e-3 in both unless said) and activations are not looked
at. Needs h5py, not Keras.
"""
import io
import json
import re
import zipfile

import h5py
import numpy as np

from common import ConvertError, Layer, Tensor, main

INSIDE = "model.weights.h5"  # of a .keras


def roles(path, arrays):
    """What the variables of a layer are, which a file only numbers."""
    dims = [a.ndim for a in arrays]
    if dims[0] in (2, 4) and dims[1:] in ([], [1]):
        return ["kernel", "bias"]
    if dims == [1, 1]:
        return ["gamma", "beta"]
    if dims == [1, 1, 1, 1]:
        return ["gamma", "beta", "running_mean", "running_variance"]
    raise ConvertError(f"{path}: variables of {[list(a.shape) for a in arrays]} are no layer that the engine has: "
                       "convolution, dense, or norm with gamma and beta")


def axes(ndim):
    """Kernels (R,S,C,K), and (R,S,K,C) where they are transposed; dense ones (C,K)."""
    return {4: (3, 0, 1, 2), 2: (1, 0)}.get(ndim, (0,))


def walk(group, path, names, found):
    """{h5 path: Layer}, named by the layers' names from the outermost model's parts on."""
    variables = group.get("vars")
    if variables is not None:
        arrays = [variables[k] for k in sorted(variables, key=int)]
        name = variables.attrs.get("name")
        names = names + [str(name)] if name is not None and path else names
        arrays = [a for a in arrays if a.dtype.kind == "f"]  # a dropout's seed is none
        if arrays and "optimizer" not in path.split("/"):
            layer = Layer("/".join(names) or path)
            for role, a in zip(roles(path, arrays), arrays):
                layer.tensors[role] = Tensor(a.name, np.asarray(a), axes(a.ndim))
            found[path] = layer
    for key, inner in group.items():
        if key != "vars" and isinstance(inner, h5py.Group):
            walk(inner, f"{path}/{key}".strip("/"), names, found)


def order_of(config, prefix=()):
    """Names of layers as a .keras lists them."""
    for layer in config.get("config", {}).get("layers", []):
        name = (*prefix, layer["config"].get("name", ""))
        yield "/".join(name)
        yield from order_of(layer, name)


def read(path):
    config = None
    try:
        if path.endswith(".keras"):
            with zipfile.ZipFile(path) as z:
                data, config = z.read(INSIDE), json.loads(z.read("config.json"))
        else:
            with open(path, "rb") as f:
                data = f.read()
        found = {}
        with h5py.File(io.BytesIO(data)) as f:
            walk(f, "", [], found)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, OSError) as e:
        raise ConvertError(f"{path}: cannot be read as a .keras or .weights.h5 of Keras 3: {e}")
    if not found:
        raise ConvertError(f"{path}: holds no variables as Keras 3 keeps them")
    place = {name: i for i, name in enumerate(order_of(config or {}))}
    if all(layer.name in place for layer in found.values()):
        return [sorted(found.values(), key=lambda layer: place[layer.name])], data
    streams = {}
    for where, layer in found.items():
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", where).groups()
        streams.setdefault(kind, []).append((int(number or 0), layer))
    return [[layer for _, layer in sorted(s, key=lambda item: item[0])] for s in streams.values()], data


def write(path, data, changed, source):
    memory = io.BytesIO(data)
    with h5py.File(memory, "r+") as f:
        for key, values in changed.items():
            f[key][...] = values
    if not source.endswith(".keras"):
        with open(path, "wb") as f:
            f.write(memory.getvalue())
        return
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            new.writestr(item, memory.getvalue() if item.filename == INSIDE else old.read(item))


if __name__ == "__main__":
    main(__doc__, read, write)
