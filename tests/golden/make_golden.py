#!/usr/bin/env python3
"""Writes tests/models/golden/NAME.npz: what PyTorch in float64 makes of each network, and of each block between two
convolutions, for tests/models/test_golden.cpp.

    python tests/golden/make_golden.py [--output DIRECTORY] [--search SEEDS] [NAME ...]

Needs PyTorch and NumPy; no build and no test runs it. Weights come from a formula (`fill`) that the test repeats in
C++, so that the files need not hold them, gammas, betas and biases are none of them trivial, and the engine's own
initialiser plays no part. Dropout is off. Gradients of more than SKETCH elements are stored as a count sketch
(Charikar, Chen and Farach-Colton 2002): each element is added, with a sign, to one of SKETCH sums, both drawn by hash.
The sketch is linear, and the squared length of a sketched difference is that of the difference itself within a
standard deviation of sqrt(2 / SKETCH): 6%.

It prints how far PyTorch's own float32 is from its float64, the yardstick for the test's tolerances; and the margin:
the least distance of an input of a ReLU from zero, or of the largest value of a pooling window from the next. One that
falls on the other side for rounding alone changes gradients by 1e-3 and ten steps' losses by 1e-4, in any two
programs, so each case has the batch with the widest margin of those of seeds 0 to N-1: --search N finds it.
"""
import argparse
import pathlib
import sys
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ROOT = pathlib.Path(__file__).resolve().parents[2]
import torch_models as tm  # noqa: E402

CLASSES, RATE, SKETCH = 5, 4e-4, 512


@dataclass
class Case:
    make: Callable[[], nn.Module]
    batch: int
    height: int
    width: int
    seed: int
    losses: tuple = ("focal",)
    steps: int = 0  # of AdamW, on batches of their own


class Between(nn.Module):
    """A block between two convolutions: from the image to its inputs, and from its output to logits."""

    def __init__(self, x, stem, out, resize=lambda y: y):
        super().__init__()
        self.stem, self.x, self.logits, self.resize = tm.Conv(1, stem, 3), x, tm.Conv(out, CLASSES, 1), resize

    def forward(self, image):
        return self.logits(self.resize(self.x(self.stem(image))))


class GateBetween(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.signal = tm.Conv(1, 16, 3), tm.Conv(1, 24, 3)
        self.x, self.logits = tm.AttentionGate(16, 24, 12), tm.Conv(16, CLASSES, 1)

    def forward(self, image):
        return self.logits(self.x(self.stem(image), self.signal(image)))


def half(y):
    return F.max_pool2d(y, 2)


def block(x, stem, out, resize=lambda y: y, size=(8, 16), seed=0):
    return Case(lambda: Between(x(), stem, out, resize), 3, *size, seed, ("cross_entropy",))


CASES = {
    "unet": Case(tm.UNet, 4, 8, 16, 33, ("focal", "cross_entropy"), 10),
    "unet_plus_plus": Case(tm.UNetPlusPlus, 2, 16, 16, 41),
    "unet_plus_plus_full": Case(tm.UNetPlusPlusFull, 4, 16, 32, 61),
    "se_unet": Case(tm.SeUNet, 2, 16, 32, 83),
    "double_unet": Case(tm.DoubleUNet, 2, 16, 32, 45),
    "unet_transformer": Case(lambda: tm.UNetTransformer(size=(16, 32)), 2, 16, 32, 99),
    "block_conv_norm": block(lambda: tm.conv_norm(12, 20, tm.group_norm, 3, 2), 12, 20, seed=91),
    "block_conv_norm_batch": block(lambda: tm.conv_norm(12, 20, tm.batch_norm, 2, 1), 12, 20, seed=2),
    "block_residual": block(lambda: tm.residual(16, 16, 2, repeat=2), 16, 16, seed=13),
    "block_residual_strided": block(lambda: tm.residual(16, 24, 3, lambda c: tm.group_norm(c, 8), 2, stride=2), 16, 24,
                                    tm.bilinear, seed=44),
    "block_residual_bare": block(lambda: tm.residual(16, 32, 3, tm.batch_norm, bare=True), 16, 32, seed=6),
    "block_squeeze_excite": block(lambda: tm.SqueezeExcite(24, 4), 24, 24, seed=64),
    "block_se_conv": block(lambda: tm.se_conv(12, 32, repeat=2, ratio=8), 12, 32, seed=57),
    "block_attention_gate": Case(GateBetween, 3, 8, 16, 1, ("cross_entropy",)),
    "block_aspp": block(lambda: tm.Aspp(16, 32), 16, 32),  # rate 6 sees all of its taps, 12 its row, 18 its centre
    "block_aspp_whole": block(lambda: tm.Aspp(16, 32, (1, 2, 3)), 16, 32),
    "block_aspp_small": block(lambda: tm.Aspp(16, 32), 16, 32, size=(4, 8)),
    "block_transformer": block(lambda: tm.Transformer(32, (8, 16), heads=2, mlp_ratio=3, repeat=2), 32, 32),
    "block_conv_transpose_2": block(lambda: tm.ConvTranspose(12, 8, 2), 12, 8, half, seed=87),
    "block_conv_transpose_3": block(lambda: tm.ConvTranspose(12, 8, 3), 12, 8, half, seed=67),
    "block_conv_dilated": block(lambda: tm.Conv(12, 8, 3, dilation=2), 12, 8),
    "block_conv_strided": block(lambda: tm.Conv(12, 8, 2, stride=2), 12, 8, lambda y: F.interpolate(y, scale_factor=2)),
}


class KerasBatchNorm(nn.BatchNorm2d):
    """Keras 3: eps 1e-3, 0.99 of the running statistics kept, and the running variance takes the biased one.

    In the first steps less is kept, as in the engine: kernels/norm.h.
    """

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3, momentum=0.01)
        self.steps = 0

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        keep = min(1 - self.momentum, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        with torch.no_grad():
            for running, batch in ((self.running_mean, x.mean((0, 2, 3))),
                                   (self.running_var, x.var((0, 2, 3), unbiased=False))):
                running.mul_(keep).add_((1 - keep) * batch)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0, self.eps)


