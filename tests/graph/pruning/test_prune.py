"""Compacting removes what never acts, says what and why, and leaves every tensor that is left as it was."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.backends.base import Rounding
from relu_deploy.data.datasets import declared_range, load_dataset
from relu_deploy.errors import InputError
from relu_deploy.graph import count_cost, find_relus, load_model, save_model
from relu_deploy.graph.pruning.channel_groups import ELSEWHERE, LAST, NO_BIAS, OUTPUT, PADDING, RESIDUAL, SUBGRAPH
from relu_deploy.graph.pruning.prune import prune_model
from relu_deploy.verification.judging.verdict import compare, estimate_noise_floor

#: operators whose further operands are sizes and places
COUNTING = ("Expand", "ReduceMax", "Gather", "ReduceMean", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze")


class Network:
    """A graph that grows a node at a time from one input `x` in [-1, 1]. channels: of the last tensor added, by name."""

    def __init__(self, shape=(2, 3, 8, 8)):
        self.nodes, self.constants, self.shape = [], {}, shape

    def constant(self, array, name=None, dtype=np.float32):
        name = name or f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def add(self, operator, *inputs, **attributes):
        """Add a node; arrays among `inputs` become initializers. Return the name of its result."""
        name = f"t{len(self.nodes)}"
        counts = np.int64 if operator in COUNTING and np.asarray(inputs[-1]).dtype.kind == "i" else np.float32
        inputs = [one if isinstance(one, str) else self.constant(one, dtype=counts) for one in inputs]
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{operator}_{name}", **attributes))
        return name

    def conv(self, source, weights, bias=None, **attributes):
        return self.add("Conv", source, weights, *([] if bias is None else [bias]), **attributes)

    def model(self, *outputs, opset=18):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_empty_tensor_value_info(name) for name in outputs or [self.nodes[-1].output[0]]],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def ones(*shape):
    return np.ones(shape, np.float32)


def rows(*values, inputs=3, size=1):
    """Return weights of a Conv: one row for each value, filled with it."""
    return np.broadcast_to(np.reshape(values, (-1, 1, 1, 1)), (len(values), inputs, size, size)).astype(np.float32)


def compacted(model, low=-1.0, high=1.0, observed=None):
    """Return what compact makes of `model`, after everything that holds for any result was checked."""
    before = ir.to_proto(model).SerializeToString()
    result = prune_model(model, {"x": (low, high)}, observed)
    assert ir.to_proto(model).SerializeToString() == before, "the model that was given has changed"
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    for name in ("inputs", "outputs"):
        old, new = ([(v.name, v.dtype, v.shape) for v in getattr(m.graph, name)] for m in (model, result.model))
        assert old == new
    read = {value.name for node in result.model.graph.all_nodes() for value in node.inputs if value is not None}
    assert set(result.model.graph.initializers) <= read | {value.name for value in result.model.graph.outputs}
    assert json.loads(json.dumps(result.report.to_json())) == result.report.to_json()
    lost = sum(removed.channels for removed in result.report.removed)
    assert result.report.channels_before - result.report.channels_after == lost
    assert all(removed.zero + removed.nonzero + removed.varying == removed.channels for removed in result.report.removed)
    return result


def reference(model):
    """Return a session of `model`: loading takes far longer than evaluating graphs as small as these."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "m.onnx")
        return load(Path(folder) / "m.onnx", "reference")


def evaluated(session, x, wide=True, rounding=None):
    """Return every tensor of the session's model on `x`, by name, in float64 or float32."""
    tensors = {}
    tensors |= session.evaluate({"x": x}, wide=wide, rounding=rounding, seen=lambda name, value: tensors.setdefault(name, value))
    return tensors


def samples(shape, seed=0):
    """Return inputs in [-1, 1]: uniform, corners, both ends, and 0."""
    generator = np.random.default_rng(seed)
    corners = generator.choice([-1.0, 1.0], shape)
    arrays = (generator.uniform(-1, 1, shape), corners, -np.ones(shape), np.ones(shape), np.zeros(shape))
    return [array.astype(np.float32) for array in arrays]


def assert_same(model, result, inputs):
    """Assert that every tensor which is left has, in float64, its old numbers in the channels that are left."""
    folded = {node.outputs[0].name for node in result.model.graph if node.op_type == "MatMul"}  # before its bias
    renamed = {value.name for value in result.model.graph.outputs}
    before, after = reference(model), reference(result.model)
    for x in inputs:
        old, new = evaluated(before, x), evaluated(after, x)
        assert renamed <= set(new)
        for name in set(new) - folded:
            true = old[name] if name not in result.report.surviving else old[name][:, result.report.surviving[name]]
            np.testing.assert_allclose(new[name], true, rtol=1e-9, atol=1e-9 * max(1, np.abs(true).max()), err_msg=name)


