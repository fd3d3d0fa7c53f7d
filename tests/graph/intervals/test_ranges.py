"""Bounds hold for every input in the range, as ONNX Runtime computes in float32, and are as tight as one layer allows."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.graph.intervals.ranges import OPERATORS, bounds_of

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


class Network:
    """A graph that grows a node at a time from one input `x`; every node's result becomes an output."""

    def __init__(self, shape, dtype=TensorProto.FLOAT):
        self.nodes, self.constants, self.made, self.names = [], {}, [], 0
        self.input = helper.make_tensor_value_info("x", dtype, shape)

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = array if array.dtype == np.int64 else array.astype(np.float32)
        return name

    def add(self, operator, *inputs, results=1, **attributes):
        names = [f"t{len(self.made) + position}" for position in range(results)]
        self.made += names
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"{operator}_{names[0]}", **attributes))
        return names[0] if results == 1 else names

    def proto(self, shown=None, opset=18):
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.made]
        weights = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", [self.input], outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        shapes = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
        del inferred.graph.output[:]
        inferred.graph.output.extend(shapes[name] for name in shown or self.made)
        return inferred

    def bounds(self, low, high):
        return bounds_of(ir.from_proto(self.proto()), {"x": (low, high)})

    def run(self, *inputs, optimized=False):
        """Return every tensor; optimized: only the last ones, so that the runtime may fuse all that leads to them."""
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        level = onnxruntime.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            self.proto(self.made[-3:] if optimized else None).SerializeToString(), settings, ["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        return [dict(zip(names, session.run(None, {"x": x}), strict=True)) for x in inputs]


def assert_inside(network, bounds, *inputs):
    for optimized in (True, False):
        for values in network.run(*inputs, optimized=optimized):
            for name, value in values.items():
                low, high = bounds[name]
                wide = value.astype(np.float64)
                if low.ndim:
                    wide = np.moveaxis(wide, 1, -1)
                assert (wide >= low).all(), (name, network.nodes)
                assert (wide <= high).all(), (name, network.nodes)


def inputs_within(generator, shape, low, high):
    """Return inputs of the range: uniform, corners, and both ends throughout."""
    low, high = (np.broadcast_to(np.reshape(bound, (1, -1, *(1,) * (len(shape) - 2))), shape) for bound in (low, high))
    corners = np.where(generator.random(shape) < 0.5, low, high)
    inputs = (generator.uniform(low, high), corners, low, high)
    return [np.clip(x.astype(np.float32), low.astype(np.float32), high.astype(np.float32)) for x in inputs]


def grown(generator):
    """Return a random convolutional network and its input's shape."""
    channels = int(generator.choice([2, 4, 6]))
    shape = (2, channels, 8, 8)
    network = Network(shape)
    scale = float(generator.choice([1e-3, 0.3, 30.0]))
    last = "x"
    kinds = (
        "conv depthwise bn add mul div sub relu clip leaky prelu maxpool avgpool pad sigmoid concat split slice reshape resize"
    )
    kinds += " transposed minmax abs shuffle gather unary"
    for kind in generator.choice(kinds.split(), int(generator.integers(3, 9))):
        last, channels = step(network, generator, kind, last, channels, scale)
    pooled = last
    if generator.random() < 0.5:
        pooled = network.add("GlobalAveragePool", last)
    else:
        axes = network.constant(np.array([2, 3], np.int64))
        pooled = network.add(str(generator.choice(["ReduceMean", "ReduceMax", "ReduceSum"])), last, axes)
    flat = network.add("Flatten", pooled)
    weights = network.constant(generator.standard_normal((5, channels)) * scale)
    logits = network.add("Gemm", flat, weights, network.constant(generator.standard_normal(5)), transB=1, alpha=0.5, beta=2.0)
    network.add("Relu", network.add("MatMul", logits, network.constant(generator.standard_normal((5, 3)))))
    network.add("Softmax", logits)
    return network, shape


def step(network, generator, kind, last, channels, scale):  # noqa: C901
    """Add one step after tensor `last`; return the new last tensor and its number of channels."""

    def normal(*shape):
        return network.constant(generator.standard_normal(shape) * scale)

    def per_channel():
        return normal(1, channels, 1, 1)

    if kind == "conv":
        size = int(generator.choice([1, 3]))
        weights = generator.standard_normal((4, channels, size, size)) * scale
        weights[0] = 0  # a channel that is its bias
        pads = [size // 2] * 4
        return network.add("Conv", last, network.constant(weights), normal(4), pads=pads), 4
    if kind == "depthwise":
        return network.add("Conv", last, normal(channels, 1, 3, 3), group=channels, pads=[1] * 4), channels
    if kind == "transposed":
        return network.add("ConvTranspose", last, normal(channels, 3, 3, 3), normal(3), strides=[2, 2], pads=[1] * 4), 3
    if kind == "bn":
        spread = network.constant(generator.uniform(0, 2, channels))
        factor = generator.standard_normal(channels)
        factor[0] = 0
        operands = (network.constant(factor), normal(channels), normal(channels), spread)
        return network.add("BatchNormalization", last, *operands), channels
    if kind in ("add", "mul", "sub"):
        other = per_channel() if generator.random() < 0.5 else last
        return network.add(kind.capitalize(), last, other), channels
    if kind == "div":
        return network.add("Div", last, network.constant(generator.uniform(0.1, 3, (channels, 1, 1)))), channels
    if kind == "clip":
        return network.add("Clip", last, network.constant(np.array(0.0)), network.constant(np.array(6.0))), channels
    if kind == "leaky":
        return network.add("LeakyRelu", last, alpha=float(generator.choice([0.1, -0.5, 2.0]))), channels
    if kind == "prelu":
        return network.add("PRelu", last, normal(channels, 1, 1)), channels
    if kind == "maxpool":
        return network.add("MaxPool", last, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), channels
    if kind == "avgpool":
        counted = int(generator.integers(2))
        return network.add("AveragePool", last, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=counted), channels
    if kind == "pad":
        pads = network.constant(np.array([0, 1, 2, 0, 0, 0, 0, 1], np.int64))
        return network.add("Pad", last, pads, network.constant(np.array(generator.standard_normal()))), channels + 1
    if kind == "concat":
        return network.add("Concat", last, network.add("Relu", last), axis=int(generator.choice([1, -3]))), 2 * channels
    if kind == "split" and channels % 2 == 0:
        return network.add("Split", last, axis=1, num_outputs=2, results=2)[1], channels // 2
    if kind == "slice" and channels > 2:
        ends = [network.constant(np.array(part, np.int64)) for part in ([channels - 1, 0], [-(2**62), 5], [1, 2], [-2, 1])]
        return network.add("Slice", last, *ends), (channels + 1) // 2
    if kind == "reshape":
        flat = network.add("Reshape", last, network.constant(np.array([2, channels, -1], np.int64)))
        back = network.add("Unsqueeze", flat, network.constant(np.array([3], np.int64)))
        return back, channels
    if kind == "shuffle" and channels % 2 == 0:
        split = network.add("Reshape", last, network.constant(np.array([0, 2, channels // 2, -1, 1], np.int64)))
        swapped = network.add("Transpose", split, perm=[0, 2, 1, 3, 4])
        return network.add("Reshape", swapped, network.constant(np.array([2, channels, -1, 1], np.int64))), channels
    if kind == "gather":
        order = generator.permutation(channels)
        return network.add("Gather", last, network.constant(order.astype(np.int64)), axis=1), channels
    if kind == "resize":
        scales = network.constant(np.array([1, 1, 2, 1.5]))
        return network.add("Resize", last, "", scales, mode=str(generator.choice(["nearest", "linear"]))), channels
    if kind == "minmax":
        return network.add("Min", network.add("Max", last, per_channel()), per_channel()), channels
    if kind == "unary":
        return network.add("Neg", network.add(str(generator.choice(["Tanh", "HardSigmoid"])), last)), channels
    return network.add({"sigmoid": "Sigmoid", "abs": "Abs"}.get(kind, "Relu"), last), channels


@pytest.mark.parametrize("seed", range(120))
def test_every_tensor_of_a_random_network_stays_within_its_bounds(seed):
    generator = np.random.default_rng(seed)
    network, shape = grown(generator)
    center, width = generator.standard_normal(shape[1]), generator.uniform(0, 3, shape[1])
    low, high = (bound.astype(np.float32).astype(np.float64) for bound in (center - width, center + width))
    bounds = network.bounds(low, high)
    assert_inside(network, bounds, *inputs_within(generator, shape, low, high))
    assert all(np.isfinite(bound).all() for name in network.made for bound in bounds[name]), "an operator was not understood"


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_bounds_of_one_convolution_are_reached(seed, groups):
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((8, 4 // groups, 3, 3)).astype(np.float32)
    network = Network((8, 4, 3, 3))
    out = network.add("Conv", "x", network.constant(weights), network.constant(generator.standard_normal(8)), group=groups)
    low, high = np.array([-1, -2, 0, 0.5]), np.array([1, 2, 3, 0.75])
    bounds = network.bounds(low, high)
    worst = np.zeros((8, 4, 3, 3), np.float32)
    for channel in range(8):
        own = slice((channel // (8 // groups)) * (4 // groups), (channel // (8 // groups) + 1) * (4 // groups))
        ends = (bound[own].reshape(-1, 1, 1) for bound in (low, high))
        worst[channel] = low.reshape(-1, 1, 1)
        least, most = ends
        worst[channel, own] = np.where(weights[channel] > 0, most, least)
    assert_inside(network, bounds, worst)
    reached = np.diagonal(network.run(worst)[0][out][:, :, 0, 0])
    np.testing.assert_allclose(reached, bounds[out][1], rtol=1e-4, atol=1e-3)


def test_rounding_of_a_long_sum_is_covered_where_exact_arithmetic_would_not_be():
    generator = np.random.default_rng(0)
    weights = generator.uniform(0.1, 1, (1, 20000)).astype(np.float32)
    network = Network((1, 20000))
    out = network.add("Gemm", "x", network.constant(weights), transB=1)
    low, high = network.bounds(1 / 3, 1 / 3)[out]
    exact = float(weights.astype(np.float64).sum()) * float(np.float32(1 / 3))
    got = float(network.run(np.full((1, 20000), 1 / 3, np.float32))[0][out][0, 0])
    assert got != exact
    assert low[0] <= min(got, exact) < max(got, exact) <= high[0]


def test_zero_padding_is_part_of_the_convolution_input():
    network = Network((1, 1, 4, 4))
    out = network.add("Conv", "x", network.constant(np.ones((1, 1, 3, 3))), pads=[1] * 4)
    inside = network.add("Conv", "x", network.constant(np.ones((1, 1, 3, 3))))
    bounds = network.bounds(1.0, 2.0)
    assert bounds[out][0] == pytest.approx(0, abs=1e-4)
    assert bounds[inside][0] == pytest.approx(9, abs=1e-4)


def test_without_a_range_only_what_holds_for_every_input_is_bounded():
    weights = np.ones((3, 2, 1, 1))
    weights[1] = 0
    network = Network((1, 2, 4, 4))
    out = network.add("Conv", "x", network.constant(weights), network.constant(np.array([1.0, -2.0, 3.0])))
    bounds = bounds_of(ir.from_proto(network.proto()), {})
    assert bounds[out][0].tolist() == [-np.inf, -2, -np.inf]
    assert bounds[out][1].tolist() == [np.inf, -2, np.inf]


def test_a_batch_norm_with_scale_zero_is_its_shift_to_the_bit():
    network = Network((1, 2, 3, 3))
    values = ([0.0, 1.0], [-0.1, 0.5], [3.0, 0.0], [0.0, 1.0])
    out = network.add("BatchNormalization", "x", *(network.constant(np.array(value)) for value in values))
    low, high = bounds_of(ir.from_proto(network.proto()), {})[out]
    assert low[0] == high[0] == np.float32(-0.1)
    assert (low[1], high[1]) == (-np.inf, np.inf)


def test_a_uint8_input_is_bounded_by_its_dtype_and_per_channel_after_a_transpose():
    network = Network((1, 4, 4, 3), TensorProto.UINT8)
    planes = network.add("Cast", network.add("Transpose", "x", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    scaled = network.add("Mul", planes, network.constant(np.array([1, 2, 4]).reshape(1, 3, 1, 1)))
    low, high = bounds_of(ir.from_proto(network.proto()), {})[scaled]
    np.testing.assert_allclose(low, 0, atol=1e-6)
    np.testing.assert_allclose(high, [255, 510, 1020], rtol=1e-5)


def test_an_unknown_operator_bounds_nothing_and_what_follows_recovers_at_the_relu():
    network = Network((1, 2, 4, 4))
    odd = network.add("LRN", "x", size=1)
    relu = network.add("Relu", odd)
    bounds = network.bounds(0, 1)
    assert "LRN" not in OPERATORS
    assert (bounds[odd][0].tolist(), bounds[odd][1].tolist()) == ([-np.inf] * 2, [np.inf] * 2)
    assert bounds[relu][0].tolist() == [0, 0]


def test_a_bound_beyond_float32_is_no_bound():
    network = Network((1, 2, 4, 4))
    big = network.add("Mul", "x", network.constant(np.array(3e38)))
    again = network.add("Sub", big, big)
    bounds = network.bounds(-2.0, 2.0)
    assert np.isinf(bounds[big][1]).all()
    assert np.isneginf(bounds[again][0]).all()


def test_flattening_keeps_each_channel_apart():
    network = Network(("batch", 2, 3, 3))
    flat = network.add("Flatten", network.add("Relu", "x"))
    low, high = network.bounds(np.array([-1.0, 2.0]), np.array([1.0, 3.0]))[flat]
    assert low.tolist() == [0] * 9 + [2] * 9
    assert high.tolist() == [1] * 9 + [3] * 9
