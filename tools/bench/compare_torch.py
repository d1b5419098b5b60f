#!/usr/bin/env python3
"""Training throughput of a network against PyTorch on the same machine.

    python tools/bench/compare_torch.py [--model unet] [--batch 32] [--device cpu|cuda] [--json FILE]

Runs where PyTorch is installed, after a release build (engine_profile does the engine's side). PyTorch is taken at its
best of {fp32, bf16 autocast} x {NCHW, channels_last} x {eager, compile}, found in a short round of its own: one that is
hopelessly slower is dropped at its first step, and what eager ruled out is not compiled; the time that compiling takes
does not count. A CPU that would only emulate bf16 does without it. Then both sides run in turn, A B A B, on random
images, with the study's loss and AdamW, and the medians of their steps are compared.
"""
import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import torch
except ImportError:
    sys.exit(f"compare_torch.py: {sys.executable} has no PyTorch. Install it (pip install torch) or run this script "
             "with an interpreter that has it.")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import torch_models  # noqa: E402

LOSS = "loss={focal: {gamma: 2.0, alpha: 0.25, exclude: [0], reduction: mean_elements}}"
HOPELESS = 3  # times the best step so far


class TorchSide:
    """Training steps of one configuration of PyTorch."""

    def __init__(self, args, precision, layout, mode):
        self.name = f"{precision} {layout} {mode}"
        self.device, self.bf16 = args.device, precision == "bf16"
        torch._dynamo.reset()
        torch.manual_seed(1)
        form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        model = torch_models.make(args.model, args.height, args.width).to(self.device).to(memory_format=form).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, eps=1e-7, weight_decay=.004, fused=True)
        bytes_ = torch.randint(0, 256, (2, args.batch, 1, args.height, args.width), dtype=torch.uint8)
        self.images = [b.to(self.device).to(memory_format=form) for b in bytes_]
        self.masks = list(torch.randint(0, 5, (2, args.batch, args.height, args.width)).to(self.device))

        def loss(images, masks):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                logits = model(images.float() / 255)
            return torch_models.heads_loss(torch_models.focal, model, logits, masks)

        self.loss = torch.compile(loss) if mode == "compile" else loss
        self.turn = 0

    def step(self):
        """Seconds of one training step."""
        began = time.perf_counter()
        self.turn ^= 1
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.images[self.turn], self.masks[self.turn]).backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def precisions(device):
    """Those that the machine computes in: a CPU without bf16 products emulates them, slowly."""
    if device == "cuda":
        return ("fp32", "bf16")
    cpu = pathlib.Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    return ("fp32", "bf16") if "avx512_bf16" in flags or "amx_bf16" in flags else ("fp32",)


def best_of_torch(args):
    """The best side, and images per second of every one that was tried."""
    tried, best, hopeless = {}, None, set()
    for mode, precision, layout in itertools.product(("eager", "compile"), precisions(args.device),
                                                     ("NCHW", "channels_last")):
        if (precision, layout) in hopeless or args.only not in f"{precision} {layout} {mode}":
            continue
        side = TorchSide(args, precision, layout, mode)
        fastest = min(tried.values(), default=float("inf"))
        try:
            if mode == "compile" or args.device == "cuda":  # compiles, or tries out cuDNN's algorithms
                side.step()
            seconds = side.step()
            if seconds < HOPELESS * fastest:
                seconds = min(side.step(), side.step())
        except Exception as e:  # no compiler, no such data type: that configuration is not one of this machine
            print(f"  {side.name:32} not here: {str(e).splitlines()[0][:80] if str(e) else type(e).__name__}")
            continue
        if seconds > HOPELESS * fastest:
            hopeless.add((precision, layout))
        print(f"  {side.name:32} {args.batch / seconds:8.1f} images/s", flush=True)
        tried[side.name] = seconds
        if seconds <= min(tried.values()):
            best = side
    return best, {name: args.batch / s for name, s in tried.items()}


def engine_steps(args):
    """Milliseconds of each step, and what engine_profile says of itself."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [args.engine, str(ROOT / "configs" / "models" / f"{args.model}.yaml"), f"train.batch={args.batch}",
                   f"run.device={args.device}", f"run.precision={args.precision}", f"model.input.height={args.height}",
                   f"model.input.width={args.width}", LOSS, "--steps", str(args.steps), "--json", out.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"compare_torch.py: {' '.join(command)}\n{done.stderr}")
        return json.load(open(out.name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="unet", choices=sorted(torch_models.MODELS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto", help="of the engine (default: its own choice)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of each side in each round")
    parser.add_argument("--engine", default=str(ROOT / "build" / "release" / "bin" / "engine_profile"))
    parser.add_argument("--only", default="", help="of PyTorch's configurations, those whose name holds this, as "
                        "'eager' or 'bf16 NCHW eager': saves time where it is known which is best")
    parser.add_argument("--json")
    args = parser.parse_args()
    if not os.access(args.engine, os.X_OK):
        sys.exit(f"compare_torch.py: {args.engine} is not there: build it (cmake --build build/release --target "
                 "engine_profile), or name another with --engine")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("compare_torch.py: this PyTorch finds no CUDA device")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True

    print(f"{args.model}, batch {args.batch}, {args.device}; PyTorch {torch.__version__} at its best:", flush=True)
    side, tried = best_of_torch(args)
    if side is None:
        sys.exit("compare_torch.py: PyTorch runs in none of its configurations here")
    rounds = []
    for i in range(args.rounds):
        engine = engine_steps(args)
        side.step()  # its memory is cold after the other's turn
        theirs = [1e3 * side.step() for _ in range(args.steps)]
        rounds.append((engine["steps_ms"], theirs))
        print(f"  round {i + 1}: engine {statistics.median(engine['steps_ms']):8.1f} ms   "
              f"PyTorch {statistics.median(theirs):8.1f} ms", flush=True)
    ours = [t for r in rounds for t in r[0]]
    theirs = [t for r in rounds for t in r[1]]
    ms = {"engine": statistics.median(ours), "PyTorch": statistics.median(theirs)}
    ratio = ms["PyTorch"] / ms["engine"]
    of_rounds = [statistics.median(b) / statistics.median(a) for a, b in rounds]
    names = {"engine": engine["precision"], "PyTorch": side.name}
    print(f"\n{'':9}{'':28}{'ms a step':>11}{'images/s':>11}")
    for who in ("engine", "PyTorch"):
        print(f"{who:9}{names[who]:28}{ms[who]:11.1f}{1e3 * args.batch / ms[who]:11.1f}")
    print(f"ratio {ratio:.2f} (rounds {min(of_rounds):.2f} to {max(of_rounds):.2f}) on {engine['device']}")
    if args.json:
        result = {"model": args.model, "batch": args.batch, "device": engine["device"], "torch": torch.__version__,
                  "configuration": names, "step_ms": ms,
                  "images_per_second": {k: 1e3 * args.batch / v for k, v in ms.items()},
                  "ratio": ratio, "ratio_of_rounds": of_rounds, "torch_tried_images_per_second": tried,
                  "rounds_ms": [{"engine": a, "PyTorch": b} for a, b in rounds]}
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