def removed_of(result):
    return {removed.node: (removed.channels, removed.zero, removed.nonzero) for removed in result.report.removed}


def kept_of(result):
    return {kept.node: (kept.channels, kept.reason) for kept in result.report.kept}


def weights_of(result, name):
    node = next(node for node in result.model.graph if node.name == name)
    return [None if value is None or value.const_value is None else value.const_value.numpy() for value in node.inputs]


# ---------------------------------------------------------------- channels that are constant


def test_a_dead_channel_goes_with_its_row_and_the_columns_that_read_it():
    net = Network()
    relu = net.add("Relu", net.conv("x", rows(1, 2, 3), [0, -1000, 0]))
    net.conv(relu, np.arange(6).reshape(2, 3, 1, 1), [5, 6], pads=[1] * 4)
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 1, 0)}
    assert result.report.removed[0].ground == "proven"
    _, weights, bias = weights_of(result, "Conv_t0")
    assert weights[:, 0, 0, 0].tolist() == [1, 3]
    assert bias.tolist() == [0, 0]
    _, weights, bias = weights_of(result, "Conv_t2")
    assert weights[:, :, 0, 0].tolist() == [[0, 2], [3, 5]]
    assert bias.tolist() == [5, 6]
    assert {name: places.tolist() for name, places in result.report.surviving.items()} == {"t0": [0, 2], "t1": [0, 2]}
    assert (result.report.channels_before, result.report.channels_after) == (5, 4)
    assert count_cost(result.model).flops < count_cost(model).flops
    assert_same(model, result, samples(net.shape))


def test_a_constant_that_is_not_zero_goes_into_the_next_bias_in_one_rounding():
    net = Network()
    relu = net.add("Relu", net.conv("x", rows(1, 0, 0), [0, 0.1, 0.7]))
    weights = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    net.conv(relu, weights, [1, 1])
    result = compacted(net.model())
    assert removed_of(result) == {"Conv_t0": (2, 0, 2)}
    constants = np.float32([0.1, 0.7]).astype(np.float64)
    exact = 1 + weights.astype(np.float64).sum(axis=(2, 3))[:, 1:] @ constants
    assert weights_of(result, "Conv_t2")[2].tolist() == exact.astype(np.float32).tolist()


def test_a_reader_without_a_bias_gets_one_when_it_needs_it():
    for constant, count in ((0.5, 3), (-0.5, 2)):
        net = Network()
        relu = net.add("Relu", net.conv("x", rows(1, 0), [0, constant]))
        net.conv(relu, rows(1, 2, inputs=2))
        model = net.model()
        result = compacted(model)
        assert len(weights_of(result, "Conv_t2")) == count
        assert_same(model, result, samples(net.shape))


def test_a_constant_before_zero_padding_stays_unless_it_is_zero():
    net = Network()
    relu = net.add("Relu", net.conv("x", rows(1, 0, 0), [0, 0.5, -0.5]))
    net.conv(relu, rows(1, 1, inputs=3, size=3), pads=[0, 1, 0, 0])
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 1, 0)}
    assert kept_of(result) == {"Conv_t0": (1, PADDING)}
    assert_same(model, result, samples(net.shape))


def test_automatic_padding_counts_as_padding_but_not_around_a_single_weight():
    for size, kept in ((3, {"Conv_t0": (1, PADDING)}), (1, {})):
        net = Network()
        relu = net.add("Relu", net.conv("x", rows(1, 0), [0, 0.5]))
        net.conv(relu, rows(1, inputs=2, size=size), auto_pad="SAME_UPPER", strides=[2, 2])
        model = net.model()
        result = compacted(model)
        assert kept_of(result) == kept
        assert_same(model, result, samples(net.shape))


@pytest.mark.parametrize("pads", [0, 1])
def test_a_depthwise_convolution_of_a_dead_channel_is_its_bias_padded_or_not(pads):
    net = Network()
    relu = net.add("Clip", net.conv("x", rows(1, 2, 3), [0, -1000, 0]), np.float32(0), np.float32(6))
    depthwise = net.conv(relu, ones(3, 1, 3, 3), [0, 0.25, 0], group=3, pads=[pads] * 4)
    net.conv(net.add("Clip", depthwise, np.float32(0), np.float32(6)), rows(1, 2), [0, 1])
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 1, 0), "Conv_t2": (1, 0, 1)}
    assert weights_of(result, "Conv_t4")[2].tolist() == [0.25, 1.5]
    group = next(node for node in result.model.graph if node.name == "Conv_t2").attributes["group"].as_int()
    assert group == 2
    assert_same(model, result, samples(net.shape))


