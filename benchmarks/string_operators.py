"""How a graph can get at the letters of a text: three ways, whether they are right, and what they cost.

    regex        a string in; RegexFullMatch (ONNX 20): each of its nodes asks for one bit of one character's code point
    tokenizer    a string in; Tokenizer, an operator of ONNX Runtime's own, and LabelEncoder (ai.onnx.ml 2)
    bytes        UTF-8 bytes in; integer arithmetic (relu_deploy.zoo.nn.utf8)

The first two know the code points of an alphabet only, here those below U+0250: half of all code points make a pattern of
half a million ranges. No standard operator splits a string into characters or turns it into bytes. Whether TensorRT-RTX's
parser takes each graph is said where it is installed.

    python benchmarks/string_operators.py --json benchmarks/results/DATE-cpu-string-operators.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.benchmark.environment import describe
from relu_deploy.data.texts import to_bytes
from relu_deploy.exporting.exporter import export_source
from relu_deploy.tensors import TensorSpec
from relu_deploy.zoo.nn.utf8 import characters_of

LENGTH, ALPHABET, BITS = 64, 0x250, 10
TEXTS = ["å", "Grüße aus Köln", "żółć gęślą jaźń", "déjà vu, tout à fait", "¿cuánto cuesta el niño?", "a]b-c^d\\e\nf"]


def regex_graph() -> onnx.ModelProto:
    """Return a graph from strings (N) to code points int64 (N, LENGTH), 0 behind the text."""
    nodes = []
    for place in range(LENGTH):
        for bit in range(BITS):
            members = "".join(rf"\x{{{code:x}}}" for code in range(1, ALPHABET) if code >> bit & 1)
            name = f"{place}_{bit}"
            nodes += [
                helper.make_node("RegexFullMatch", ["x"], [f"is{name}"], pattern=rf"(?s).{{{place}}}[{members}].*"),
                helper.make_node("Cast", [f"is{name}"], [f"one{name}"], to=TensorProto.INT64),
                helper.make_node("Unsqueeze", [f"one{name}", "axis"], [f"column{name}"]),
            ]
    columns = [f"column{place}_{bit}" for place in range(LENGTH) for bit in range(BITS)]
    nodes += [
        helper.make_node("Concat", columns, ["bits"], axis=1),
        helper.make_node("Reshape", ["bits", "shape"], ["table"]),
        helper.make_node("Mul", ["table", "powers"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "last"], ["y"], keepdims=0),
    ]
    constants = {"axis": [1], "shape": [-1, LENGTH, BITS], "powers": 2 ** np.arange(BITS), "last": [2]}
    return _model(nodes, constants, TensorProto.STRING)


def tokenizer_graph() -> onnx.ModelProto:
    """Return a graph from strings (N) to code points int64 (N, longest), 0 behind the text."""
    nodes = [
        helper.make_node(
            "Tokenizer", ["x"], ["letters"], domain="com.microsoft", mark=0, mincharnum=1, pad_value="", tokenexp="(?s)."
        ),
        helper.make_node(
            "LabelEncoder",
            ["letters"],
            ["y"],
            domain="ai.onnx.ml",
            keys_strings=[chr(code) for code in range(1, ALPHABET)],
            values_int64s=list(range(1, ALPHABET)),
            default_int64=0,
        ),
    ]
    return _model(nodes, {}, TensorProto.STRING)


def _model(nodes: list[Any], constants: dict[str, Any], dtype: int) -> onnx.ModelProto:
    made = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    x, y = helper.make_tensor_value_info("x", dtype, ["n"]), helper.make_tensor_value_info("y", TensorProto.INT64, ["n", "l"])
    opsets = [helper.make_opsetid(*each) for each in (("", 20), ("ai.onnx.ml", 2), ("com.microsoft", 1))]
    return helper.make_model(helper.make_graph(nodes, "letters", [x], [y], made), opset_imports=opsets, ir_version=10)


class Decode(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return characters_of(x)


def parser_says(model: onnx.ModelProto) -> str | None:
    """Return "" when TensorRT-RTX's parser takes `model`, else its first complaint; None where it is not installed."""
    try:
        import tensorrt_rtx as trt
    except ImportError:
        return None
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(log).create_network(0)
    parser = trt.OnnxParser(network, log)
    return "" if parser.parse(model.SerializeToString()) else str(parser.get_error(0).desc()).split("\n")[0][:200]


def measured(model: onnx.ModelProto, feed: Any, seconds: float) -> dict[str, Any]:
    """Return whether `model` is right on `TEXTS`, how long it takes to load, and the median ms of a run of one text and of all."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    reported: dict[str, Any] = {"nodes": len(model.graph.node), "load_s": round(time.perf_counter() - started, 3)}
    expected = [list(map(ord, text)) for text in TEXTS]
    got = session.run(None, {"x": feed(TEXTS)})[0]
    reported["right"] = all(
        row[: len(codes)].tolist() == codes and not row[len(codes) :].any() for row, codes in zip(got, expected, strict=True)
    )
    for name, texts in (("ms_of_1", TEXTS[1:2]), (f"ms_of_{len(TEXTS)}", TEXTS)):
        fed, times, end = feed(texts), [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            before = time.perf_counter()
            session.run(None, {"x": fed})
            times.append((time.perf_counter() - before) * 1e3)
        reported[name] = round(float(np.median(times)), 4)
    reported["tensorrt_rtx_parser"] = parser_says(model)
    return reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each timing")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_source(Decode(), Path(folder) / "decode.rdb", inputs={"x": (1, LENGTH)}, pixels={"text": "utf-8"}).bundle
        decode = onnx.load(str(bundle.onnx))

    def strings(texts: list[str]) -> Any:
        return np.array(texts, object)

    def as_bytes(texts: list[str]) -> Any:
        return to_bytes(texts, TensorSpec("x", "uint8", ("n", LENGTH)))

    ways = {"regex": (regex_graph(), strings), "tokenizer": (tokenizer_graph(), strings), "bytes": (decode, as_bytes)}
    result = {"environment": describe(1), "length": LENGTH, "alphabet": ALPHABET}
    result |= {name: measured(model, feed, arguments.seconds) for name, (model, feed) in ways.items()}
    for name in ways:
        print(name, result[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
