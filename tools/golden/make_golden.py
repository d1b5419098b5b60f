#!/usr/bin/env python3
"""Writes tests/models/golden/unet.npz: what PyTorch in float64 makes of the base U-Net, for tests/models/test_golden.cpp.

    python tools/golden/make_golden.py [--output FILE]

Needs PyTorch and NumPy; no build and no test runs it. Weights come from a formula (`fill`) that the test repeats in
C++, so that the file need not hold them, gammas, betas and biases are none of them trivial, and the engine's own
initialiser plays no part. Gradients of more than SKETCH elements are stored as a count sketch (Charikar, Chen and
Farach-Colton 2002): each element is added, with a sign, to one of SKETCH sums, both drawn by hash. The sketch is
linear, and the squared length of a sketched difference is that of the difference itself within a standard deviation
of sqrt(2 / SKETCH): 3%.

It prints how far PyTorch's own float32 is from its float64, the yardstick for the test's tolerances.
"""
import argparse
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "bench"))
import torch_models  # noqa: E402

N, H, W, CLASSES, STEPS, RATE = 4, 8, 16, 5, 10, 4e-4
SKETCH = 2048
# Of the batches of seeds 0 to 99 those whose activations keep the farthest from zero in ten steps of focal loss. One on the other side
# of a ReLU for rounding alone changes gradients by 1e-3 and losses by 1e-4, in any two programs.
SEED = 10
LEAF = {("Conv2d", "weight"): "kernel", ("Conv2d", "bias"): "bias", ("KerasBatchNorm", "weight"): "gamma",
        ("KerasBatchNorm", "bias"): "beta", ("KerasBatchNorm", "running_mean"): "running_mean",
        ("KerasBatchNorm", "running_var"): "running_variance"}


class KerasBatchNorm(nn.BatchNorm2d):
    """Keras 3: eps 1e-3, 0.99 of the running statistics kept, and the running variance takes the biased one."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            for running, batch in ((self.running_mean, x.mean((0, 2, 3))),
                                   (self.running_var, x.var((0, 2, 3), unbiased=False))):
                running.mul_(1 - self.momentum).add_(self.momentum * batch)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0, self.eps)


def hashes(name, count):
    """64 bits for each element of a tensor: splitmix64 (Vigna) of its index plus FNV-1a of the name."""
    seed = 0xcbf29ce484222325
    for c in name.encode():
        seed = (seed ^ c) * 0x100000001b3 % 2**64
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fill(name, shape):
    """Float32 weights in the engine's layout: kernels (K,R,S,C) of variance 2 / fan_in, the rest near its usual."""
    u = (hashes(name, int(np.prod(shape))) >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1  # in [-1, 1)
    leaf = name.rsplit("/", 1)[-1]
    centre, width = {"kernel": (0, np.sqrt(6 / np.prod(shape[1:]))), "gamma": (1, .25),
                     "running_variance": (1, .25)}.get(leaf, (0, .25))
    return (centre + width * u).astype(np.float32).reshape(shape)


def to_engine(t):
    return (t.permute(0, 2, 3, 1) if t.ndim == 4 else t).contiguous()


def sketch(name, values):
    values = values.reshape(-1).astype(np.float64)
    if values.size <= SKETCH:
        return values
    h = hashes("sketch of " + name, values.size)
    sign = np.where(h >> np.uint64(63), -1.0, 1.0)
    return np.bincount((h % np.uint64(SKETCH)).astype(np.int64), sign * values, SKETCH)


def tensors(model):
    """(engine's name, parameter or running statistic)."""
    for path, module in model.nodes.items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, part, None) is not None:
                yield f"{path}/{LEAF[type(module).__name__, part]}", getattr(module, part)


def make_model(dtype):
    model = torch_models.UNet(CLASSES, 1, KerasBatchNorm).to(dtype)
    with torch.no_grad():
        for name, t in tensors(model):
            t.copy_(torch.from_numpy(fill(name, tuple(to_engine(t).shape))).permute(0, 3, 1, 2) if t.ndim == 4 else
                    torch.from_numpy(fill(name, tuple(t.shape))))
    return model