def test_a_constant_goes_through_a_depthwise_convolution_only_without_padding():
    for pads in (0, 1):
        net = Network()
        relu = net.add("Relu", net.conv("x", rows(1, 0), [0, 0.5]))
        depthwise = net.conv(relu, ones(4, 1, 3, 3), [0, 0, 1, -100], group=2, pads=[pads] * 4)
        net.conv(net.add("Relu", depthwise), rows(1, 2, inputs=4))
        model = net.model()
        result = compacted(model)
        # The last of four is dead with padding too, but shares its input with the third, which is not constant.
        assert removed_of(result) == ({} if pads else {"Conv_t0": (1, 0, 1), "Conv_t2": (2, 1, 1)})
        assert kept_of(result) == ({"Conv_t0": (1, PADDING), "Conv_t2": (1, PADDING)} if pads else {})
        assert_same(model, result, samples(net.shape))


def test_what_a_depthwise_convolution_with_weights_of_zero_reads_goes_as_well():
    net = Network()
    depthwise = net.conv(
        net.add("Relu", net.conv("x", rows(1, 2, 3))), np.float32([1, 0, 1]).reshape(3, 1, 1, 1), [0, 1, 0], group=3
    )
    net.conv(depthwise, rows(1, 1))
    model = net.model()
    result = compacted(model)
    assert [(one.node, one.zero, one.nonzero, one.varying) for one in result.report.removed] == [
        ("Conv_t0", 0, 0, 1),
        ("Conv_t2", 0, 1, 0),
    ]
    assert_same(model, result, samples(net.shape))


def test_a_batch_norm_of_scale_zero_takes_its_channel_and_all_four_parameters_along():
    net = Network()
    parameters = ([1, 0, 0], [0, 0.5, -0.5], [0.1, 7, 7], [1, 2, 3])
    normal = net.add("BatchNormalization", net.conv("x", rows(1, 2, 3)), *(np.float32(one) for one in parameters))
    net.conv(net.add("Relu", normal), rows(1, 2), [0, 0])
    model = net.model()
    result = compacted(model, -np.inf, np.inf)
    assert removed_of(result) == {"Conv_t0": (2, 1, 1)}
    assert [array.tolist() for array in weights_of(result, "BatchNormalization_t1")[1:]] == [[1], [0], [np.float32(0.1)], [1]]
    assert_same(model, result, samples(net.shape))


def test_a_row_that_reads_constants_only_is_a_constant():
    net = Network()
    first = net.add("Relu", net.conv("x", rows(1, 0), [0, 0.5]))
    weights = np.float32([[1, 1], [0, 3]]).reshape(2, 2, 1, 1)
    net.conv(net.add("Relu", net.conv(first, weights, [0, 0.25])), rows(1, 2, inputs=2))
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 0, 1), "Conv_t2": (1, 0, 1)}
    assert weights_of(result, "Conv_t4")[2].tolist() == [1.75, 3.5]
    assert_same(model, result, samples(net.shape))


# ---------------------------------------------------------------- ways through the graph


def residual(left, right):
    net = Network()
    branches = [net.conv("x", rows(*values), biases) for values, biases in (left, right)]
    total = net.add("Relu", net.add("Add", *branches))
    net.conv(net.add("Relu", net.conv(total, rows(1, 2))), rows(1, inputs=2))
    return net


def test_a_channel_of_a_residual_add_goes_where_both_branches_are_constant():
    net = residual(((1, 0, 0), [0, -1, 1]), ((1, 0, 1), [0, 0.5, 0]))
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 1, 0), "Conv_t1": (1, 1, 0)}
    assert kept_of(result) == {"Conv_t0": (1, RESIDUAL), "Conv_t1": (1, RESIDUAL)}
    assert_same(model, result, samples(net.shape))


def test_a_sum_that_is_dead_goes_although_its_branches_are_not():
    net = residual(((1, 1, 1), [0, -50, 0]), ((1, 1, 1), [0, -50, 0]))
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 1, 0), "Conv_t1": (1, 1, 0)}
    assert_same(model, result, samples(net.shape))


def test_a_branch_that_is_read_elsewhere_keeps_the_sum():
    net = residual(((1, 1, 1), [0, -50, 0]), ((1, 1, 1), [0, -50, 0]))
    other = net.conv("t0", rows(1))
    model = net.model("t6", other)
    result = compacted(model)
    assert removed_of(result) == {}
    assert kept_of(result) == {"Conv_t0": (1, RESIDUAL), "Conv_t1": (1, RESIDUAL)}


