#!/usr/bin/env python3
"""Trains a network of PyTorch by the study's recipe on the same samples as a run of the engine.

    python tools/bench/train_torch.py RUN --npz FILE [--model unet] [--seed 1] [--epochs 15] --json OUT.json

RUN is a folder that engine_run wrote with configs/table1 or configs/experiments: its samples.csv says which rows of
training_set trained, validated and tested it, and how often an epoch held each. Everything else is written here as one
would in PyTorch, from the study's description: focal loss without class 0, AdamW, ReduceLROnPlateau on the validation
loss, best weights by the validation loss, the light augmentation (flip, zoom, translation, rotation; image bilinear,
mask nearest, reflection) of the repeated images. The scores are the engine's three mIoUs, from one confusion matrix
over each part. So what differs is the framework, the order of the samples and the random numbers.
"""
import argparse
import csv
import json
import math
import os
import pathlib
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"))
import torch_models  # noqa: E402

CLASSES = 5


def initialise(model):
    """As Keras does: glorot_uniform, zero biases."""
    for m in model.modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)):
            torch.nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                torch.nn.init.zeros_(m.bias)


def augment(images, masks, generator):
    """Flip, then zoom, translation and rotation in one map from output to input, as Keras draws and extends them."""
    n, _, h, w = images.shape

    def uniform(low, high):
        return torch.rand(n, generator=generator) * (high - low) + low

    flip = torch.where(torch.rand(n, generator=generator) < .5, -1., 1.)
    zoom, turn = 1 + uniform(-.1, .1), 2 * math.pi * uniform(-.1, .1)
    dy, dx = uniform(-.1, .1) * h, uniform(-.1, .1) * w
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")  # (H, W)
    c, s = (zoom * torch.cos(turn))[:, None, None], (zoom * torch.sin(turn))[:, None, None]  # (N, 1, 1)
    u = flip[:, None, None] * (c * x - s * y - (zoom * dx)[:, None, None])
    v = s * x + c * y - (zoom * dy)[:, None, None]
    grid = torch.stack([2 * u / w, 2 * v / h], -1)  # (N, H, W, 2): -1 and 1 are the outer edges of the outer pixels
    sample = lambda m, mode: F.grid_sample(m, grid, mode=mode, padding_mode="reflection", align_corners=False)
    return sample(images, "bilinear"), sample(masks[:, None].float(), "nearest")[:, 0].long()


def scores(confusion):
    """confusion: (K, K) pixels, truth by row."""
    def iou(c):
        union = c.sum(0) + c.sum(1) - np.diag(c)
        return np.where(union > 0, np.diag(c) / np.maximum(union, 1), np.nan)

    true = confusion.copy()
    true[0] = 0  # pixels whose truth is class 0 are dropped
    ignoring = iou(true)
    return {"miou": float(np.nanmean(iou(confusion))), "miou_foreground": float(np.nanmean(ignoring[1:])),
            "miou_keras_ignore0": float(np.nanmean(ignoring)), "iou": iou(confusion).tolist()}


class Run:
    def __init__(self, args):
        with open(pathlib.Path(args.run) / "samples.csv", newline="") as f:
            samples = list(csv.DictReader(f))
        rows = np.load(args.npz)["training_set"]
        images = torch.from_numpy(rows[:, 0].astype(np.float32) / 255)[:, None]
        masks = torch.from_numpy(rows[:, 1].astype(np.int64))
        self.images, self.masks = images, masks
        part = lambda name: [int(s["row"]) for s in samples if s["part"] == name]
        self.parts = {name: part(name) for name in ("validation", "test")}
        # (samples) of an epoch: row, and whether this occurrence is augmented, which the first of a row is not
        self.epoch = torch.tensor([(int(s["row"]), i > 0) for s in samples if s["part"] == "train"
                                   for i in range(int(s["times"]))])
        torch.manual_seed(args.seed)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.layout = torch.contiguous_format if args.nchw else torch.channels_last
        self.model = torch_models.make(args.model, *images.shape[2:]).to(memory_format=self.layout)
        initialise(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-4, eps=1e-7, weight_decay=.004, fused=True)
        # Keras's patience 6 is torch's 5: torch waits one epoch longer (it reduces when the count exceeds it).
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=.5, patience=5, min_lr=1e-5,
                                                                  threshold=1e-4, threshold_mode="abs")
        # (step) of batch norm's running statistics: as the engine has it, an average over few steps keeps little of the
        # initial values. With Keras's constant 0.99 the statistics of 400 steps would still be those of none.
        self.norms = [m for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        self.kept, self.steps = [1 - m.momentum for m in self.norms], 0
        self.batch, self.bf16 = args.batch, args.precision == "bf16"

        def loss(images, masks):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                logits = self.model(images)
            return torch_models.focal(logits.float(), masks), logits

        self.loss = loss if args.eager else torch.compile(loss)

    def train_epoch(self):
        self.model.train()
        order = self.epoch[torch.randperm(len(self.epoch), generator=self.generator)]
        for chosen in order.split(self.batch):
            row, repeated = chosen[:, 0], chosen[:, 1].bool()
            images, masks = self.images[row], self.masks[row]
            if repeated.any():
                images[repeated], masks[repeated] = augment(images[repeated], masks[repeated], self.generator)
            for norm, kept in zip(self.norms, self.kept):
                norm.momentum = 1 - min(kept, (1 + self.steps) / (10 + self.steps))
            self.steps += 1
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(images.to(memory_format=self.layout), masks)[0].backward()
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, part):
        self.model.eval()
        total, confusion = 0., np.zeros((CLASSES, CLASSES), np.int64)
        for rows in torch.tensor(self.parts[part]).split(self.batch):
            masks = self.masks[rows]
            loss, logits = self.loss(self.images[rows].to(memory_format=self.layout), masks)
            total += loss.item() * len(rows)
            pairs = masks * CLASSES + logits.argmax(1)
            confusion += np.bincount(pairs.flatten(), minlength=CLASSES**2).reshape(CLASSES, CLASSES)
        return {"loss": total / len(self.parts[part]), **scores(confusion)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--npz", required=True)
    parser.add_argument("--model", default="unet", choices=["unet", "se_unet", "unet_plus_plus", "double_unet"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--nchw", action="store_true", help="in place of channels_last")
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run, history, best = Run(args), [], None
    for epoch in range(1, args.epochs + 1):
        began = time.perf_counter()
        run.train_epoch()
        validation = run.evaluate("validation")
        run.plateau.step(validation["loss"])
        history.append({"epoch": epoch, "seconds": time.perf_counter() - began, **validation})
        print(f"epoch {epoch}: {history[-1]['seconds']:.1f} s, validation loss {validation['loss']:.5f}, "
              f"miou_foreground {validation['miou_foreground']:.4f}", flush=True)
        if best is None or validation["loss"] < best["loss"]:
            best = validation
            weights = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.model.load_state_dict(weights)
    result = {"model": args.model, "seed": args.seed, "epochs": args.epochs, "precision": args.precision,
              "torch": torch.__version__, "validation": best, "test": run.evaluate("test"), "history": history}
    pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
