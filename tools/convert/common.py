"""What the converters share: the engine's parameters of a configuration, and which layer of another framework's file
belongs to which of its nodes."""
import argparse
import difflib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]


class ConvertError(Exception):
    pass


@dataclass
class Tensor:
    """One of the other framework, as it lies there; transposed by `axes` it has the engine's layout."""
    key: str
    values: np.ndarray
    axes: tuple

    @property
    def shape(self):
        return tuple(self.values.shape[a] for a in self.axes)

    def to_engine(self, shape):
        return np.ascontiguousarray(self.values.transpose(self.axes).reshape(shape), np.float32)

    def from_engine(self, values):
        back = values.reshape(self.shape).transpose(np.argsort(self.axes))
        return np.ascontiguousarray(back, self.values.dtype)


@dataclass
class Layer:
    name: str
    tensors: dict = field(default_factory=dict)  # role ("kernel", "bias", "gamma" ...) to Tensor or shape

    def shapes(self):
        """What must agree: a dense layer is a convolution of 1x1, and positions may stand in two dimensions."""
        return tuple(sorted((role, essence(role, getattr(t, "shape", t))) for role, t in self.tensors.items()))

    def __str__(self):
        texts = [f"{role} {list(shape)}" for role, shape in self.shapes()]
        return f"{self.name or '(no name)'} ({', '.join(texts[:6] + ['...'] * (len(texts) > 6))})"


def essence(role, shape):
    shape = tuple(shape)
    if role == "embedding" and shape[0] == 1:
        shape = (int(np.prod(shape[1:-1])), shape[-1])
    return (shape[0], shape[3]) if len(shape) == 4 and shape[1:3] == (1, 1) else shape


def plain(name):
    return re.sub(r"[/._]+", "_", name)