def test_a_channel_that_is_dead_for_one_reader_and_not_for_another_stays():
    net = Network()
    source = net.conv("x", rows(1, 1), [0, -50])
    dead, alive = net.conv(net.add("Relu", source), rows(1, inputs=2)), net.conv(source, rows(1, inputs=2))
    result = compacted(net.model(dead, alive))
    assert kept_of(result) == {"Conv_t0": (1, ELSEWHERE)}


def test_positions_shift_behind_a_concat():
    net = Network()
    first = net.add("Relu", net.conv("x", rows(1, 1), [-1000, 0]))
    second = net.add("Relu", net.conv("x", rows(0, 1, 2), [0.5, -1000, 0]))
    joined = net.add("Concat", first, second, first, axis=1)
    net.conv(joined, np.arange(7).reshape(1, 7, 1, 1))
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 1, 0), "Conv_t2": (2, 1, 1)}
    _, weights, bias = weights_of(result, "Conv_t5")
    assert weights.reshape(-1).tolist() == [1, 4, 6]
    assert bias.tolist() == [1.0]
    assert_same(model, result, samples(net.shape))


@pytest.mark.parametrize("kind", ["Flatten", "whole", "rest", "Squeeze"])
def test_the_features_of_a_channel_leave_the_layer_behind_a_flatten(kind):
    net = Network((2, 3, 1, 4))
    pooled = net.add("MaxPool", net.add("Relu", net.conv("x", rows(1, 0, 1, 2), [0, 0.5, -1000, 0])), kernel_shape=[1, 2])
    if kind == "Flatten":
        flat = net.add("Flatten", pooled)
    elif kind == "Squeeze":
        pooled = net.add("GlobalAveragePool", pooled)
        flat = net.add("Squeeze", pooled, np.array([2, 3]))
    else:
        flat = net.add("Reshape", pooled, np.array([-1, 12] if kind == "whole" else [0, -1]))
    features = 4 if kind == "Squeeze" else 12
    net.add("Gemm", flat, np.arange(2 * features).reshape(2, features), transB=1)
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (2, 1, 1)}
    assert weights_of(result, net.nodes[-1].name)[1].shape == (2, features // 2)
    assert_same(model, result, samples(net.shape))


@pytest.mark.parametrize("bias", [None, np.float32(0.5), np.float32([1, 2]), np.float32([[1, 2]]), np.float32([[1], [2]])])
@pytest.mark.parametrize("is_transposed", [0, 1])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_a_gemm_takes_constants_whatever_its_bias_and_factors(bias, is_transposed, beta):
    net = Network((2, 3))
    hidden = net.add("Relu", net.add("Gemm", "x", np.float32([[1, 0, 2]] * 3), np.float32([0, 0.75, -1000])))
    weights = np.arange(6).reshape(2, 3) if is_transposed else np.arange(6).reshape(3, 2)
    net.add("Gemm", hidden, weights, *([] if bias is None else [bias]), transB=is_transposed, alpha=0.5, beta=beta)
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Gemm_t0": (2, 1, 1)}
    assert_same(model, result, samples(net.shape))


def test_a_matmul_takes_constants_into_the_add_behind_it_and_otherwise_they_stay():
    for bias in (np.float32([1, 2]), np.float32(1), None):
        net = Network((2, 3))
        hidden = net.add("Add", net.add("MatMul", "x", np.float32([[1, 0, 2]] * 3)), np.float32([0, 0.75, -1000]))
        product = net.add("MatMul", net.add("Relu", hidden), 1 + np.arange(6).reshape(3, 2))
        if bias is not None:
            net.add("Add", product, bias)
        model = net.model()
        result = compacted(model)
        assert removed_of(result) == {"MatMul_t0": (1, 1, 0) if bias is None else (2, 1, 1)}
        assert kept_of(result) == ({"MatMul_t0": (1, NO_BIAS)} if bias is None else {})
        assert_same(model, result, samples(net.shape))


def test_a_gate_of_its_own_goes_with_the_channel_that_it_multiplies():
    net = Network()
    trunk = net.add("Relu", net.conv("x", rows(1, 1, 1), [0, -1000, 0]))
    squeezed = net.add("Relu", net.conv(net.add("GlobalAveragePool", trunk), rows(1, 2)))
    gate = net.add("Sigmoid", net.conv(squeezed, rows(1, 2, 3, inputs=2)))
    net.conv(net.add("Mul", trunk, gate), rows(1, 2))
    model = net.model()
    result = compacted(model)
    assert set(removed_of(result)) == {"Conv_t0", "Conv_t5"}
    assert_same(model, result, samples(net.shape))


# ---------------------------------------------------------------- what stays


def test_the_last_channel_of_a_layer_stays():
    net = Network()
    relu = net.add("Relu", net.conv("x", rows(1, 2, 3), [-1000, -1000, -1000]))
    net.conv(relu, rows(1, 2), [0, 0])
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (2, 2, 0)}
    # With nothing but a constant to read the next layer is constant too, and is what the world sees.
    assert kept_of(result) == {"Conv_t0": (1, LAST), "Conv_t2": (2, OUTPUT)}
    assert_same(model, result, samples(net.shape))


