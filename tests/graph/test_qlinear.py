"""Operators on quantized numbers, written as DequantizeLinear, an operator on floats and QuantizeLinear, give the same numbers."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends.reference.evaluator import Evaluator
from relu_deploy.graph.rewriting.qlinear import expand_qlinear, has_qlinear

RANDOM = np.random.default_rng(11)
CONTRIB = "com.microsoft"


def draw(*shape, kind=np.uint8):
    limits = np.iinfo(kind)
    return RANDOM.integers(limits.min, limits.max + 1, shape).astype(kind)


def scale(*shape):
    return RANDOM.uniform(0.01, 0.05, shape).astype(np.float32)


class Stored:
    """An array that is a weight although it has several dimensions."""

    ndim = 1

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


U, LOW, Z, S, OUT = np.uint8(120), np.int8(3), np.int8(0), np.float32(0.02), np.float32(0.02171)
X, W = draw(2, 3, 7, 8), draw(4, 3, 3, 3, kind=np.int8)
BIAS = RANDOM.integers(-9000, 9000, 4).astype(np.int32)
QUANTIZED = {
    "conv": ("QLinearConv", "", [X, S, U, W, S, Z, np.float32(0.3), U, BIAS], {"pads": [1, 1, 1, 1]}),
    "conv per channel": ("QLinearConv", "", [X, S, U, W, scale(4), np.zeros(4, np.int8), np.float32(0.3), U, BIAS], {"strides": [2, 1]}),
    "conv depthwise": ("QLinearConv", "", [X, S, U, draw(3, 1, 3, 3), S, U, np.float32(0.2), LOW], {"group": 3}),
    "conv channels last": (
        "QLinearConv",
        CONTRIB,
        [draw(2, 7, 8, 3), S, U, W, scale(4), np.zeros(4, np.int8), np.float32(0.3), U, BIAS],
        {"channels_last": 1},
    ),
    "matmul": ("QLinearMatMul", "", [draw(5, 6), S, U, draw(6, 4), S, U, np.float32(0.5), U], {}),
    "matmul of columns": (
        "QLinearMatMul",
        "",
        [draw(2, 5, 6), S, U, draw(6, 4), scale(4), draw(4), np.float32(0.5), U],
        {},
    ),
    "gemm": ("QGemm", CONTRIB, [draw(5, 6), S, U, draw(4, 6, kind=np.int8), scale(4), np.zeros(4, np.int8), BIAS, S, U], {"transB": 1, "alpha": 0.5}),
    "gemm to floats": ("QGemm", CONTRIB, [draw(5, 6), S, U, draw(6, 4, kind=np.int8), S, Z, BIAS], {}),
    "add": ("QLinearAdd", CONTRIB, [X, S, U, draw(2, 3, 7, 8), scale(), U, np.float32(0.05), U], {}),
    "add without a zero point": ("QLinearAdd", CONTRIB, [draw(9, kind=np.int8), S, LOW, draw(9, kind=np.int8), S, LOW, OUT], {}),
    "mul": ("QLinearMul", CONTRIB, [X, S, U, draw(3, 1, 1), S, U, np.float32(0.05), U], {}),
    "sigmoid": ("QLinearSigmoid", CONTRIB, [X, S, U, np.float32(1 / 256), np.uint8(0)], {}),
    "leaky relu": ("QLinearLeakyRelu", CONTRIB, [X, S, U, S, U], {"alpha": 0.2}),
    "softmax": ("QLinearSoftmax", CONTRIB, [draw(4, 9), S, U, np.float32(1 / 256), np.uint8(0)], {"axis": 1, "opset": 13}),
    "average pool": ("QLinearAveragePool", CONTRIB, [X, S, U, OUT, U], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}),
    "average pool channels last": ("QLinearAveragePool", CONTRIB, [X, S, U, OUT, U], {"kernel_shape": [2, 2], "channels_last": 1}),
    "global average pool": ("QLinearGlobalAveragePool", CONTRIB, [X, S, U, OUT, U], {}),
    "global average pool channels last": ("QLinearGlobalAveragePool", CONTRIB, [X, S, U, OUT, U], {"channels_last": 1}),
    "mean": ("QLinearReduceMean", CONTRIB, [X, S, U, OUT, U], {"axes": [2, 3], "keepdims": 0}),
    "concat": ("QLinearConcat", CONTRIB, [np.float32(0.0413), U, X, S, U, draw(2, 5, 7, 8), np.float32(0.03), np.uint8(9)], {"axis": 1}),
    "conv of integers": ("ConvInteger", "", [X, W, U, np.zeros(4, np.int8)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "matmul of integers": ("MatMulInteger", "", [draw(2, 5, 6), draw(6, 4, kind=np.int8), U, LOW], {}),
    "matmul of integers to floats": (
        "MatMulIntegerToFloat",
        CONTRIB,
        [draw(5, 6), draw(6, 4), S, scale(4), U, draw(4), scale(4)],
        {},
    ),
    "matmul with a scale of its own": (
        "DynamicQuantizeMatMul",
        CONTRIB,
        [RANDOM.standard_normal((5, 6)).astype(np.float32), draw(6, 4), scale(4), draw(4), scale(4)],
        {},
    ),
    "matmul of 4 bits": (
        "MatMulNBits",
        CONTRIB,
        [RANDOM.standard_normal((5, 64)).astype(np.float32), Stored(draw(6, 2, 16)), scale(12)],
        {"K": 64, "N": 6, "bits": 4, "block_size": 32},
    ),
    "matmul of 4 bits with zero points": (
        "MatMulNBits",
        CONTRIB,
        [RANDOM.standard_normal((5, 60)).astype(np.float32), Stored(draw(6, 2, 16)), scale(12), draw(6)],
        {"K": 60, "N": 6, "bits": 4, "block_size": 32},
    ),
    "matmul of 8 bits": (
        "MatMulNBits",
        CONTRIB,
        [RANDOM.standard_normal((5, 64)).astype(np.float32), Stored(draw(6, 2, 32)), scale(12), draw(12)],
        {"K": 64, "N": 6, "bits": 8, "block_size": 32},
    ),
    "where": ("QLinearWhere", CONTRIB, [RANDOM.random((3, 4)) > 0.5, draw(3, 4), S, U, draw(3, 4), np.float32(0.03), U, np.float32(0.03), U], {}),
}  # fmt: skip


def model_of(operator, domain, operands, attributes, opset=17):
    """Return a graph whose arrays of several dimensions are inputs, the other operands initializers."""
    names = [f"x{place}" for place in range(len(operands))]
    fed = {name: value for name, value in zip(names, operands, strict=True) if np.ndim(value) > 1}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in fed.items()
    ]
    stored = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, operands, strict=True) if name not in fed
    ]
    node = helper.make_node(operator, names, ["y"], "node", domain=domain, **attributes)
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info("y")], stored)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9)), fed


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("opset", [13, 18])
def test_the_form_in_floats_gives_the_same_numbers(name, opset):
    model, feeds = model_of(*QUANTIZED[name], opset=opset)
    assert has_qlinear(model)
    before = Evaluator(model, wide=True).run(feeds)["y"]
    expansion = expand_qlinear(model, {"y": "floats"})
    assert not has_qlinear(expansion.model)
    after = Evaluator(expansion.model, wide=True).run(feeds)["y"]
    if after.dtype.kind == "f":
        # Floats, or sums of integers that are exact in floats too.
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-5)
        return
    assert after.dtype == before.dtype
    assert len(np.unique(before)) > 3
    apart = np.abs(after.astype(np.int64) - before.astype(np.int64))
    # The rounding of a product decides what is halfway between two levels.
    assert apart.max() <= 1
    assert np.mean(apart) < 0.01
    computing = {str(node.name): node for node in expansion.model.graph}
    assert computing["node"].op_type not in ("QuantizeLinear", "DequantizeLinear")
    assert "floats" in {str(value.name) for node in expansion.model.graph for value in node.outputs}
    assert {expansion.origins.get(each, each) for each in computing} == {"node"}


def moved(operator, operands, attributes, outputs=1):
    """Return a graph that quantizes, moves the stored numbers and dequantizes."""
    names = [f"o{place}" for place in range(len(operands))]
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize")]
    results = [f"m{place}" for place in range(outputs)]
    nodes.append(helper.make_node(operator, ["q", *names], results, "move", **attributes))
    nodes += [helper.make_node("DequantizeLinear", [name, "s", "z"], [f"y{place}"]) for place, name in enumerate(results)]
    stored = {"s": np.float32(0.02), "z": np.uint8(100)} | dict(zip(names, operands, strict=True))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 6, 6])],
        [helper.make_empty_tensor_value_info(f"y{place}") for place in range(outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9))


MOVES = {
    "MaxPool": ([], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}, 1),
    "Reshape": ([np.array([2, -1])], {}, 1),
    "Transpose": ([], {"perm": [0, 2, 3, 1]}, 1),
    "Slice": ([np.array([1]), np.array([3]), np.array([2])], {}, 1),
    "Gather": ([np.array([2, 0])], {"axis": 1}, 1),
    "Pad": ([np.array([0, 0, 1, 1, 0, 0, 1, 1])], {}, 1),
    "Split": ([np.array([1, 3])], {"axis": 1}, 2),
}


@pytest.mark.parametrize("operator", MOVES)
def test_stored_numbers_that_are_moved_become_floats_that_are_moved(operator):
    operands, attributes, outputs = MOVES[operator]
    model = moved(operator, operands, attributes, outputs)
    feeds = {"x": RANDOM.standard_normal((2, 4, 6, 6)).astype(np.float32)}
    before = Evaluator(model, wide=True).run(feeds)
    expansion = expand_qlinear(model)
    after = Evaluator(expansion.model, wide=True).run(feeds)
    assert list(before) == list(after)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    mover = next(node for node in expansion.model.graph if node.op_type == operator)
    assert mover.inputs[0].producer().op_type == "DequantizeLinear"


def test_what_has_no_such_form_stays_as_it_is():
    """A scale for each matrix of a batch, and one that is computed: DequantizeLinear has no axis, and a bias no scale, for them."""
    scales = scale(2, 5, 1)
    model, feeds = model_of("QLinearMatMul", "", [draw(2, 5, 6), scales, draw(2, 5, 1), draw(6, 4), S, U, np.float32(0.5), U], {})
    expansion = expand_qlinear(model)
    assert [node.op_type for node in expansion.model.graph] == ["QLinearMatMul"]
    assert feeds
