#!/usr/bin/env bash
# One ONNX file that shrinks an image: smoothed in ONNX Runtime, aliased in OpenVINO.
#
# Since opset 18 ONNX's Resize has the attribute antialias: where it shrinks, the filter widens. ONNX Runtime 1.32.0 does so,
# in mode linear as ONNX's own reference (1.23.2). OpenVINO 2026.4.1 takes the file without a word and gives to the last bit
# what it gives for antialias 0, linear or cubic: of noise shrunk four times, about three times the standard deviation.
# One would guess otherwise: another option of Resize that it lacks, half_pixel_symmetric, it refuses by name, and without
# antialias the two runtimes agree to rounding. A segmentation network that brings its image to size inside the graph sees
# there what it was not trained on: compare the runtimes on pictures with detail, or shrink before the graph.
# Seen: "linear: with and without antialias, ONNX Runtime 0.345 apart, OpenVINO 0.000; the two with it 0.345, without
# 6.0e-08; deviation 0.049, 0.141".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6
"$work/env/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

core = openvino.Core()
x = np.random.default_rng(0).random((1, 1, 64, 64), dtype=np.float32)


def shrunk(mode, antialias):
    node = helper.make_node("Resize", ["x", "", "", "size"], ["y"], mode=mode, antialias=antialias)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, s, s]) for n, s in (("x", 64), ("y", 16))]
    size = helper.make_tensor("size", TensorProto.INT64, [4], [1, 1, 16, 16])
    graph = helper.make_graph([node], "shrink", ends[:1], ends[1:], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    ort = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    vino = core.compile_model(core.read_model(data), "CPU", exact)([x])[0]
    if mode == "linear":
        assert np.abs(ReferenceEvaluator(model).run(None, {"x": x})[0] - ort).max() < 1e-5, "this has changed"
    return ort, np.array(vino)


def apart(a, b):
    return float(np.abs(a - b).max())


print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__, "openvino", openvino.__version__)
for mode in ("linear", "cubic"):
    (ort0, vino0), (ort1, vino1) = shrunk(mode, 0), shrunk(mode, 1)
    print(f"{mode}: with and without antialias, ONNX Runtime {apart(ort0, ort1):.3f} apart, OpenVINO {apart(vino0, vino1):.3f}; "
          f"the two with it {apart(ort1, vino1):.3f}, without {apart(ort0, vino0):.1e}; deviation {ort1.std():.3f}, {vino1.std():.3f}")
    assert apart(ort0, vino0) < 1e-5 and apart(vino0, vino1) == 0 and apart(ort1, vino1) > 0.1, "this has changed"
PY