def test_a_graph_output_keeps_its_channels():
    net = Network()
    relu = net.add("Relu", net.conv("x", rows(1, 2), [-1000, 0]))
    assert kept_of(compacted(net.model(relu, net.conv(relu, rows(1, inputs=2))))) == {"Conv_t0": (1, OUTPUT)}


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        (lambda net, x: net.conv(x, ones(2, 2, 1, 1), group=2), "a convolution in groups keeps the sizes of its groups"),
        (lambda net, x: net.add("LRN", x, size=3), "what it does with channels is not known"),
        (lambda net, x: net.add("Reshape", x, np.array([2, 2, -1])), "it takes channels apart"),
        (lambda net, x: net.add("ReduceMax", x, np.array([1, 2])), "it may reduce over channels"),
        (lambda net, x: net.add("Conv", x, net.add("Identity", ones(2, 4, 1, 1))), "its weights are computed"),
    ],
)
def test_what_a_node_does_not_pass_on_channel_by_channel_stays_with_the_reason(reader, reason):
    net = Network()
    last = reader(net, net.add("Relu", net.conv("x", rows(1, 2, 3, 4), [-1000, 0, 0, 0])))
    result = compacted(net.model(last))
    assert removed_of(result) == {}
    assert kept_of(result)["Conv_t0"][0] == 1
    assert kept_of(result)["Conv_t0"][1].endswith(reason)
    assert net.nodes[-1].name in kept_of(result)["Conv_t0"][1]


def test_what_a_subgraph_reads_stays():
    net = Network((1, 3, 2, 2))
    relu = net.add("Relu", net.conv("x", rows(1, 2), [-1000, 0]))
    net.conv(relu, rows(1, inputs=2))
    shape = helper.make_tensor_value_info("inner", TensorProto.FLOAT, (1, 2, 2, 2))
    branch = helper.make_graph([helper.make_node("Identity", [relu], ["inner"])], "branch", [], [shape])
    net.constant(np.float32(1), "one")
    net.nodes.append(helper.make_node("Cast", ["one"], ["condition"], "cast", to=TensorProto.BOOL))
    net.nodes.append(helper.make_node("If", ["condition"], ["chosen"], "if", then_branch=branch, else_branch=branch))
    assert kept_of(compacted(net.model("t2", "chosen"))) == {"Conv_t0": (1, SUBGRAPH)}


# ---------------------------------------------------------------- weights that nodes share


@pytest.mark.parametrize(("other", "channels"), [(-1000, 1), (0, 0)])
def test_layers_that_share_weights_lose_a_channel_only_together_and_share_on(other, channels):
    net = Network()
    weights, bias = net.constant(rows(1, 1), "w"), net.constant([0, -1000], "b")
    level = net.add("Relu", net.conv("x", rows(1, 1, 1)))
    first = net.add("Relu", net.conv("x", weights, bias))
    second = net.add("Relu", net.conv(level, weights, [0, other]))
    outputs = [net.conv(one, rows(1, inputs=2)) for one in (first, second)]
    model = net.model(*outputs)
    result = compacted(model)
    assert [removed.channels for removed in result.report.removed] == [channels] * 2 * bool(channels)
    assert result.model.graph.initializers["w"].const_value.numpy().shape == (2 - channels, 3, 1, 1)
    assert kept_of(result) == ({} if channels else {"Conv_t2": (1, ELSEWHERE)})
    assert_same(model, result, samples(net.shape))


def test_a_bias_that_layers_share_is_parted_when_they_lose_different_channels():
    net = Network()
    bias = net.constant([0, 0.5, 0], "b")
    first, second = (net.add("Relu", net.conv("x", rows(*values), bias)) for values in ((1, 1, 1), (1, 0, 1)))
    model = net.model(net.conv(first, rows(1)), net.conv(second, rows(1)))
    result = compacted(model)
    assert removed_of(result) == {"Conv_t2": (1, 0, 1)}
    assert weights_of(result, "Conv_t0")[2].tolist() == [0, 0.5, 0]
    assert weights_of(result, "Conv_t2")[2].tolist() == [0, 0]
    assert_same(model, result, samples(net.shape))


# ---------------------------------------------------------------- Relus that never bend


