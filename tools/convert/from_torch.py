#!/usr/bin/env python3
"""Weights of a PyTorch state_dict for the engine, and back.

    from_torch.py STATE.pt|STATE.safetensors --config CONFIG.yaml --output W.safetensors [--map NAMES.json]
    from_torch.py STATE.pt --config CONFIG.yaml --back W.safetensors --output NEW.pt

A module belongs to the node of the same path ("e1.1.conv", "e1_1_conv": node e1/1/conv); where names differ, to the
one at its place in the order, if all shapes agree. The network must be the same: a state_dict does not say paddings,
epsilons (PyTorch's norms have 1e-5, the engine's 1e-3 unless `epsilon` says otherwise) or activations.
"""
import pathlib
import pickle

import numpy as np

from common import ConvertError, Layer, SafetensorError, Tensor, main

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_variance"}
WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, compile, Lightning


def load(path):
    """{name: array}"""
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file
        try:
            return load_file(path)
        except (SafetensorError, KeyError, TypeError) as e:
            raise ConvertError(f"{path}: cannot be read as safetensors of NumPy's types: {e}")
    import torch
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as e:  # torch's advice, to load it all the same, would run its code
        raise ConvertError(f"{path}: is no file of tensors alone, such as one of a whole model; write it with "
                           "torch.save(model.state_dict(), FILE)") from e
    except Exception as e:  # of zipfile or torch
        raise ConvertError(f"{path}: cannot be read as what torch.save(model.state_dict(), FILE) writes: "
                           f"{type(e).__name__}: {str(e).splitlines()[0]}")
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(t) for t in state.values()):
        raise ConvertError(f"{path}: holds no state_dict; expected names with tensors")
    return {name: (t.float() if t.is_floating_point() and t.dtype != torch.float64 else t).numpy()
            for name, t in state.items()}


def read(path):
    state = load(path)
    prefix = ""
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(prefix + w) for key in state)), ""):
        prefix += wrapper
    layers = {}
    for key, values in state.items():
        module, _, part = key.rpartition(".")
        if part == "num_batches_tracked":
            continue
        weight = state.get(f"{module}.weight" if module else "weight")
        norm = part.startswith("running_") or (weight is not None and weight.ndim == 1)
        role = NORM.get(part, part) if norm else {"weight": "kernel"}.get(part, part)
        # Kernels (K,C,R,S), and (C,K,R,S) where they are transposed.
        axes = (0, 2, 3, 1) if values.ndim == 4 else tuple(range(values.ndim))
        name = module[len(prefix):]
        layers.setdefault(name, Layer(name)).tensors[role] = Tensor(key, values, axes)
    return [list(layers.values())], state


def write(path, state, changed, _):
    state = {name: changed.get(name, values) for name, values in state.items()}
    if path.endswith(".safetensors"):
        from safetensors.numpy import save_file
        save_file({name: np.asarray(values, order="C") for name, values in state.items()}, path, {"format": "pt"})
    else:
        import torch
        torch.save({name: torch.from_numpy(np.array(values)) for name, values in state.items()}, path)


if __name__ == "__main__":
    main(__doc__, read, write)
