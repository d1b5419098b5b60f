#!/usr/bin/env python3
"""Converts networks of PyTorch and Keras to the engine and back, and compares the logits.

    python tests/golden/check_convert.py torch [NAME ...]
    KERAS_BACKEND=jax python tests/golden/check_convert.py keras [NAME ...]

Needs a release build of engine_verify, and PyTorch, or Keras 3 with JAX and h5py; no build and no test runs it. Weights
are random, running statistics and gammas none of them trivial. Of each network: logits of the engine in fp32, with
running statistics, are within 1e-4 of the other framework's (PyTorch in float64); and what is converted back equals
the file it came from. Layers are paired by name, by order and shape, and by --map; what is uncertain is refused.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONVERT = ROOT / "tools" / "convert"
HEIGHT, WIDTH, BATCH = 64, 128, 2
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (BATCH, HEIGHT, WIDTH), np.uint8)
SCALED = IMAGES[..., None].astype(np.float32) / 255  # (N,H,W,1)


def random_weights(shape, kernel, positive):
    if kernel:
        fan_in = np.prod(shape) / max(shape[0], shape[-1])
        return RNG.normal(0, np.sqrt(1 / fan_in), shape).astype(np.float32)
    return RNG.uniform(.5 if positive else -.5, 1.5 if positive else .5, shape).astype(np.float32)


def config(name):
    return str(ROOT / "configs" / "models" / f"{name}.yaml")


def convert(script, *arguments):
    """Its message where it refuses, else ""."""
    ran = subprocess.run([sys.executable, CONVERT / script, "--force", *map(str, arguments)], capture_output=True, text=True)
    if ran.returncode and "Traceback" in ran.stderr:
        sys.exit(ran.stderr)
    return ran.stderr.strip()


def engine_logits(name, weights, folder):
    np.savez(folder / "batch.npz", image=IMAGES, mask=np.zeros_like(IMAGES))
    subprocess.run([ROOT / "build/release/bin/engine_verify", config(name), "--weights", weights, "--input",
                    folder / "batch.npz", "--output", folder / "out.npz", "--force", "--mode", "eval", "--precision",
                    "fp32", "--device", "cpu"], check=True, stdout=subprocess.DEVNULL)
    return np.load(folder / "out.npz")["logits"]


def check(what, name, script, file, expected, folder, equal, arguments=()):
    weights, back = folder / "w.safetensors", folder / f"back{''.join(file.suffixes)}"
    refused = convert(script, file, "--config", config(name), "--output", weights, *arguments)
    if refused:
        sys.exit(f"{what}: {refused}")
    apart = np.abs(engine_logits(name, weights, folder) - expected).max()
    convert(script, file, "--config", config(name), "--back", weights, "--output", back, *arguments)
    same = equal(file, back)
    print(f"{what}: logits up to {np.abs(expected).max():.3g}, apart by {apart:.2g}; back "
          f"{'equal' if same else 'DIFFERENT'}")
    if not same or not apart <= 1e-4:
        sys.exit(1)


def check_refusal(what, name, script, file, folder, words):
    message = convert(script, file, "--config", config(name), "--output", folder / "w.safetensors")
    print(f"{what}: {message or 'NOT REFUSED'}")
    if not all(word in message for word in words):
        sys.exit(1)


# PyTorch

def check_torch(name, folder):
    import torch
    import torch_models as tm
    model = tm.make(name, HEIGHT, WIDTH).eval()
    state = model.state_dict()
    for key, t in state.items():
        if t.is_floating_point():
            positive = key.endswith("running_var") or (key.endswith("weight") and t.ndim == 1)
            t.copy_(torch.from_numpy(random_weights(tuple(t.shape), t.ndim > 1, positive)))
    state = {key: t.clone() for key, t in state.items()}
    with torch.no_grad():
        y = model.double()(torch.from_numpy(SCALED).double().permute(0, 3, 1, 2))
    expected = (y if torch.is_tensor(y) else y[-1]).permute(0, 2, 3, 1).numpy()

    def equal(a, b):
        if a.suffix == ".safetensors":
            return a.read_bytes() == b.read_bytes()
        a, b = torch.load(a), torch.load(b)
        return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)

    file = folder / "state.pt"
    torch.save(state, file)
    check(f"torch {name} by name", name, "from_torch.py", file, expected, folder, equal)
    if name != "unet":
        return
    from safetensors.torch import save_file
    save_file(state, folder / "state.safetensors", {"format": "pt"})
    check(f"torch {name}, safetensors", name, "from_torch.py", folder / "state.safetensors", expected, folder, equal)
    torch.save({f"module.{k}": t for k, t in state.items()}, file)
    check(f"torch {name}, DataParallel", name, "from_torch.py", file, expected, folder, equal)
    modules = {m: f"layers.{i}" for i, m in enumerate(dict.fromkeys(k.rsplit(".", 1)[0] for k in state))}
    renamed = {f"{modules[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}": t for k, t in state.items()}
    torch.save(renamed, file)
    check(f"torch {name} by order", name, "from_torch.py", file, expected, folder, equal)
    shuffled = dict(sorted(renamed.items(), key=lambda item: -int(item[0].split(".")[1])))
    torch.save(shuffled, file)
    check_refusal(f"torch {name} in another order", name, "from_torch.py", file, folder, ["another order", "--map"])
    names = folder / "names.json"
    names.write_text(json.dumps({new: old.replace(".", "/") for old, new in modules.items()}))
    check(f"torch {name} by --map", name, "from_torch.py", file, expected, folder, equal, ("--map", names))
    del shuffled["layers.2.bias"]
    torch.save(shuffled, file)
    check_refusal(f"torch {name}, a bias missing", name, "from_torch.py", file, folder, ["not of the architecture"])


# Keras

def keras_layers(named):
    """Layers by the paths of the engine's nodes; with Keras's own names where not `named`."""
    from keras import layers as L

    def make(kind, path, *arguments, **options):
        return getattr(L, kind)(*arguments, name=path.replace("/", "_") if named else None, **options)

    return make


def keras_unet(named):
    import keras
    from keras import layers as L
    make = keras_layers(named)

    def block(x, k, path):
        for i in ("1", "2"):
            x = make("Conv2D", f"{path}/{i}/conv", k, 3, padding="same")(x)
            x = L.ReLU()(make("BatchNormalization", f"{path}/{i}/norm")(x))
        return x

    image = keras.Input((HEIGHT, WIDTH, 1))
    e1 = block(image, 32, "e1")
    e2 = block(L.MaxPooling2D()(e1), 64, "e2")
    b = block(L.MaxPooling2D()(e2), 128, "b")
    d2 = block(L.Concatenate()([L.UpSampling2D()(b), e2]), 64, "d2")
    d1 = block(L.Concatenate()([L.UpSampling2D()(d2), e1]), 32, "d1")
    return keras.Model(image, make("Conv2D", "logits", 5, 1)(d1))


def keras_se_unet(named):
    import keras
    from keras import layers as L
    make = keras_layers(named)

    def block(x, k, path):
        x = make("Conv2D", f"{path}/1/conv", k, 3, padding="same")(x)
        x = L.ReLU()(make("GroupNormalization", f"{path}/1/norm", groups=min(32, k))(x))
        s = make("Dense", f"{path}/1/se/reduce", k // 16, activation="relu")(L.GlobalAveragePooling2D()(x))
        s = make("Dense", f"{path}/1/se/expand", k, activation="sigmoid")(s)
        return L.Dropout(.1)(L.Multiply()([x, L.Reshape((1, 1, k))(s)]))

    def gate(x, g, k, path):
        a = L.Add()([make("Conv2D", f"{path}/theta", k, 1, use_bias=False)(x),
                     make("Conv2D", f"{path}/phi", k, 1, use_bias=False)(g)])
        return L.Multiply()([x, make("Conv2D", f"{path}/psi", 1, 1, activation="sigmoid")(L.ReLU()(a))])

    def up(x, k, path):
        return make("Conv2DTranspose", path, k, 3, strides=2, padding="same")(x)

    def one(x, k, path):
        return make("Conv2D", f"{path}/1/conv", k, 1, activation="relu")(x)

    image = keras.Input((HEIGHT, WIDTH, 1))
    e1 = block(image, 32, "e1")
    e2 = block(L.MaxPooling2D()(e1), 64, "e2")
    e3 = block(L.MaxPooling2D()(e2), 128, "e3")
    u3 = up(block(L.MaxPooling2D()(e3), 256, "b"), 128, "u3")
    d3 = block(L.Add()([one(u3, 128, "i3"), gate(e3, u3, 128, "g3")]), 128, "d3")
    u2 = up(d3, 64, "u2")
    d2 = block(L.Add()([u2, gate(e2, u2, 64, "g2")]), 64, "d2")
    u1 = L.UpSampling2D()(d2)
    d1 = block(L.Add()([one(u1, 32, "i1"), gate(e1, u1, 32, "g1")]), 32, "d1")
    return keras.Model(image, make("Conv2D", "logits", 5, 1)(d1))


def check_keras(name, folder):
    import h5py

    def tensors(file):
        import io
        import zipfile
        data = zipfile.ZipFile(file).read("model.weights.h5") if file.suffix == ".keras" else file.read_bytes()
        found = {}
        with h5py.File(io.BytesIO(data)) as f:
            f.visititems(lambda key, d: found.update({key: d[()].tobytes()}) if isinstance(d, h5py.Dataset) else None)
        return found

    for named in (True, False):
        model = {"unet": keras_unet, "se_unet": keras_se_unet}[name](named)
        for v in model.weights:
            if v.name != "seed_generator_state":
                positive = v.name in ("gamma", "moving_variance")
                v.assign(random_weights(tuple(v.shape), len(v.shape) > 1, positive))
        expected = np.asarray(model.predict(SCALED, verbose=0))
        for suffix in (".keras", ".weights.h5"):
            file = folder / f"model{suffix}"
            (model.save if suffix == ".keras" else model.save_weights)(file)
            what = f"keras {name} {suffix} by {'name' if named else 'order'}"
            check(what, name, "from_keras.py", file, expected, folder, lambda a, b: tensors(a) == tensors(b))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("torch", "keras"):
        sys.exit(__doc__)
    if sys.argv[1] == "torch":
        import torch_models
        known, one = list(torch_models.MODELS), check_torch
    else:
        known, one = ["unet", "se_unet"], check_keras
    for name in sys.argv[2:] or known:
        with tempfile.TemporaryDirectory() as folder:
            one(name, pathlib.Path(folder))
