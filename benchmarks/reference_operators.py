"""How long the reference evaluator takes on one operator in float64, beside ONNX Runtime in float32 on one thread.

Each operator is one graph at a size that networks have. Both are timed in turns and the fastest of several runs counts, in
seconds of processor time. Run it with one BLAS thread:

    OMP_NUM_THREADS=1 python benchmarks/reference_operators.py --json benchmarks/results/DATE-cpu-reference-operators.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends.reference.evaluator import Evaluator
from relu_deploy.benchmark.environment import describe

#: the evaluator may take this many times as long as ONNX Runtime
LIMIT = 30
RANDOM = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    """One operator with an input and constants, None for one left out."""

    name: str
    operator: str
    x: Any
    constants: list[Any] = field(default_factory=list)
    opset: int = 20
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


def draw(*shape: int) -> Any:
    """Return standard normal numbers in float32."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def levels(*shape: int) -> Any:
    """Return random 8-bit integers of a range that 16-bit sums hold."""
    return RANDOM.integers(-60, 60, shape).astype(np.int8)


def layers() -> Iterator[Case]:
    """Yield layers with weights, activations and normalization."""
    conv = draw(1, 64, 80, 80)
    yield Case("Conv 3x3", "Conv", conv, [draw(64, 64, 3, 3)], attributes={"pads": [1] * 4})
    yield Case("Conv depthwise 3x3", "Conv", conv, [draw(64, 1, 3, 3)], attributes={"pads": [1] * 4, "group": 64})
    yield Case("ConvTranspose 2x2", "ConvTranspose", conv, [draw(64, 64, 2, 2)], attributes={"strides": [2, 2]})
    grouped = {"strides": [2, 2], "group": 64, "pads": [1] * 4}
    yield Case("ConvTranspose depthwise 4x4", "ConvTranspose", conv, [draw(64, 1, 4, 4)], attributes=grouped)
    yield Case("MatMul", "MatMul", draw(512, 768), [draw(768, 3072)])
    yield Case("Erf", "Erf", draw(1, 512, 4096))
    yield Case("Gelu", "Gelu", draw(1, 512, 3072))
    yield Case("Tanh", "Tanh", draw(1, 512, 3072))
    yield Case("Sigmoid", "Sigmoid", draw(1, 512, 3072))
    yield Case("Softmax", "Softmax", draw(12, 512, 512))
    yield Case("LogSoftmax", "LogSoftmax", draw(64, 30522))
    yield Case("LayerNormalization", "LayerNormalization", draw(1, 512, 768), [draw(768), draw(768)])
    yield Case("InstanceNormalization", "InstanceNormalization", draw(1, 64, 160, 160), [draw(64), draw(64)])
    yield Case("GroupNormalization", "GroupNormalization", conv, [draw(64), draw(64)], 21, attributes={"num_groups": 8})
    statistics = [draw(64), draw(64), draw(64), np.abs(draw(64))]
    yield Case("BatchNormalization", "BatchNormalization", conv, statistics)
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = [draw(1, gates * 128, 64), draw(1, gates * 128, 128)]
        yield Case(kind, kind, draw(200, 1, 64), weights, attributes={"hidden_size": 128})
    yield Case("LRN", "LRN", conv, attributes={"size": 5})