def make_batches(seed):
    """Waves with noise; the class is where the wave stands, so that there is something to learn. Nowhere saturated: of
    two equal patches, rounding would choose the one that max-pooling takes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    images, masks = [], []
    for _ in range(N * STEPS):
        a, b, phase = rng.uniform(-.6, .6), rng.uniform(-.6, .6), rng.uniform(0, 2 * np.pi)
        wave = .5 + .5 * np.sin(a * x + b * y + phase)
        masks.append(np.minimum(wave * CLASSES, CLASSES - 1).astype(np.uint8))
        images.append(np.clip(64 + 127 * wave + rng.normal(0, 25, wave.shape), 0, 255).astype(np.uint8))
    return np.stack(images), np.stack(masks)


def run(dtype, loss_function, images, masks):
    """What is stored, and "margin": the activation nearest to zero."""
    margin = [np.inf]
    x = torch.from_numpy(images).to(dtype)[:, None] / 255
    y = torch.from_numpy(masks).long()
    out = {}
    model = make_model(dtype).eval()
    logits = model(x[:N])
    out["logits_eval"], out["loss_eval"] = logits, loss_function(logits, y[:N])
    model.train()
    logits = model(x[:N])
    loss = loss_function(logits, y[:N])
    loss.backward()
    out["logits"], out["loss"] = logits, loss
    for name, t in tensors(model):
        if t.requires_grad:
            out["grad/" + name] = to_engine(t.grad)
    model, losses = make_model(dtype), []  # fresh: the pass above has moved the running statistics
    for module in model.modules():
        if isinstance(module, KerasBatchNorm):
            module.register_forward_hook(lambda m, x, y: margin.append(y.detach().abs().min().item()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(.9, .999), eps=1e-7, weight_decay=.004)
    for i in range(STEPS):
        batch = slice(i * N, (i + 1) * N)
        optimizer.zero_grad()
        loss = loss_function(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    out["losses"] = torch.stack(losses)
    for name, t in tensors(model):
        if not t.requires_grad:
            out["after/" + name] = t
    result = {k: v.detach().double().numpy() for k, v in out.items()}
    result["margin"] = np.float64(min(margin))
    for k in ("logits", "logits_eval"):
        result[k] = result[k].transpose(0, 2, 3, 1)  # (N,H,W,K)
    return result


def compare(name, a, b):
    """Float32 against float64."""
    distance = lambda k: np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k])
    whole = np.sqrt(sum(np.sum(v**2) for k, v in b.items() if k.startswith("grad/")))
    gradients = {k: np.linalg.norm(a[k] - b[k]) / max(np.linalg.norm(b[k]), 1e-3 * whole)
                 for k in b if k.startswith("grad/")}
    worst = max(gradients, key=gradients.get)
    print(f"{name}: losses {b['losses'][0]:.6f} .. {b['losses'][-1]:.6f}; PyTorch's float32 is off by: "
          f"logits {distance('logits'):.1e}, {worst} {gradients[worst]:.1e}, "
          f"losses {np.max(np.abs(a['losses'] / b['losses'] - 1)):.1e}; least activation {b['margin']:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default=str(ROOT / "tests" / "models" / "golden" / "unet.npz"))
    path = parser.parse_args().output
    images, masks = make_batches(SEED)
    arrays = {"images": images, "masks": masks}
    for name, function in (("focal", torch_models.focal), ("cross_entropy", torch_models.cross_entropy)):
        exact = run(torch.float64, function, images, masks)
        compare(name, run(torch.float32, function, images, masks), exact)
        for key, v in exact.items():
            if key.startswith("grad/"):
                arrays[f"{name}/{key}"] = sketch(key[5:], v).astype(np.float32)
            elif key.startswith("logits"):
                arrays[key] = v.astype(np.float32)
            elif name == "focal" or key.startswith("loss") and key != "losses":
                arrays[f"{name}/{key}"] = v
    np.savez_compressed(path, **arrays)
    print(f"{path}: {pathlib.Path(path).stat().st_size / 1024:.0f} KiB, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
