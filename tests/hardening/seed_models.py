"""Small valid ONNX models that the mutations start from: one for each construct that a reader of graphs has to support."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

__all__ = ["SEED_MODELS", "constant", "model_of", "value"]


def value(name: str, shape: Sequence[int | str] | None = ("N", 4), kind: int = T.FLOAT) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, kind, None if shape is None else list(shape))


def constant(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def model_of(
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    constants: Iterable[onnx.TensorProto] = (),
    functions: Iterable[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = h.make_graph(list(nodes), "g", list(inputs), list(outputs), list(constants))
    opsets = [h.make_opsetid("", 20), h.make_opsetid("local", 1)]
    return h.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def _weights(name: str, *shape: int, dtype: Any = np.float32) -> onnx.TensorProto:
    return constant(name, np.random.default_rng(len(name) + sum(shape)).standard_normal(shape).astype(dtype))


def mlp() -> onnx.ModelProto:
    nodes = [
        h.make_node("Gemm", ["x", "w", "b"], ["m"], "gemm"),
        h.make_node("Relu", ["m"], ["r"], "relu"),
        h.make_node("Clip", ["r", "low", "high"], ["c"], "relu6"),
        h.make_node("MatMul", ["c", "w"], ["y"], "last"),
    ]
    constants = [_weights("w", 4, 4), _weights("b", 4), constant("low", np.float32(0)), constant("high", np.float32(6))]
    return model_of(nodes, [value("x")], [value("y")], constants)


def convolutions() -> onnx.ModelProto:
    nodes = [
        h.make_node("Conv", ["x", "w0", "b0"], ["c0"], "stem", pads=[1] * 4, strides=[2, 2]),
        h.make_node("BatchNormalization", ["c0", "b0", "b0", "b0", "one"], ["n"], "norm"),
        h.make_node("Relu", ["n"], ["r0"], "relu0"),
        h.make_node("Conv", ["r0", "w1"], ["c1"], "inner", pads=[1] * 4, group=2),
        h.make_node("Add", ["c1", "r0"], ["s"], "add"),
        h.make_node("Relu", ["s"], ["r1"], "relu1"),
        h.make_node("MaxPool", ["r1"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        h.make_node("GlobalAveragePool", ["p"], ["q"], "mean"),
        h.make_node("Flatten", ["q"], ["f"], "flatten"),
        h.make_node("Gemm", ["f", "w2"], ["y"], "head", transB=1),
    ]
    constants = [_weights("w0", 4, 3, 3, 3), _weights("b0", 4), constant("one", np.ones(4, np.float32))]
    constants += [_weights("w1", 4, 2, 3, 3), _weights("w2", 10, 4)]
    return model_of(nodes, [value("x", ("N", 3, 8, 8))], [value("y", ("N", 10))], constants)


def branches() -> onnx.ModelProto:
    then = h.make_graph([h.make_node("Relu", ["x"], ["t"], "inside")], "then", [], [value("t")])
    otherwise = h.make_graph([h.make_node("Neg", ["x"], ["e"])], "else", [], [value("e")])
    nodes = [
        h.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        h.make_node("Greater", ["s", "zero"], ["positive"]),
        h.make_node("If", ["positive"], ["y"], "if", then_branch=then, else_branch=otherwise),
    ]
    return model_of(nodes, [value("x")], [value("y")], [constant("zero", np.float32(0))])


def loop(times: int = 3) -> onnx.ModelProto:
    body = h.make_graph(
        [h.make_node("Relu", ["a"], ["next"]), h.make_node("Identity", ["go"], ["still"])],
        "body",
        [value("i", (), T.INT64), value("go", (), T.BOOL), value("a")],
        [value("still", (), T.BOOL), value("next")],
    )
    constants = [constant("n", np.int64(times)), constant("yes", np.bool_(True))]
    return model_of([h.make_node("Loop", ["n", "yes", "x"], ["y"], "loop", body=body)], [value("x")], [value("y")], constants)


def scan() -> onnx.ModelProto:
    body = h.make_graph(
        [h.make_node("Add", ["s", "e"], ["t"]), h.make_node("Relu", ["t"], ["o"])],
        "body",
        [value("s", (4,)), value("e", (4,))],
        [value("t", (4,)), value("o", (4,))],
    )
    node = h.make_node("Scan", ["zeros", "x"], ["last", "y"], "scan", body=body, num_scan_inputs=1)
    return model_of([node], [value("x", (3, 4))], [value("y", (3, 4))], [constant("zeros", np.zeros(4, np.float32))])


def functions() -> onnx.ModelProto:
    opset = [h.make_opsetid("", 20)]
    inner = h.make_function("local", "Inner", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"])], opset)
    outer_opset = [*opset, h.make_opsetid("local", 1)]
    steps = [h.make_node("Inner", ["a"], ["c"], domain="local"), h.make_node("Add", ["c", "a"], ["b"])]
    outer = h.make_function("local", "Outer", ["a"], ["b"], steps, outer_opset)
    nodes = [h.make_node("Outer", ["x"], ["m"], "call", domain="local"), h.make_node("Relu", ["m"], ["y"], "relu")]
    return model_of(nodes, [value("x")], [value("y")], functions=[inner, outer])


def strings() -> onnx.ModelProto:
    node = h.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER")
    return model_of([node], [value("x", ("N",), T.STRING)], [value("y", ("M",), T.STRING)])


def quantized() -> onnx.ModelProto:
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        h.make_node("DequantizeLinear", ["wq", "s", "zw"], ["w"]),
        h.make_node("MatMul", ["d", "w"], ["m"]),
        h.make_node("Relu", ["m"], ["y"], "relu"),
    ]
    constants = [constant("s", np.float32(0.1)), constant("z", np.uint8(0)), constant("zw", np.int8(0))]
    constants.append(constant("wq", np.arange(16, dtype=np.int8).reshape(4, 4)))
    return model_of(nodes, [value("x")], [value("y")], constants)


def sequences() -> onnx.ModelProto:
    nodes = [
        h.make_node("SequenceConstruct", ["x", "x"], ["s"]),
        h.make_node("ConcatFromSequence", ["s"], ["c"], axis=1),
        h.make_node("Relu", ["c"], ["y"]),
    ]
    return model_of(nodes, [value("x")], [value("y", ("N", 8))])


def optionals() -> onnx.ModelProto:
    nodes = [
        h.make_node("Relu", ["x"], ["r"]),
        h.make_node("Optional", ["r"], ["o"]),
        h.make_node("OptionalGetElement", ["o"], ["y"]),
    ]
    return model_of(nodes, [value("x")], [value("y")])


def sparse() -> onnx.ModelProto:
    model = model_of([h.make_node("MatMul", ["x", "sp"], ["m"]), h.make_node("Relu", ["m"], ["y"])], [value("x")], [value("y")])
    values, places = constant("sp", np.array([1, 2], np.float32)), constant("places", np.array([0, 5], np.int64))
    model.graph.sparse_initializer.append(h.make_sparse_tensor(values, places, [4, 4]))
    return model


def listed_weights() -> onnx.ModelProto:
    """Return a model as IR version 3 has it: its weights are inputs, too."""
    model = mlp()
    model.ir_version = 3
    model.graph.input.extend(value(each.name, each.dims, each.data_type) for each in model.graph.initializer)
    return model


def computed_shapes() -> onnx.ModelProto:
    nodes = [
        h.make_node("Shape", ["x"], ["s"]),
        h.make_node("Gather", ["s", "zero"], ["n"]),
        h.make_node("Concat", ["n", "four"], ["t"], axis=0),
        h.make_node("Reshape", ["x", "t"], ["r"]),
        h.make_node("Transpose", ["r"], ["q"], perm=[1, 0]),
        h.make_node("Slice", ["q", "zero", "four", "one", "one"], ["v"]),
        h.make_node("ConstantOfShape", ["four"], ["fill"], value=constant("", np.array([1.5], np.float32))),
        h.make_node("Tile", ["fill", "one"], ["tiled"]),
        h.make_node("Transpose", ["v"], ["u"], perm=[1, 0]),
        h.make_node("Add", ["u", "tiled"], ["a"]),
        h.make_node("Relu", ["a"], ["y"], "relu"),
    ]
    constants = [constant(name, np.array([number], np.int64)) for name, number in (("zero", 0), ("one", 1), ("four", 4))]
    return model_of(nodes, [value("x")], [value("y")], constants)


def dynamic_sizes() -> onnx.ModelProto:
    nodes = [
        h.make_node("Relu", ["x"], ["r"], "relu"),
        h.make_node("NonZero", ["r"], ["places"]),
        h.make_node("Shape", ["places"], ["size"]),
        h.make_node("TopK", ["r", "two"], ["best", "where"], axis=1),
        h.make_node("Resize", ["best", "", "scales"], ["big"], mode="nearest"),
        h.make_node("Pad", ["big", "pads"], ["y"]),
        h.make_node("Identity", ["size"], ["count"]),
    ]
    constants = [constant("two", np.array([2], np.int64)), constant("scales", np.array([1, 2], np.float32))]
    constants.append(constant("pads", np.array([0, 1, 0, 1], np.int64)))
    return model_of(nodes, [value("x")], [value("y", ("N", 6)), value("count", (2,), T.INT64)], constants)


def halves() -> onnx.ModelProto:
    nodes = [
        h.make_node("Cast", ["x"], ["c"], to=T.FLOAT16),
        h.make_node("MatMul", ["c", "w"], ["m"]),
        h.make_node("Relu", ["m"], ["r"], "relu"),
        h.make_node("Cast", ["r"], ["y"], to=T.FLOAT),
    ]
    return model_of(nodes, [value("x")], [value("y")], [_weights("w", 4, 4, dtype=np.float16)])


def recurrent() -> onnx.ModelProto:
    nodes = [
        h.make_node("LSTM", ["x", "w", "r"], ["h", "last"], "lstm", hidden_size=2),
        h.make_node("Squeeze", ["h", "axis"], ["s"]),
        h.make_node("Einsum", ["s", "m"], ["e"], equation="tnh,hk->tnk"),
        h.make_node("Relu", ["e"], ["y"], "relu"),
    ]
    constants = [_weights("w", 1, 8, 3), _weights("r", 1, 8, 2), _weights("m", 2, 5), constant("axis", np.array([1], np.int64))]
    return model_of(nodes, [value("x", ("T", "N", 3))], [value("y", ("T", "N", 5))], constants)


def activations() -> onnx.ModelProto:
    names = ["LeakyRelu", "Elu", "Selu", "HardSwish", "Sigmoid", "ThresholdedRelu", "Softmax", "Erf", "Gelu", "Mish"]
    nodes = [h.make_node("PRelu", ["x", "slope"], ["t0"]), h.make_node("Celu", ["t0"], ["t1"], alpha=0.5)]
    nodes += [h.make_node(name, [f"t{at}"], [f"t{at + 1}"]) for at, name in enumerate(names, 1)]
    nodes += [h.make_node("Max", [f"t{len(names) + 1}", "zero"], ["y"], "relu")]
    constants = [constant("slope", np.full(4, 0.1, np.float32)), constant("zero", np.zeros(1, np.float32))]
    return model_of(nodes, [value("x")], [value("y")], constants)


def scalar() -> onnx.ModelProto:
    return model_of([h.make_node("Relu", ["x"], ["y"])], [value("x", ())], [value("y", ())])


def integers() -> onnx.ModelProto:
    nodes = [h.make_node("Gather", ["table", "x"], ["g"], axis=0), h.make_node("Relu", ["g"], ["y"], "relu")]
    return model_of(nodes, [value("x", ("N",), T.INT64)], [value("y", ("N", 3))], [_weights("table", 7, 3)])


SEED_MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    each.__name__: each
    for each in (
        mlp,
        convolutions,
        branches,
        loop,
        scan,
        functions,
        strings,
        quantized,
        sequences,
        optionals,
        sparse,
        listed_weights,
        computed_shapes,
        dynamic_sizes,
        halves,
        recurrent,
        activations,
        scalar,
        integers,
    )
}