def others() -> Iterator[Case]:
    """Yield reductions, pools, resizing, sampling, selection and quantization."""
    conv, roi = draw(1, 64, 80, 80), np.zeros(0, np.float32)
    twice = np.array([1, 1, 2, 2], np.float32)
    yield Case("ReduceMean", "ReduceMean", draw(64, 512, 128), [np.array([1])])
    yield Case("CumSum", "CumSum", draw(64, 4096), [np.array(1)])
    yield Case("TopK", "TopK", draw(1, 100_000), [np.array([1000])], outputs=2)
    yield Case("MaxPool 3x3", "MaxPool", draw(1, 64, 160, 160), attributes={"kernel_shape": [3, 3], "strides": [2, 2]})
    yield Case("AveragePool 3x3", "AveragePool", draw(1, 64, 160, 160), attributes={"kernel_shape": [3, 3], "pads": [1] * 4})
    yield Case("Resize linear", "Resize", conv, [roi, twice], attributes={"mode": "linear"})
    yield Case("Resize nearest", "Resize", conv, [roi, twice])
    yield Case("Resize cubic", "Resize", conv[:, :16], [roi, twice], attributes={"mode": "cubic"})
    places = RANDOM.uniform(-1, 1, (1, 80, 80, 2)).astype(np.float32)
    yield Case("GridSample linear", "GridSample", conv, [places], attributes={"mode": "linear"})
    yield Case("GridSample cubic", "GridSample", conv, [places], attributes={"mode": "cubic"})
    boxes = np.sort(RANDOM.uniform(0, 1, (1, 2000, 4)).astype(np.float32), -1)
    scores, limit = RANDOM.uniform(0, 1, (1, 8, 2000)).astype(np.float32), np.array([0.5], np.float32)
    yield Case("NonMaxSuppression", "NonMaxSuppression", boxes, [scores, np.array([200]), limit])
    rois = np.abs(draw(512, 4)) + np.array([0, 0, 12, 12], np.float32)
    square = {"output_height": 7, "output_width": 7, "sampling_ratio": 2}
    yield Case("RoiAlign", "RoiAlign", conv, [rois.astype(np.float32), np.zeros(512, np.int64)], attributes=square)
    yield Case("Transpose", "Transpose", draw(16, 512, 512), attributes={"perm": [0, 2, 1]})
    yield Case("DepthToSpace", "DepthToSpace", draw(1, 256, 80, 80), attributes={"blocksize": 2})
    yield Case("Gather", "Gather", draw(2000, 256), [RANDOM.integers(0, 2000, (8, 512))])
    yield Case("ScatterND", "ScatterND", draw(10000, 64), [RANDOM.permutation(10000)[:5000, None], draw(5000, 64)])
    yield Case("Einsum", "Einsum", draw(8, 256, 64), [draw(8, 256, 64)], attributes={"equation": "bik,bjk->bij"})
    scale, zero = np.array(0.02, np.float32), np.array(3, np.int8)
    yield Case("QuantizeLinear", "QuantizeLinear", conv, [scale, zero])
    yield Case("DequantizeLinear", "DequantizeLinear", levels(1, 64, 80, 80), [scale, zero])
    weights = [scale, zero, levels(64, 64, 3, 3), scale, np.array(0, np.int8), np.array(1, np.float32), zero]
    yield Case("QLinearConv", "QLinearConv", levels(1, 64, 80, 80), weights, attributes={"pads": [1] * 4})
    weights = [scale, zero, levels(512, 512), scale, np.array(0, np.int8), np.array(1, np.float32), zero]
    yield Case("QLinearMatMul", "QLinearMatMul", levels(512, 512), weights)
    wave = [np.array(160), np.hanning(400).astype(np.float32)]
    yield Case("STFT", "STFT", draw(1, 160_000, 1), wave)


def model_of(case: Case) -> onnx.ModelProto:
    """Return the graph of one node."""
    constants = [(f"c{index}", value) for index, value in enumerate(case.constants)]
    names = ["x", *("" if value is None else name for name, value in constants)]
    outputs = [f"y{index}" for index in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, domain=case.domain, **case.attributes)
    x = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(case.x.dtype), case.x.shape)
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants if value is not None]
    opsets = [helper.make_opsetid("", case.opset)] + ([helper.make_opsetid(case.domain, 1)] if case.domain else [])
    graph = helper.make_graph([node], "g", [x], results, stored)
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    for place, value in enumerate(model.graph.output):
        if not value.type.tensor_type.elem_type:
            kind = TensorProto.INT64 if place else helper.np_dtype_to_tensor_dtype(case.x.dtype)
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, None))
    return model


def fastest(run: Callable[[], Any], turns: int) -> float:
    """Return the smallest processor time of `turns` runs, in seconds."""
    times = []
    for _ in range(turns):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def measure(case: Case, folder: Path, turns: int) -> dict[str, Any]:
    """Return the times of one case; short ones are repeated within a turn, because the clock ticks in microseconds."""
    model = model_of(case)
    file = folder / "model.onnx"
    onnx.save(model, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    evaluator = Evaluator(ir.from_proto(model), wide=True)
    feeds = {"x": case.x}
    times: dict[str, float] = {}
    for name, run in (("onnxruntime", lambda: session.run(None, feeds)), ("reference", lambda: evaluator.run(feeds))):
        run()
        repeats = max(1, int(0.005 / max(fastest(run, 2), 1e-6)))

        def several(run: Callable[[], Any] = run, repeats: int = repeats) -> None:
            for _ in range(repeats):
                run()

        times[name] = fastest(several, turns) / repeats
    return {"case": case.name, "seconds": times, "ratio": times["reference"] / times["onnxruntime"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--turns", type=int, default=5, help="runs of each, of which the fastest counts (default: 5)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in (*layers(), *others()):
            rows.append(measure(case, Path(folder), options.turns))
            mine, theirs = (rows[-1]["seconds"][name] * 1e3 for name in ("reference", "onnxruntime"))
            print(
                f"{case.name:30s} reference {mine:9.2f} ms   onnxruntime {theirs:8.3f} ms   {rows[-1]['ratio']:6.1f} times",
                flush=True,
            )
    beyond = [row["case"] for row in rows if row["ratio"] > LIMIT]
    print(f"{len(rows)} operators, {len(beyond)} beyond {LIMIT} times: {', '.join(beyond) or 'none'}")
    if options.json:
        result = {"environment": describe(threads=1), "limit": LIMIT, "turns": options.turns, "operators": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
