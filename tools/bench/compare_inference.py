#!/usr/bin/env python3
"""Prediction with a network against ONNX Runtime, OpenVINO and PyTorch on the same machine.

    python tools/bench/compare_inference.py [--model unet ...] [--batch 32] [--precision fp32|bf16] [--json FILE]

Runs after a release build (engine_profile --predict does the engine's side) with an interpreter that has PyTorch, which
makes the ONNX file, and those peers that are to be compared. Every side is a process of its own, with all threads of
the machine and the weights of the same network, and makes logits of random images: the engine from bytes, the others
from fp32. Each peer is taken at the best of its settings, found in a short round of its own; the batch may go through
it in slices, too. Then all run in turn, A B C A B C, and the medians of their batches are compared. The memory is the
peak of a process that runs whole batches with the peer's plain settings.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
THREADS = len(os.sched_getaffinity(0))
HOPELESS = 3  # times the best batch so far


# Peers: each takes (args, setting) and returns a function that makes the logits of one batch. Imported where they run.

def images(args):
    import numpy as np
    return np.random.default_rng(1).random((args.batch, 1, args.height, args.width), dtype=np.float32)


def slices(args, setting):
    each = setting.get("slice", args.batch)
    return each, [slice(i, i + each) for i in range(0, args.batch, each)]


def onnxruntime(args, setting):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(args.onnx, options, providers=["CPUExecutionProvider"])
    x, (_, parts) = images(args), slices(args, setting)
    return lambda: [session.run(None, {"image": x[p]}) for p in parts]


def openvino(args, setting):
    import openvino as ov
    each, parts = slices(args, setting)
    core = ov.Core()
    model = core.read_model(args.onnx)
    model.reshape([each, 1, args.height, args.width])
    streams = setting.get("streams", 1)
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": "bf16" if args.precision == "bf16" else "f32", "INFERENCE_NUM_THREADS": THREADS,
        "NUM_STREAMS": streams, "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY"})
    x = images(args)
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def run():
        for i, p in enumerate(parts):
            request = requests[i % streams]
            request.wait()
            request.start_async({0: x[p]}, share_inputs=True)
        for request in requests:
            request.wait()

    return run


def pytorch(args, setting):
    import torch
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import torch_models
    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    form = torch.channels_last if setting.get("layout") == "channels_last" else torch.contiguous_format
    model = logits_of(torch_models.make(args.model, args.height, args.width)).eval().to(memory_format=form)
    x, (_, parts) = torch.from_numpy(images(args)).to(memory_format=form), slices(args, setting)
    if setting.get("mode") == "compile":
        torch._inductor.config.freezing = True  # folds norms, and keeps weights in the layouts of its kernels
        model = torch.compile(model)

    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            for p in parts:
                model(x[p])

    return run


PEERS = {"onnxruntime": onnxruntime, "openvino": openvino, "torch": pytorch}


def settings(peer, args):
    """Those that are tried, the plain one first."""
    if peer == "torch":
        return [{"mode": m, "layout": form} for m in ("eager", "compile") for form in ("NCHW", "channels_last")]
    each = [{}] + [{"slice": s} for s in (8, 4, 1) if s < args.batch and args.batch % s == 0]
    if peer == "onnxruntime":
        return each
    if THREADS == 1:
        return each
    half = args.batch // THREADS
    return each + [{"slice": s, "streams": THREADS} for s in sorted({half, 4, 1}, reverse=True) if 0 < s <= half]


def logits_of(model):
    """The network without the heads that only training has."""
    import torch
    if not hasattr(model, "heads"):
        return model

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)[-1]

    return Logits()


def export(args):
    """The network in ONNX: for inference, any batch."""
    import onnx
    import torch
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import torch_models
    torch.manual_seed(1)
    model = logits_of(torch_models.make(args.model, args.height, args.width)).eval()
    torch.onnx.export(model, torch.zeros(2, 1, args.height, args.width), args.onnx, input_names=["image"],
                      output_names=["logits"], dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}}, dynamo=False)
    exported = onnx.load(args.onnx)
    for node in exported.graph.node:  # the runtimes refuse "same" with a dilation: the same in numbers
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if given.get("auto_pad") == b"SAME_UPPER":
            total = [(k - 1) * d for k, d in zip(given["kernel_shape"], given["dilations"])]
            pads = [t // 2 for t in total] + [t - t // 2 for t in total]
            kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
            del node.attribute[:]
            node.attribute.extend(kept + [onnx.helper.make_attribute("pads", pads)])
    onnx.save(exported, args.onnx)


def work(args):
    """The process of one peer: a line in, the milliseconds of as many batches and the peak memory out."""
    run = PEERS[args.worker](args, json.loads(args.setting))
    for line in sys.stdin:
        ms = []
        for _ in range(int(line)):
            began = time.perf_counter()
            run()
            ms.append(1e3 * (time.perf_counter() - began))
        print(json.dumps({"ms": ms, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


class Peer:
    """A process that runs one peer with one setting."""

    def __init__(self, args, name, setting):
        self.name, self.setting = name, setting
        command = [sys.executable, __file__, "--worker", name, "--setting", json.dumps(setting), "--onnx", args.onnx,
                   "--model", args.model, "--precision", args.precision]
        for key in ("batch", "height", "width"):
            command += [f"--{key}", str(getattr(args, key))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)

    def run(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["it ended"])[-1][:100])
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def __str__(self):
        return " ".join([self.name] + [f"{k} {v}" if isinstance(v, int) else v for k, v in self.setting.items()])


def best_of(args, name):
    """The peer at its best, images per second of all that was tried, and its peak memory with the plain setting."""
    tried, best, memory = {}, None, None
    for setting in settings(name, args):
        peer = Peer(args, name, setting)
        try:
            peer.run(1)  # compiles
            fastest = min(tried.values(), default=float("inf"))
            ran = peer.run(1)
            if ran["ms"][0] < HOPELESS * fastest:
                ran = peer.run(2)
        except (RuntimeError, BrokenPipeError) as e:
            print(f"  {peer!s:34} not here: {e}", flush=True)
            peer.close()
            continue
        ms = min(ran["ms"])
        print(f"  {peer!s:34} {1e3 * args.batch / ms:8.1f} images/s", flush=True)
        memory = memory or ran["peak"]
        tried[str(peer)] = ms
        if ms > min(tried.values()):
            peer.close()
            continue
        if best is not None:
            best.close()
        best = peer
    return best, {k: 1e3 * args.batch / v for k, v in tried.items()}, memory


def engine(args):
    """What engine_profile --predict says of itself."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [args.engine, str(ROOT / "configs" / "models" / f"{args.model}.yaml"), "--predict", "--weights",
                   args.weights, "--batch", str(args.batch), f"run.precision={args.precision}",
                   f"model.input.height={args.height}", f"model.input.width={args.width}", "--steps", str(args.steps),
                   "--json", out.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"compare_inference.py: {' '.join(command)}\n{done.stderr}")
        return json.load(open(out.name))