def test_a_relu_that_never_bends_goes_and_one_that_may_stays():
    net = Network()
    kinds = [net.add("Relu", net.conv("x", rows(1, 1), bias)) for bias in ([4, 4], [4, 0])]
    model = net.model(*(net.conv(one, rows(1, inputs=2)) for one in kinds))
    result = compacted(model)
    assert result.report.relus_removed == ("Relu_t1",)
    assert [relu.node for relu in find_relus(result.model)] == ["Relu_t3"]
    assert_same(model, result, samples(net.shape))


def test_a_relu6_goes_only_when_it_does_not_reach_six_either():
    for bias, count in ((2.9, 0), (3.5, 1), (2.5, 1)):
        net = Network()
        clipped = net.add("Clip", net.conv("x", rows(0.9, 0.8), [bias, bias]), np.float32(0), np.float32(6))
        net.conv(clipped, rows(1, inputs=2))
        assert len(find_relus(compacted(net.model()).model)) == (bias != 2.9)
        assert count == (bias != 2.9)


def test_a_relu_goes_when_the_channels_that_bend_have_gone():
    net = Network()
    net.conv(net.add("Relu", net.conv("x", rows(1, 1), [4, -4])), rows(1, inputs=2))
    result = compacted(net.model())
    assert (result.report.relus_removed, removed_of(result)) == (("Relu_t1",), {"Conv_t0": (1, 1, 0)})


def test_the_names_of_outputs_outlive_the_relu_that_made_them():
    net = Network()
    model = net.model(net.add("Relu", net.add("Relu", net.conv("x", rows(1, 1)))))
    result = compacted(model)
    assert result.report.relus_removed == ("Relu_t2",)
    assert [value.name for value in result.model.graph.outputs] == ["t2"]
    assert_same(model, result, samples(net.shape))


def test_a_relu_between_two_outputs_stays_with_the_reason():
    net = Network()
    inner = net.add("Relu", "x")
    result = compacted(net.model(inner, net.add("Relu", inner)))
    assert (result.report.relus_removed, kept_of(result)) == ((), {"Relu_t1": (3, OUTPUT)})


# ---------------------------------------------------------------- what was only observed


def observable():
    net = Network()
    net.conv(net.add("Relu", net.conv("x", rows(1, 1, 1), [0, -1, -1000])), rows(1, 2))
    return net


def test_what_was_observed_goes_only_when_asked_to_and_is_not_called_proven():
    model = observable().model()
    assert removed_of(compacted(model)) == {"Conv_t0": (1, 1, 0)}
    result = compacted(model, observed={"t1": np.array([False, True, True])})
    assert [(one.channels, one.ground) for one in result.report.removed] == [(1, "proven"), (1, "observed")]
    # As long as it does not fire nothing changes; where it would, its share is missing.
    quiet = np.full((2, 3, 8, 8), 0.25, np.float32)
    assert_same(model, result, [quiet])
    loud = np.full((2, 3, 8, 8), 1.0, np.float32)
    assert not np.allclose(evaluated(reference(model), loud)["t2"], evaluated(reference(result.model), loud)["t2"])


def test_what_follows_from_an_observation_is_observed_too():
    net = Network()
    relu = net.add("Relu", net.conv("x", rows(1, 1), [0, -1]))
    net.conv(net.add("Relu", net.conv(relu, ones(2, 1, 3, 3), [0, 0.5], group=2, pads=[1] * 4)), rows(1, inputs=2))
    result = compacted(net.model(), observed={"t1": np.array([False, True])})
    assert [(one.node, one.nonzero, one.ground) for one in result.report.removed] == [
        ("Conv_t0", 0, "observed"),
        ("Conv_t2", 1, "observed"),
    ]


def test_of_a_layer_that_would_be_emptied_the_channel_that_was_only_observed_stays():
    result = compacted(observable().model(), observed={"t1": np.array([True, True, True])})
    assert [(one.channels, one.ground) for one in result.report.removed] == [(1, "proven"), (1, "observed")]
    assert result.report.surviving["t1"].tolist() == [0]


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ({"t0": np.ones(3, bool)}, "no Relu of the graph makes a tensor called 't0'"),
        ({"t1": np.ones(4, bool)}, "'t1' has 3 channels, the observation has shape \\(4,\\)"),
    ],
)
def test_an_observation_of_another_model_is_refused(observed, message):
    with pytest.raises(InputError, match=message):
        prune_model(observable().model(), {}, observed)


# ---------------------------------------------------------------- any network


KINDS = "conv conv conv bn depthwise depthwise residual residual concat maxpool avgpool grouped lrn identity prelu bias"