def like_the_engine(module):
    """Keras' batch norm, and no dropout."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, KerasBatchNorm(child.num_features))
        elif isinstance(child, (nn.Dropout, nn.Dropout2d)):
            child.p = 0
        else:
            like_the_engine(child)
    return module


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
    norms = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    for path, module in model.named_modules():
        names = {"weight": "gamma", "bias": "beta"} if isinstance(module, norms) else {"weight": "kernel"}
        names |= {"running_mean": "running_mean", "running_var": "running_variance"}
        for part, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if part != "num_batches_tracked":
                yield f"{path}/{names.get(part, part)}".replace(".", "/"), t


def make_model(case, dtype):
    model = like_the_engine(case.make()).to(dtype)
    with torch.no_grad():
        for name, t in tensors(model):
            values = torch.from_numpy(fill(name, tuple(to_engine(t).shape)))
            t.copy_(values.permute(0, 3, 1, 2) if t.ndim == 4 else values)
    return model


def make_batches(case, seed):
    """Waves with noise; the class is where the wave stands, so that there is something to learn. Nowhere saturated: of
    two equal patches, rounding would choose the one that max-pooling takes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:case.height, :case.width]
    images, masks = [], []
    for _ in range(case.batch * max(case.steps, 1)):
        a, b, phase = rng.uniform(-.6, .6), rng.uniform(-.6, .6), rng.uniform(0, 2 * np.pi)
        wave = .5 + .5 * np.sin(a * x + b * y + phase)
        masks.append(np.minimum(wave * CLASSES, CLASSES - 1).astype(np.uint8))
        images.append(np.clip(64 + 127 * wave + rng.normal(0, 25, wave.shape), 0, 255).astype(np.uint8))
    return np.stack(images), np.stack(masks)


class Margin(TorchFunctionMode):
    """How near the inputs of ReLUs and poolings have been to another result."""

    def __init__(self):
        super().__init__()
        self.least = np.inf

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "relu":
            self.least = min(self.least, args[0].detach().abs().min().item())
        elif name.startswith("max_pool2d"):
            x = args[0].detach()
            windows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2).sort(-1).values
            first, second = windows[..., -1], windows[..., -2]
            ties = (first - second)[(first != 0) | (second != 0)]  # all zero behind a ReLU: nothing to choose
            self.least = min(self.least, ties.min().item())
        return function(*args, **(kwargs or {}))


def data(images, masks, dtype):
    return torch.from_numpy(images).to(dtype)[:, None] / 255, torch.from_numpy(masks).long()