def fresh_weights(args):
    verify = pathlib.Path(args.engine).with_name("engine_verify")
    command = [verify, str(ROOT / "configs" / "models" / f"{args.model}.yaml"), "--weights", "init", "--save-weights",
               args.weights, "--force", f"model.input.height={args.height}", f"model.input.width={args.width}"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
        sys.exit("compare_inference.py: engine_verify, which makes the weights, failed")


def compare(args, peers):
    """Of one network: a dictionary of what was measured; prints it as it comes."""
    print(f"{args.model}, batch {args.batch}, {args.precision}, {THREADS} threads:", flush=True)
    export_process = [sys.executable, __file__, "--export", "--onnx", args.onnx, "--model", args.model, "--height",
                      str(args.height), "--width", str(args.width)]
    made = subprocess.run(export_process, capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(f"compare_inference.py: the export to ONNX failed:\n{made.stderr}")
    fresh_weights(args)
    found = {name: best_of(args, name) for name in peers}
    sides = {name: peer for name, (peer, _, _) in found.items() if peer is not None}
    ms, rounds = {"engine": []}, []
    for i in range(args.rounds):
        ours = engine(args)
        of_round = {"engine": ours["times_ms"]}
        for name, peer in sides.items():
            peer.run(1)  # its memory is cold after the others' turns
            of_round[name] = peer.run(args.steps)["ms"]
        rounds.append({k: statistics.median(v) for k, v in of_round.items()})
        for name, times in of_round.items():
            ms.setdefault(name, []).extend(times)
        print(f"  round {i + 1}: " + "   ".join(f"{k} {v:.1f} ms" for k, v in rounds[-1].items()), flush=True)
    for peer in sides.values():
        peer.close()
    median = {k: statistics.median(v) for k, v in ms.items()}
    peak = {"engine": ours["peak_bytes"]} | {k: found[k][2] for k in sides}
    print(f"\n{'':34}{'ms a batch':>11}{'images/s':>11}{'ratio':>8}{'of rounds':>14}{'peak MiB':>10}")
    for name in median:
        side = "engine" if name == "engine" else str(sides[name])
        of_rounds = [r[name] / r["engine"] for r in rounds]
        spread = f"{min(of_rounds):.2f} to {max(of_rounds):.2f}"
        print(f"{side:34}{median[name]:11.1f}{1e3 * args.batch / median[name]:11.1f}"
              f"{median[name] / median['engine']:8.2f}{spread:>14}{peak[name] / 2**20:10.0f}")
    print(flush=True)
    return {"model": args.model, "batch": args.batch, "precision": args.precision, "device": ours["device"],
            "setting": {k: p.setting for k, p in sides.items()}, "ms": median, "peak_bytes": peak,
            "ratio": {k: v / median["engine"] for k, v in median.items()}, "rounds_ms": rounds,
            "tried_images_per_second": {k: found[k][1] for k in found}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", default=["unet", "se_unet", "unet_plus_plus", "double_unet"])
    parser.add_argument("--peer", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="batches of each side in each round")
    parser.add_argument("--engine", default=str(ROOT / "build" / "release" / "bin" / "engine_profile"))
    parser.add_argument("--json")
    for internal in ("--worker", "--setting", "--onnx"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker or args.export:
        args.model = args.model[0]
        return export(args) if args.export else work(args)
    if not os.access(args.engine, os.X_OK):
        sys.exit(f"compare_inference.py: {args.engine} is not there: build engine_profile and engine_verify, or name "
                 "another with --engine")
    if importlib.util.find_spec("torch") is None:
        sys.exit(f"compare_inference.py: {sys.executable} has no PyTorch, which makes the ONNX file")
    peers = [p for p in args.peer if importlib.util.find_spec(p) is not None]
    results, models = [], args.model
    with tempfile.TemporaryDirectory() as folder:
        args.onnx, args.weights = f"{folder}/model.onnx", f"{folder}/weights.safetensors"
        for args.model in models:
            results.append(compare(args, peers))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