def engine_layers(args):
    """The nodes with parameters of args.config in the order in which they run, and {parameter: shape}."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(pathlib.Path(folder) / "init.safetensors")
        command = [args.engine, args.config, "--device", "cpu", "--weights", "init", "--save-weights", file]
        try:
            ran = subprocess.run(command, capture_output=True, text=True)
        except OSError as e:
            raise ConvertError(f"{args.engine}: {e.strerror}; build it (cmake --build build/release --target "
                               "engine_verify), or name another with --engine")
        if ran.returncode:
            raise ConvertError(ran.stderr.strip())
        with safe_open(file, "np") as f:
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in json.loads(f.metadata()["order"])}
    layers = {}
    for name, shape in shapes.items():
        node, role = name.rsplit("/", 1)
        layers.setdefault(node, Layer(node)).tensors[role] = shape
    return list(layers.values()), shapes


def pair_up(ours, streams, given, file, config):
    """({their name: our layer}, names that only their order has paired). `streams`: lists of their layers, each in its
    order; where there are several, their order among each other is not known. By `given` {their name: our name}, by
    equal names, then by order and shape."""
    theirs = [layer for stream in streams for layer in stream]
    our, their = {layer.name: layer for layer in ours}, {layer.name: layer for layer in theirs}
    pairs = {}  # their name to our layer
    for name, node in given.items():
        for wanted, known, where in ((name, their, file), (node, our, config)):
            if wanted not in known:
                close = difflib.get_close_matches(wanted, known, 1)
                raise ConvertError(f"--map: {where} has no layer '{wanted}'" +
                                   (f"; did you mean '{close[0]}'?" if close else ""))
        pairs[name] = our[node]
    taken = {layer.name for layer in pairs.values()}
    if len(taken) < len(pairs):
        raise ConvertError("--map: two layers are given the same node")
    by_plain = {plain(layer.name): layer for layer in ours if layer.name not in taken}
    for name in their:
        if name not in pairs and plain(name) in by_plain:
            pairs[name] = by_plain.pop(plain(name))
    for name, layer in pairs.items():
        if layer.shapes() != their[name].shapes():
            raise ConvertError(f"{file}: {their[name]} is not the layer {layer} of {config} that its name says; pair "
                               "it with another one in --map, or convert for another configuration")
    taken = {layer.name for layer in pairs.values()}
    ours = [layer for layer in ours if layer.name not in taken]
    streams = [[layer for layer in stream if layer.name not in pairs] for stream in streams]
    check_left(ours, [layer for stream in streams for layer in stream], file, config)
    by_order = [layer.name for stream in streams for layer in stream]
    kinds = [{layer.shapes() for layer in stream} for stream in streams]
    for i, stream in enumerate(streams):
        same = [layer for layer in ours if layer.shapes() in kinds[i]]
        other = [kind for j, kind in enumerate(kinds) if j != i]
        unsure = [(a, b) for a, b in zip(same, stream) if a.shapes() != b.shapes()]
        unsure += [(a, b) for a, b in zip(same, stream) if any(b.shapes() in kind for kind in other)]
        if unsure:
            raise ConvertError(f"{file}: its layers stand in another order than the nodes of {config}, so that shapes "
                               f"alone do not tell which is which: first {unsure[0][1]} beside {unsure[0][0]}. Name "
                               f'the pairs in --map FILE: {{"{unsure[0][1].name}": "NODE", ...}}')
        pairs |= {b.name: a for a, b in zip(same, stream)}
    return pairs, by_order


def check_left(ours, theirs, file, config):
    """That what is left to pair by order has the same shapes, as often."""
    missing = list(ours)
    extra = []
    for layer in theirs:
        found = next((m for m in missing if m.shapes() == layer.shapes()), None)
        missing.remove(found) if found else extra.append(layer)

    def some(layers):
        return f"{len(layers)}" + (f", first {layers[0]}" if layers else "")

    if missing or extra:
        raise ConvertError(f"{file} is not of the architecture of {config}. Layers of the configuration that have no "
                           f"partner: {some(missing)}. Layers of the file that have none: {some(extra)}. Repair the "
                           "configuration, or leave out of the file what it does not have")


def load_engine_weights(path, shapes, config):
    try:
        with safe_open(path, "np") as f:
            weights = {name: f.get_tensor(name) for name in f.keys() if not name.startswith("optimizer/")}
    except (OSError, SafetensorError) as e:
        raise ConvertError(f"{path}: cannot be read as safetensors: {e}")
    wrong = sorted(shapes.keys() ^ weights.keys()) or [n for n in shapes if weights[n].shape != shapes[n]]
    if wrong:
        raise ConvertError(f"{path}: is not of {config}: {len(wrong)} parameters differ, first {wrong[0]}")
    return weights


def load_map(path):
    try:
        given = json.loads(pathlib.Path(path).read_text())
    except ValueError as e:
        raise ConvertError(f"{path}: is not JSON: {e}")
    if not isinstance(given, dict) or not all(isinstance(node, str) for node in given.values()):
        raise ConvertError(f'{path}: expected {{"their layer": "our node", ...}}')
    return given


def main(description, read, write):
    """read(path) gives (streams of layers, whatever `write` needs); write(path, that, {key: array}, source)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="of the other framework; with --back it gives names and layouts")
    parser.add_argument("--config", required=True, help="of the engine, with the same network")
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace the output where it is there already")
    parser.add_argument("--back", metavar="W.safetensors", help="the other way: these weights, as FILE has its own")
    parser.add_argument("--map", metavar="NAMES.json", help='{"their layer": "our node", ...} for those that neither '
                        "name nor order tell")
    parser.add_argument("--engine", default=str(ROOT / "build" / "release" / "bin" / "engine_verify"))
    args = parser.parse_args()
    try:
        if pathlib.Path(args.output).resolve() in [pathlib.Path(f).resolve() for f in (args.file, args.back or "")]:
            raise ConvertError(f"--output {args.output}: is what is read; name another file")
        if pathlib.Path(args.output).exists() and not args.force:
            raise ConvertError(f"{args.output}: is there already; --force replaces it")
        if not pathlib.Path(args.output).absolute().parent.is_dir():
            raise ConvertError(f"--output {args.output}: there is no such folder")
        if not pathlib.Path(args.file).is_file():
            raise ConvertError(f"{args.file}: there is no such file")
        given = load_map(args.map) if args.map else {}
        ours, shapes = engine_layers(args)
        streams, rest = read(args.file)
        pairs, by_order = pair_up(ours, streams, given, args.file, args.config)
        both = [(f"{pairs[layer.name].name}/{role}", t) for stream in streams for layer in stream
                for role, t in layer.tensors.items()]
        if args.back:
            weights = load_engine_weights(args.back, shapes, args.config)
            write(args.output, rest, {t.key: t.from_engine(weights[name]) for name, t in both}, args.file)
        else:
            save_file({name: t.to_engine(shapes[name]) for name, t in both}, args.output,
                      {"format": "regolith", "from": pathlib.Path(args.file).name})
    except (ConvertError, OSError, SafetensorError) as e:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {e}")
    print(f"{args.output}: {len(both)} tensors of {len(pairs)} layers")
    if by_order:
        print("Paired by order and shape alone; compare the outputs before you rely on it (engine_verify):")
        print("\n".join(f"  {name} -> {pairs[name].name}" for name in by_order))