def grown(kinds, generator, numbers):  # noqa: C901
    """Return a random network of these steps, with channels planted in it that are dead, constant, or always on."""
    net = Network((2, 3, 10, 10))
    last, channels, size = "x", 3, 10

    def planted(weights):
        """Return weights and biases of rows, some of them without weights, some never and some always above 0."""
        bias = numbers(len(weights))
        kind = generator.choice(["as is", "zero", "dead", "on"], len(weights), p=[0.5, 0.25, 0.2, 0.05])
        if generator.random() < 0.1:
            kind[:] = "on"
        weights[kind == "zero"] = 0
        bias[kind == "dead"], bias[kind == "on"] = -5000, 5000
        return weights, bias

    def convolution(source, inputs, outputs, kernel, pad, **attributes):
        weights, bias = planted(numbers(outputs, inputs, kernel, kernel))
        parts = (weights, bias) if generator.random() < 0.8 else (weights,)
        return net.add("Conv", source, *parts, pads=[pad] * 4, **attributes)

    def activated(source):
        kind = generator.choice(["Relu", "Relu6", "none"], p=[0.6, 0.3, 0.1])
        if kind == "Relu6":
            return net.add("Clip", source, np.float32(0), np.float32(6))
        return net.add("Relu", source) if kind == "Relu" else source

    for kind in kinds:
        kernel = int(generator.choice([1, 3])) if size > 4 else 1
        pad = int(generator.integers(2)) * (kernel // 2)
        if kind == "conv":
            outputs = int(generator.integers(2, 6))
            last, channels = activated(convolution(last, channels, outputs, kernel, pad)), outputs
            size += 2 * pad - kernel + 1
        elif kind == "depthwise":
            times = int(generator.integers(1, 3))
            last = activated(convolution(last, 1, channels * times, kernel, pad, group=channels))
            channels, size = channels * times, size + 2 * pad - kernel + 1
        elif kind == "bn":
            factor = numbers(channels) * (generator.random(channels) < 0.6)
            spread = generator.choice([0.25, 1.0, 4.0], channels)
            last = net.add("BatchNormalization", last, factor, numbers(channels), numbers(channels), spread, epsilon=0.0)
            last = activated(last)
        elif kind == "residual":
            inner = activated(convolution(last, channels, 3, 3, 1))
            last = activated(net.add("Add", last, convolution(inner, 3, channels, 1, 0)))
        elif kind == "concat":
            branches = [activated(convolution(last, channels, 2, 1, 0)), activated(convolution(last, channels, 3, 3, 1))]
            last, channels = net.add("Concat", *branches, axis=1), 5
        elif kind == "maxpool":
            last = net.add("MaxPool", last, kernel_shape=[3, 3], pads=[1] * 4)
        elif kind == "avgpool":
            counted = int(generator.integers(2))
            last = net.add("AveragePool", last, kernel_shape=[2, 2], pads=[1, 1, 0, 0] if counted else [0] * 4)
            size -= not counted
        elif kind == "grouped" and channels % 2 == 0:
            last, channels = activated(convolution(last, channels // 2, 4, 1, 0, group=2)), 4
        elif kind == "prelu":
            last = net.add("PRelu", last, numbers(channels, 1, 1))
        elif kind == "bias":
            last = net.add("Mul", net.add("Add", last, numbers(1, channels, 1, 1)), numbers(1))
        elif kind in ("lrn", "identity"):
            last = net.add("LRN", last, size=1, alpha=0.0, beta=1.0) if kind == "lrn" else net.add("Identity", last)
    return head(net, generator, numbers, last, channels, size)


def head(net, generator, numbers, last, channels, size):
    """Add a pool or none, a flatten, and two fully connected layers."""
    pooling = generator.choice(["GlobalAveragePool", "ReduceMean", "none"])
    if pooling != "none":
        last = net.add(str(pooling), last, *([np.array([2, 3])] if pooling == "ReduceMean" else []))
    features = channels * (size * size if pooling == "none" else 1)
    flat = net.add("Reshape", last, np.array([-1, features])) if generator.random() < 0.5 else net.add("Flatten", last)
    bias = numbers(4) - 5000 * (generator.random(4) < 0.3)
    if generator.random() < 0.5:
        hidden = net.add("Gemm", flat, numbers(4, features), bias, transB=1, alpha=0.5, beta=2.0)
    else:
        hidden = net.add("Add", net.add("MatMul", flat, numbers(features, 4)), bias)
    net.add("Gemm", net.add("Relu", hidden), numbers(4, 3))
    return net


networks = given(st.lists(st.sampled_from(KINDS.split()), min_size=1, max_size=7), st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=120)
@networks
def test_every_tensor_that_is_left_is_what_it_was(kinds, seed):
    generator = np.random.default_rng(seed)
    # Quarters: what is folded into a bias is a float32 number then, and float64 has no rounding to hide behind. Only behind a
    # dozen layers have the constants more bits than a float32.
    net = grown(kinds, generator, lambda *shape: generator.integers(-3, 4, shape) / 4)
    model = net.model()
    result = compacted(model)
    assume(result.report.is_exact)
    assert_same(model, result, samples(net.shape, seed))


@pytest.mark.parametrize(("weight", "is_exact"), [(0.25, True), (0.1, False)])
def test_a_constant_that_a_bias_cannot_take_up_exactly_is_reported_and_rounded_once(weight, is_exact):
    net = Network()
    last = net.add("Relu", net.conv("x", rows(0, 1), np.array([3, 0.5])))
    net.conv(last, np.full((2, 2, 1, 1), weight), np.array([1, 2]))
    model = net.model()
    result = compacted(model)
    assert removed_of(result) == {"Conv_t0": (1, 0, 1)}
    assert result.report.is_exact is is_exact
    (bias,) = [array for array in weights_of(result, "Conv_t2")[2:] if array is not None]
    # One constant 3 times the float32 weight.
    assert bias.tolist() == [np.float32(each + 3 * np.float64(np.float32(weight))) for each in (1, 2)]


@settings(deadline=None, max_examples=60)
@networks
def test_outputs_are_as_good_as_correct_float32_arithmetic_makes_them(kinds, seed):
    generator = np.random.default_rng(seed)
    net = grown(kinds, generator, lambda *shape: generator.standard_normal(shape) * 0.5)
    model = net.model()
    result, name = compacted(model), net.nodes[-1].output[0]
    before, after = reference(model), reference(result.model)
    for x in samples(net.shape, seed):
        truth = evaluated(before, x)[name]
        # One evaluation may happen to be nearly exact: a random rounding stands beside it, as in the verdict itself.
        others = evaluated(before, x, wide=False)[name], evaluated(before, x, rounding=Rounding("float32", seed))[name]
        verdict = compare(evaluated(after, x, wide=False)[name], truth, estimate_noise_floor(truth, *others))
        assert verdict.passed, verdict.reason


# ---------------------------------------------------------------- real models


def assert_as_good(bundle, result, feeds, tmp_path):
    save_model(result.model, tmp_path / "compact.onnx")
    session = load(bundle, "reference")
    truth, float32 = session.evaluate(feeds), session.run(feeds)
    for backend in ("reference", "onnxruntime-cpu"):
        got = load(tmp_path / "compact.onnx", backend, threads=1).run(feeds)
        for name, true in truth.items():
            verdict = compare(got[name], true, estimate_noise_floor(true, float32[name]))
            assert verdict.passed, (backend, verdict.reason)


def test_the_digit_classifier_loses_what_never_acts_and_nothing_else(digits_bundle, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    model = load_model(digits_bundle.onnx)
    ranges, feeds = declared_range(digits_bundle).bounds, next(load_dataset(digits_bundle, "digits").batches(20))
    assert prune_model(model, ranges).report.channels_after <= prune_model(model, ranges).report.channels_before
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    for node in convolutions[:3]:
        bias = node.inputs[2].const_value.numpy().copy()
        bias[::4] = -1000
        node.inputs[2].const_value = ir.tensor(bias, name=node.inputs[2].name)
    save_model(model, tmp_path / "planted.onnx")
    result = compacted_of(model, ranges)
    lost = {removed.node: removed.channels for removed in result.report.removed}
    assert all(lost[str(node.name)] >= node.outputs[0].shape[1] // 4 for node in convolutions[:3])
    assert_as_good(tmp_path / "planted.onnx", result, feeds, tmp_path)


def test_the_dead_channels_of_mobilenet_are_proven_dead_and_go(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    from bundles import exported

    from relu_deploy.zoo.recipes import recipe, weights_file

    try:
        weights_file(recipe("mobilenet_v2"))
    except Exception as why:
        pytest.skip(str(why))
    bundle = exported("mobilenet_v2")
    model = load_model(bundle.onnx)
    result = compacted_of(model, declared_range(bundle).bounds)
    assert removed_of(result) == {"features.0.1/Conv": (4, 1, 0), "features.1.conv.0.1/Conv": (4, 3, 1)}
    assert result.report.kept == ()
    assert count_cost(result.model).flops < 0.992 * count_cost(model).flops
    assert_as_good(bundle, result, next(load_dataset(bundle, "mobilenet_v2").batches(2)), tmp_path)


def compacted_of(model, ranges):
    result = prune_model(model, ranges)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    assert {removed.ground for removed in result.report.removed} <= {"proven"}
    return result