def run_steps(case, dtype, loss_function, images, masks):
    """Losses of `steps` steps, and the model after them."""
    x, y = data(images, masks, dtype)
    model, losses = make_model(case, dtype), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(.9, .999), eps=1e-7, weight_decay=.004)
    for i in range(case.steps):
        batch = slice(i * case.batch, (i + 1) * case.batch)
        optimizer.zero_grad()
        loss = tm.heads_loss(loss_function, model, model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), model


def margin(case, images, masks):
    with Margin() as m:
        if case.steps:
            run_steps(case, torch.float64, getattr(tm, case.losses[0]), images, masks)
        else:
            with torch.no_grad():
                make_model(case, torch.float64)(data(images, masks, torch.float64)[0])
    return m.least


def run(case, dtype, loss_function, images, masks):
    """What is stored, uncompressed."""
    x, y = data(images[:case.batch], masks[:case.batch], dtype)
    out = {}
    model = make_model(case, dtype)
    for mode, suffix in ((False, "_eval"), (True, "")):
        logits = model.train(mode)(x)
        loss = tm.heads_loss(loss_function, model, logits, y)
        out["logits" + suffix], out["loss" + suffix] = logits if torch.is_tensor(logits) else logits[-1], loss
    loss.backward()
    for name, t in tensors(model):
        if t.requires_grad:
            out["grad/" + name] = to_engine(t.grad)
    if case.steps:
        out["losses"], model = run_steps(case, dtype, loss_function, images, masks)
        for name, t in tensors(model):
            if not t.requires_grad:
                out["after/" + name] = t
    result = {k: v.detach().double().numpy() for k, v in out.items()}
    for k in ("logits", "logits_eval"):
        result[k] = result[k].transpose(0, 2, 3, 1)  # (N,H,W,K)
    return result


def compare(name, a, b):
    """Float32 against float64."""
    def distance(k):
        return np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k])

    whole = np.sqrt(sum(np.sum(v**2) for k, v in b.items() if k.startswith("grad/")))
    gradients = {k: np.linalg.norm(a[k] - b[k]) / max(np.linalg.norm(b[k]), 1e-3 * whole)
                 for k in b if k.startswith("grad/")}
    worst = max(gradients, key=gradients.get)
    print(f"{name}: loss {b['loss']:.6f}; PyTorch's float32 is off by: logits {distance('logits'):.1e}, "
          f"{worst} {gradients[worst]:.1e}", end="")
    if "losses" in b:
        print(f", losses {b['losses'][0]:.6f} .. {b['losses'][-1]:.6f} "
              f"{np.max(np.abs(a['losses'] / b['losses'] - 1)):.1e}", end="")
    print()


def write(name, case, directory):
    images, masks = make_batches(case, case.seed)
    arrays = {"images": images, "masks": masks}
    for loss in case.losses:
        function = getattr(tm, loss)
        exact = run(case, torch.float64, function, images, masks)
        compare(f"{name}, {loss}", run(case, torch.float32, function, images, masks), exact)
        for key, v in exact.items():
            if key.startswith("grad/"):
                arrays[f"{loss}/{key}"] = sketch(key[5:], v).astype(np.float32)
            elif key.startswith("logits"):
                arrays[key] = v.astype(np.float32)
            else:
                arrays[f"{loss}/{key}"] = v
    path = directory / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"  {path.name}: {path.stat().st_size / 1024:.0f} KiB, {len(arrays)} arrays, margin "
          f"{margin(case, images, masks):.1e}", flush=True)


def search(name, case, seeds):
    margins = {seed: margin(case, *make_batches(case, seed)) for seed in range(seeds)}
    best = max(margins, key=margins.get)
    print(f"{name}: of {seeds} seeds {best} has the widest margin, {margins[best]:.1e}; "
          f"seed {case.seed} has {margins.get(case.seed, 0):.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--output", default=ROOT / "tests" / "models" / "golden", type=pathlib.Path)
    parser.add_argument("--search", type=int, default=0, metavar="SEEDS", help="write nothing; look for better seeds")
    args = parser.parse_args()
    for name in args.names or CASES:
        if name not in CASES:
            sys.exit(f"make_golden.py: there is no case {name}; there are {', '.join(CASES)}")
        if args.search:
            search(name, CASES[name], args.search)
        else:
            write(name, CASES[name], args.output)


if __name__ == "__main__":
    main()
