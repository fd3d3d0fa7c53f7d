"""Faults that people ship, put into a graph one at a time, and rewrites that change nothing but the rounding.

A fault is a function `(graph, site, facts) -> names of the nodes at fault`, which changes an onnx.GraphProto in place.
`sites` says where it can be put. `facts` holds what the clean model's tensors are like on the benchmark's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper


@dataclass(frozen=True)
class Fault:
    name: str
    sites: Callable[[GraphProto], list[int]]
    apply: Callable[[GraphProto, int, Mapping[str, np.ndarray]], list[str]]


def weights(graph: GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def change(graph: GraphProto, name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = weights(graph)[name]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(function(numpy_helper.to_array(tensor).copy())), name))


def is_relu(node: NodeProto, graph: GraphProto) -> bool:
    if node.op_type == "Relu":
        return True
    known = weights(graph)
    return node.op_type == "Clip" and node.input[1] in known and float(numpy_helper.to_array(known[node.input[1]]).item()) == 0


def relus(graph: GraphProto) -> list[int]:
    # The last few clamp boxes in a detector's decoder: a Clip of another kind, which has no ReLU's faults.
    return [place for place, node in enumerate(graph.node) if is_relu(node, graph)]


def of_type(*types: str) -> Callable[[GraphProto], list[int]]:
    def sites(graph: GraphProto) -> list[int]:
        known = weights(graph)
        return [
            place
            for place, node in enumerate(graph.node)
            if node.op_type in types and (node.op_type == "Concat" or len(node.input) < 2 or node.input[1] in known)
        ]

    return sites


def retype(graph: GraphProto, place: int, operator: str, inputs: int = 1, **attributes: float) -> list[str]:
    node = graph.node[place]
    node.op_type = operator
    del node.input[inputs:]
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return [node.name]


def leaky(graph, place, facts):
    return retype(graph, place, "LeakyRelu", alpha=0.01)


def identity(graph, place, facts):
    return retype(graph, place, "Identity")


def absolute(graph, place, facts):
    return retype(graph, place, "Abs")


def clipped(graph, place, facts):
    node = graph.node[place]
    top = np.float32(0.5 * facts[node.output[0]].max())
    name = f"{node.name}/bounds"
    graph.initializer.extend([numpy_helper.from_array(np.float32(0), name + "0"), numpy_helper.from_array(top, name + "1")])
    retype(graph, place, "Clip")
    node.input.extend([name + "0", name + "1"])
    return [node.name]


def _weight(function):
    def apply(graph, place, facts):
        node = graph.node[place]
        change(graph, node.input[1], function)
        return [node.name]

    return apply


def _flip_one(w):
    flat = w.reshape(-1)
    # The median weight: neither the most harmful one nor one that is zero.
    at = np.argsort(np.abs(flat))[flat.size // 2]
    flat[at] *= -1
    return w


def _scale_channel(w):
    w[w.shape[0] // 2] *= 1.1
    return w


def _swap_channels(w):
    first, second = w.shape[0] // 3, w.shape[0] // 2
    w[[first, second]] = w[[second, first]]
    return w


def _half(w):
    return w.astype(np.float16).astype(np.float32)


def no_bias(graph, place, facts):
    node = graph.node[place]
    change(graph, node.input[2], np.zeros_like)
    return [node.name]


def with_bias(graph: GraphProto) -> list[int]:
    known = weights(graph)
    places = [place for place, node in enumerate(graph.node) if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
    biases = {place: known.get(graph.node[place].input[2]) for place in places}
    return [place for place, bias in biases.items() if bias is not None and np.any(numpy_helper.to_array(bias))]


def padded(graph: GraphProto) -> list[int]:
    return [
        place
        for place, node in enumerate(graph.node)
        if node.op_type == "Conv" and any(one.name == "pads" and any(one.ints) for one in node.attribute)
    ]


def wrong_padding(graph, place, facts):
    node = graph.node[place]
    for attribute in node.attribute:
        if attribute.name == "pads":
            half = len(attribute.ints) // 2
            # All of it on one side, as SAME_LOWER taken for SAME_UPPER does.
            sums = [attribute.ints[i] + attribute.ints[i + half] for i in range(half)]
            attribute.ints[:] = [*sums, *[0] * half]
    return [node.name]


def epsilon(graph, place, facts):
    node = graph.node[place]
    kept = [one for one in node.attribute if one.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("epsilon", 1e-3)])
    return [node.name]


def like_shapes(graph: GraphProto) -> list[int]:
    return of_type("Concat")(graph)


def wrong_axis(graph, place, facts):
    """Concatenate along the rows and call it channels: what a transposed layout does."""
    node = graph.node[place]
    shape = facts[node.output[0]].shape
    parts = [facts[name].shape for name in node.input]
    if len(shape) != 4 or len(set(parts)) != 1:
        return []
    out = node.output[0]
    node.output[0] = out + "/wrong"
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 2))
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), out + "/shape"))
    graph.node.insert(place + 1, helper.make_node("Reshape", [node.output[0], out + "/shape"], [out], name=out + "/reshape"))
    return [node.name, out + "/reshape"]


def saturated(graph, place, facts):
    """Quantize a tensor to int8 with a scale of a quarter of its range, as a calibration on the wrong data does."""
    node = graph.node[place]
    out = node.output[0]
    scale = np.float32(np.abs(facts[out]).max() / 4 / 127)
    graph.initializer.extend([numpy_helper.from_array(scale, out + "/scale"), numpy_helper.from_array(np.int8(0), out + "/zero")])
    node.output[0] = out + "/float"
    parameters = [out + "/scale", out + "/zero"]
    graph.node.insert(
        place + 1, helper.make_node("QuantizeLinear", [out + "/float", *parameters], [out + "/int8"], name=out + "/quantize")
    )
    graph.node.insert(
        place + 2, helper.make_node("DequantizeLinear", [out + "/int8", *parameters], [out], name=out + "/dequantize")
    )
    return [out + "/quantize", out + "/dequantize"]


FAULTS = (
    Fault("Relu → LeakyRelu 0.01", relus, leaky),
    Fault("Relu → Identity", relus, identity),
    Fault("Relu → Abs", relus, absolute),
    Fault("Relu → Clip at half its range", relus, clipped),
    Fault("one weight's sign", of_type("Conv", "Gemm"), _weight(_flip_one)),
    Fault("one channel times 1.1", of_type("Conv"), _weight(_scale_channel)),
    Fault("two channels swapped", of_type("Conv"), _weight(_swap_channels)),
    Fault("weights rounded to float16", of_type("Conv", "Gemm"), _weight(_half)),
    Fault("bias missing", with_bias, no_bias),
    Fault("padding on one side", padded, wrong_padding),
    Fault("BatchNorm epsilon 1e-3", of_type("BatchNormalization"), epsilon),
    Fault("Concat along another axis", like_shapes, wrong_axis),
    Fault("int8 saturated", relus, saturated),
)


# ---------------------------------------------------------------- rewrites that are no faults


def fold_batch_norm(model: ModelProto) -> ModelProto:
    """Fold each BatchNormalization into the Conv before it, in float32, as deployment tools do."""
    folded = ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    known = weights(graph)
    makers = {name: node for node in graph.node for name in node.output}
    readers = [name for node in graph.node for name in node.input]
    gone = []
    for node in graph.node:
        conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or readers.count(node.input[0]) > 1:
            continue
        scale, shift, mean, var = (numpy_helper.to_array(known[name]) for name in node.input[1:5])
        eps = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(var + np.float32(eps))
        w = numpy_helper.to_array(known[conv.input[1]])
        bias = numpy_helper.to_array(known[conv.input[2]]) if len(conv.input) > 2 else np.zeros_like(mean)
        prefix = node.name + "/folded"
        graph.initializer.extend(
            [
                numpy_helper.from_array(w * factor.reshape(-1, *(1,) * (w.ndim - 1)), prefix + "_w"),
                numpy_helper.from_array((bias - mean) * factor + shift, prefix + "_b"),
            ]
        )
        conv.input[:] = [conv.input[0], prefix + "_w", prefix + "_b"]
        conv.output[0] = node.output[0]
        gone.append(node)
    for node in gone:
        graph.node.remove(node)
    # What nobody reads any more would make every runtime warn.
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return folded


def commute_adds(model: ModelProto) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        if node.op_type == "Add":
            node.input[:] = [node.input[1], node.input[0]]
    return changed


def convert_opset(model: ModelProto) -> ModelProto:
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return onnx.version_converter.convert_version(model, version + 1)


def optimized(level: str) -> Callable[[ModelProto], ModelProto]:
    """Return a function that gives the graph that ONNX Runtime makes of a model at `level`."""

    def rewrite(model: ModelProto) -> ModelProto:
        import tempfile
        from pathlib import Path

        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            settings = onnxruntime.SessionOptions()
            settings.log_severity_level = 3
            settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
            settings.optimized_model_filepath = str(Path(folder) / "m.onnx")
            onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
            return onnx.load(Path(folder) / "m.onnx")

    return rewrite


HARMLESS = {
    "BatchNorm folded": fold_batch_norm,
    "Adds commuted": commute_adds,
    "opset converted": convert_opset,
    "ONNX Runtime basic": optimized("basic"),
    "ONNX Runtime extended": optimized("extended"),
    "ONNX Runtime all": optimized("all"),
}
