"""Equalized models answer bit for bit as before, and use every channel's range better."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import SCOPE_KEY, find_relus, load_model, save_model, to_bytes, with_taps
from relu_deploy.graph.quantization.equalization import equalize

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

SPACE = 6
CHANNELS = st.integers(2, 6)


class Network:
    """A graph that grows node by node from an input `x` of shape (2, channels, 6, 6), each layer with planted imbalances."""

    def __init__(self, seed, channels=3, planted=6.0, opset=18):
        self.generator, self.planted, self.opset = np.random.default_rng(seed), planted, opset
        self.nodes, self.weights = [], {}
        self.last, self.channels = "x", channels
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, channels, SPACE, SPACE])

    def constant(self, array, name=None):
        name = name or f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array) if np.asarray(array).dtype == np.int64 else np.asarray(array, np.float32)
        return name

    def add(self, operator, *others, first=True, results=(), **attributes):
        name = f"{operator.lower()}{len(self.nodes)}"
        inputs = [self.last, *others] if first else [*others, self.last]
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out", *results], name, **attributes))
        self.last = f"{name}_out"
        return name

    def uneven(self, *shape, axis=0):
        """Return normal numbers whose slices on `axis` differ in size by up to 2^planted either way."""
        sizes = np.exp2(self.generator.uniform(-self.planted, self.planted, shape[axis]))
        return self.generator.standard_normal(shape) * sizes.reshape(-1, *(1,) * (len(shape) - axis - 1))

    def conv(self, channels, size=1, groups=1, bias=True):
        weights = self.uneven(channels, self.channels // groups, size, size)
        operands = [self.constant(weights)] + ([self.constant(self.uneven(channels))] if bias else [])
        self.channels = channels
        return self.add("Conv", *operands, group=groups, pads=[size // 2] * 4)

    def depthwise(self, multiplier=1):
        return self.conv(self.channels * multiplier, 3, self.channels)

    def clip(self, upper=6.0):
        return self.add("Clip", self.constant(0.0), self.constant(upper))

    def gemm(self, features, **attributes):
        inputs = self.channels
        shape = (features, inputs) if attributes.get("transB") else (inputs, features)
        self.channels = features
        weights = self.uneven(*shape, axis=0 if attributes.get("transB") else 1)
        return self.add("Gemm", self.constant(weights), self.constant(self.uneven(features)), **attributes)

    def model(self, *outputs):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [self.input],
            [helper.make_empty_tensor_value_info(name) for name in (self.last, *outputs)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))

    def x(self, count=1):
        return self.generator.standard_normal((count, *[dim.dim_value for dim in self.input.type.tensor_type.shape.dim])).astype(
            np.float32
        )


def outputs_of(model, x, level="DISABLE_ALL"):
    onnx.checker.check_model(onnx.load_from_string(to_bytes(model)), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    session = onnxruntime.InferenceSession(to_bytes(model), options, ["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, {"x": x}), strict=True))


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value.view(np.int32), other[name].view(np.int32), err_msg=name)


def constants_of(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def node_of(model, name):
    return next(node for node in model.graph if node.name == name)


def weights_of(model, node):
    return node_of(model, node).inputs[1].const_value.numpy()


def rows(weights):
    return np.abs(weights).reshape(len(weights), -1).max(1)


def columns(weights):
    return rows(np.swapaxes(weights, 0, 1))


def precisions(model):
    """Return the share of its tensor's range that each channel of `pair_of_layers` uses, in the rows and in the columns."""
    first, second = rows(weights_of(model, "conv0")), columns(weights_of(model, "conv2"))
    return np.stack([first / first.max(), second / second.max()])


# ---------------------------------------------------------------- nothing changes but the ranges


@st.composite
def networks(draw):
    """A feed-forward network of everything that scales pass through, and some that they do not."""
    network = Network(draw(st.integers(0, 2**32 - 1)), draw(CHANNELS), draw(st.sampled_from([0.5, 3.0, 6.0])))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["pointwise", "conv", "depthwise", "multiplied", "grouped", "transposed"]))
        if kind == "grouped" and network.channels % 2 == 0:
            network.conv(draw(st.sampled_from([2, 4, 6])), 3, 2)
        elif kind in ("depthwise", "multiplied"):
            network.depthwise(1 if kind == "depthwise" else 2)
        elif kind == "transposed":
            channels = draw(CHANNELS)
            network.add("ConvTranspose", network.constant(network.uneven(network.channels, channels, 1, 1, axis=1)))
            network.channels = channels
        else:
            network.conv(draw(CHANNELS), 1 if kind == "pointwise" else 3, bias=draw(st.booleans()))
        grow_activation(draw, network)
        grow_pool(draw, network)
    grow_tail(draw, network)
    return network


def grow_activation(draw, network):
    kind = draw(st.sampled_from(["", "relu", "relu6", "clip", "max", "leaky", "prelu", "sigmoid", "bias"]))
    if kind == "bias":
        network.add("Add", network.constant(network.uneven(network.channels, 1, 1)), first=draw(st.booleans()))
        network.add("Relu")
    elif kind in ("relu6", "clip"):
        network.clip(6.0 if kind == "relu6" else draw(st.sampled_from([0.5, 1.7, 100.0])))
    elif kind == "max":
        network.add("Max", network.constant(0.0))
    elif kind == "prelu":
        network.add("PRelu", network.constant(network.generator.uniform(-1, 1, (network.channels, 1, 1))))
    elif kind:
        network.add({"relu": "Relu", "leaky": "LeakyRelu", "sigmoid": "Sigmoid"}[kind])


def grow_pool(draw, network):
    kind = draw(st.sampled_from(["", "MaxPool", "AveragePool", "Identity", "Dropout", "Pad"]))
    if kind == "Pad":
        network.add("Pad", network.constant(np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64)))
        network.add("AveragePool", kernel_shape=[2, 2])
    elif kind:
        network.add(kind, **({"kernel_shape": [3, 3], "pads": [1] * 4} if "Pool" in kind else {}))


def grow_tail(draw, network):
    kind = draw(st.sampled_from(["flatten", "global", "mean", "squeezed", "none"]))
    if kind == "none":
        return
    axes = network.constant(np.array([2, 3], np.int64))
    if kind == "flatten":
        network.add("Flatten")
        network.channels *= SPACE * SPACE
    elif kind == "global":
        network.add("GlobalAveragePool")
        network.add("Reshape", network.constant(np.array([2, -1], np.int64)))
    elif kind == "mean":
        network.add("ReduceMean", axes, keepdims=0)
    else:
        network.add("ReduceMax", axes)
        network.add("Squeeze", axes)
    network.gemm(draw(CHANNELS), transB=1, alpha=0.75, beta=1.5)
    network.add("Relu")
    features = draw(CHANNELS)
    network.add("MatMul", network.constant(network.uneven(network.channels, features, axis=1)))
    network.channels = features
    network.add("Add", network.constant(network.uneven(features)))
    network.clip()
    network.gemm(3)


@settings(max_examples=80, deadline=None)
@given(networks())
def test_outputs_keep_every_bit_and_inner_tensors_are_divided_by_their_scales(network):
    model = network.model()
    result = equalize(model)
    x = network.x()[0]
    assert result.report.is_exact
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        assert_same_bits(outputs_of(model, x, level), outputs_of(result.model, x, level))
    inner = list(result.report.scales)
    old, new = outputs_of(with_taps(model, inner), x), outputs_of(with_taps(result.model, inner), x)
    for name, scale in result.report.scales.items():
        np.testing.assert_array_equal(old[name], new[name] * scale, err_msg=name)
    layers = [node.name for node in model.graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert sorted(layers) == sorted(
        [pair.producer for pair in result.report.pairs] + [one.producer for one in result.report.skipped]
    )
    assert [(relu.node, relu.output) for relu in find_relus(result.model)] == [
        (relu.node, relu.output) for relu in find_relus(model)
    ]


@settings(max_examples=15, deadline=None)
@given(networks())
def test_outputs_keep_every_bit_on_the_reference(network):
    model = network.model()
    x = network.x()[0]
    with tempfile.TemporaryDirectory() as folder:
        got = []
        for name, one in (("old", model), ("new", equalize(model).model)):
            path = Path(folder) / f"{name}.onnx"
            save_model(one, path)
            got.append(load(path, "reference").run({"x": x}))
    assert_same_bits(*got)


def test_every_layer_of_a_plain_network_but_the_last_is_in_a_pair():
    network = Network(0, 4)
    network.conv(8)
    network.clip()
    network.depthwise()
    network.clip()
    network.conv(4)
    network.conv(4, 3, 2)
    network.add("Relu")
    network.add("Flatten")
    network.channels *= SPACE * SPACE
    network.gemm(3)
    result = equalize(network.model())
    assert [(pair.producer, pair.reader, pair.channels) for pair in result.report.pairs] == [
        ("conv0", "conv2", 8),
        ("conv2", "conv4", 8),
        ("conv4", "conv5", 4),
        ("conv5", "gemm8", 4),
    ]
    assert [(one.producer, one.reason) for one in result.report.skipped] == [("gemm8", "gemm8_out is an output of the graph")]
    assert min(pair.scaled for pair in result.report.pairs) > 0


def test_a_shipped_model_answers_as_before_bit_for_bit(digits_bundle):
    model = load_model(digits_bundle.onnx)
    result = equalize(model)
    assert result.report.is_exact
    assert len(result.report.pairs) > 0
    x = np.random.default_rng(0).random((16, 1, 28, 28), np.float32)
    assert_same_bits(outputs_of(model, x), outputs_of(result.model, x))


def test_the_model_given_stays_as_it_was_and_names_are_kept():
    network = Network(1)
    network.conv(4)
    network.clip()
    network.conv(3)
    model = network.model()
    before, nodes, constants = to_bytes(model), [node.name for node in model.graph], constants_of(model)
    new = equalize(model).model
    assert to_bytes(model) == before
    assert [node.name for node in new.graph if not node.name.endswith("/bound")] == nodes
    bounds = {"w2", "w3"}  # nothing clips at one number any more
    assert set(constants_of(new)) == set(constants) - bounds | {"clip1/bound/constant"}
    assert any((constants_of(new)[name] != constants[name]).any() for name in constants if name not in bounds)


# ---------------------------------------------------------------- ranges


def pair_of_layers(seed=0, planted=6.0):
    network = Network(seed, 3, planted)
    network.conv(16, 3)
    network.add("Relu")
    network.conv(5)
    return network.model()


def test_the_papers_scales_make_the_ranges_of_both_sides_equal():
    model = pair_of_layers()
    first, second = rows(weights_of(model, "conv0")), columns(weights_of(model, "conv2"))
    result = equalize(model, power_of_two=False)
    np.testing.assert_allclose(result.report.scales["relu1_out"].ravel(), np.sqrt(first * second) / second, rtol=1e-5)
    after = rows(weights_of(result.model, "conv0"))
    np.testing.assert_allclose(after, np.sqrt(first * second), rtol=1e-5)
    np.testing.assert_allclose(columns(weights_of(result.model, "conv2")), after, rtol=1e-5)
    assert not result.report.is_exact


def test_powers_of_two_are_within_the_square_root_of_two_of_the_papers_scales():
    model = pair_of_layers()
    papers = equalize(model, power_of_two=False).report.scales["relu1_out"].ravel()
    ours = equalize(model).report.scales["relu1_out"].ravel()
    assert set(np.frexp(ours)[0]) == {0.5}
    off = np.log2(ours / papers)
    assert off.max() - off.min() <= 1 + 1e-5  # from half a step below one common factor to half a step above it
    assert np.abs(off).max() < 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_worst_channel_uses_more_of_its_range_and_none_less_of_both_together(seed, power_of_two):
    model = pair_of_layers(seed)
    before, after = precisions(model), precisions(equalize(model, power_of_two=power_of_two).model)
    assert after.min() > 2 * before.min()
    # The product over both sides is what the paper maximizes; a power of two may be half a step off on either side.
    assert (after.prod(0) >= before.prod(0) * (0.5 if power_of_two else 1 - 1e-5)).all()


def test_spreads_are_what_the_weights_show():
    model = pair_of_layers()
    result = equalize(model)
    pair = result.report.pairs[0]
    for position, one in enumerate((model, result.model)):
        first, second = rows(weights_of(one, "conv0")), columns(weights_of(one, "conv2"))
        # The median of an even number of ranges is taken between their logarithms.
        for ranges, spreads in ((first, pair.producer_spread), (second, pair.reader_spread)):
            assert spreads[position] == pytest.approx(ranges.max() / np.exp2(np.median(np.log2(ranges))), rel=1e-4)
    assert pair.producer_spread[1] < pair.producer_spread[0] / 3
    assert result.report.to_json()["pairs"][0]["producer_spread"] == list(pair.producer_spread)


def bottleneck(seed=0):
    network = Network(seed, 4)
    network.conv(12)
    network.clip()
    network.depthwise()
    network.clip()
    network.conv(4)
    return network.model()


def test_pointwise_depthwise_pointwise_converges():
    model = bottleneck()
    result = equalize(model, power_of_two=False, iterations=50)
    expand, depthwise = rows(weights_of(result.model, "conv0")), rows(weights_of(result.model, "conv2"))
    np.testing.assert_allclose(expand, depthwise, rtol=0.01)
    np.testing.assert_allclose(columns(weights_of(result.model, "conv4")), depthwise, rtol=0.01)
    once_more = equalize(result.model, power_of_two=False)
    assert all(np.abs(np.log2(scale)).max() < 0.01 for scale in once_more.report.scales.values())
    # One sweep is not enough: the depthwise layer takes part in two pairs.
    rough = equalize(model, power_of_two=False, iterations=1)
    assert np.abs(np.log2(rows(weights_of(rough.model, "conv0")) / rows(weights_of(rough.model, "conv2")))).max() > 0.5


def test_a_channel_without_weights_on_one_side_keeps_its_scale():
    network = Network(0, 3)
    network.conv(6)
    network.add("Relu")
    network.conv(4)
    network.weights["w0"][2] = 0
    network.weights["w2"][:, 4] = 0
    result = equalize(network.model())
    assert result.report.scales["relu1_out"].ravel()[[2, 4]].tolist() == [1, 1]
    assert result.report.pairs[0].scaled >= 3
    x = network.x()[0]
    assert_same_bits(*(outputs_of(model, x) for model in (network.model(), result.model)))


def test_no_scale_leaves_the_limit():
    network = Network(0, 3, planted=0)
    network.conv(6)
    network.add("Relu")
    network.conv(4)
    network.weights["w0"][0] *= np.float32(1e-30)
    network.weights["w0"][1] *= np.float32(1e30)
    model = network.model()
    exponents = np.log2(equalize(model).report.scales["relu1_out"].ravel())
    assert exponents[:2].tolist() == [-12, 12]
    assert np.abs(exponents[2:]).max() < 4
    assert np.abs(np.log2(equalize(model, limit=3).report.scales["relu1_out"])).max() == 3


def test_weights_that_would_lose_bits_are_noticed():
    network = Network(0, 3, planted=0)
    network.conv(6)
    network.add("Relu")
    network.conv(4)
    network.weights["w0"][0] *= 256
    network.weights["w0"][0, 0] = np.float32(3e-38)  # 2^-124.6, a subnormal number when it is divided by 16
    assert not equalize(network.model()).report.is_exact


def test_weights_that_two_layers_share_are_scaled_for_each_alone():
    network = Network(0, 4)
    network.conv(4, 3, bias=False)
    network.add("Relu")
    network.add("Conv", "w0", pads=[1] * 4)
    network.add("Relu")
    network.conv(3)
    model = network.model()
    result = equalize(model)
    assert node_of(result.model, "conv0").inputs[1] is not node_of(result.model, "conv2").inputs[1]
    assert min(pair.scaled for pair in result.report.pairs) > 0
    x = network.x()[0]
    assert_same_bits(outputs_of(model, x), outputs_of(result.model, x))


# ---------------------------------------------------------------- Clips


def test_a_relu6_becomes_a_bound_per_channel_and_a_relu_with_its_name_and_result():
    network = Network(3, 3)
    network.conv(6)
    network.clip()
    network.conv(4)
    model = network.model()
    node_of(model, "clip1").metadata_props[SCOPE_KEY] = "features.0"
    result = equalize(model)
    relu = node_of(result.model, "clip1")
    least = relu.inputs[0].producer()
    assert [node.op_type for node in result.model.graph] == ["Conv", "Min", "Relu", "Conv"]
    np.testing.assert_array_equal(least.inputs[1].const_value.numpy(), 6 / result.report.scales["clip1_out"])
    assert least.inputs[1].const_value.numpy().shape == (1, 6, 1, 1)
    found = find_relus(result.model)[0]
    assert (found.node, found.output, found.scope, found.kind) == ("clip1", "clip1_out", "features.0", "relu")
    assert [(clip.became, clip.because, clip.upper) for clip in result.report.clips] == [("min and relu", "exact", 6.0)]
    x = network.x()[0]
    inside = outputs_of(with_taps(model, ["clip1_out"]), x)["clip1_out"]
    assert (inside == 6).any(axis=(0, 2, 3)).sum() >= 2, "the bound of several channels must be met"
    assert_same_bits(outputs_of(model, x), outputs_of(result.model, x))


def test_a_clip_whose_channels_are_even_stays():
    network = Network(0, 3, planted=0)
    network.conv(6)
    network.clip()
    network.conv(4)
    network.weights["w0"] /= rows(network.weights["w0"]).reshape(-1, 1, 1, 1)
    network.weights["w4"] /= columns(network.weights["w4"]).reshape(1, -1, 1, 1)
    result = equalize(network.model())
    assert [node.op_type for node in result.model.graph] == ["Conv", "Clip", "Conv"]
    assert (result.report.pairs[0].scaled, result.report.clips, result.report.scales) == (0, (), {})


def test_a_clip_that_no_number_came_near_becomes_a_relu_and_is_listed_as_unproven():
    model = bottleneck()
    seen = {"clip1_out": np.full(12, 5.3), "clip3_out": np.array([5.5] + [0.0] * 11)}
    result = equalize(model, observed_maximum=seen)
    assert [(clip.node, clip.became, clip.because) for clip in result.report.clips] == [
        ("clip1", "relu", "observed"),
        ("clip3", "min and relu", "exact"),
    ]
    assert not result.report.is_exact
    assert [clip.became for clip in equalize(model, observed_maximum=seen, margin=0.05).report.clips] == ["relu", "relu"]
    with pytest.raises(InputError, match="clip1_out has 12 channels, 3 were observed"):
        equalize(model, observed_maximum={"clip1_out": np.zeros(3)})


def test_all_clips_become_relus_when_asked_and_are_listed():
    network = Network(0, 3)
    network.conv(6)
    network.clip()
    network.conv(4)
    network.clip()
    model = network.model()
    result = equalize(model, replace_clips=True)
    assert [node.op_type for node in result.model.graph] == ["Conv", "Relu", "Conv", "Relu"]
    assert [(clip.node, clip.became, clip.because) for clip in result.report.clips] == [
        ("clip1", "relu", "asked"),
        ("clip3", "relu", "asked"),
    ]
    assert not result.report.is_exact
    x = network.x()[0]
    assert outputs_of(result.model, x)[network.last].max() > 6


def test_a_clip_of_opset_six_keeps_its_attributes_out_of_the_relu():
    network = Network(3, 3, opset=9)
    network.conv(6)
    network.add("Clip", min=0.0, max=6.0)
    network.conv(4)
    model, x = network.model(), network.x()[0]
    assert_same_bits(outputs_of(model, x), outputs_of(equalize(model).model, x))
    assert [node.op_type for node in equalize(model).model.graph] == ["Conv", "Min", "Relu", "Conv"]


# ---------------------------------------------------------------- what is left alone


def test_a_tensor_that_a_residual_reads_as_well_is_skipped_with_the_names():
    network = Network(0, 4)
    network.conv(4)
    network.add("Relu")
    skip = network.last
    network.conv(4)
    network.add("Add", skip)
    network.conv(3)
    result = equalize(network.model())
    assert result.report.pairs == ()
    assert [(one.producer, one.reader, one.reason) for one in result.report.skipped] == [
        ("conv0", "", "relu1_out is read by conv2, add3: it must be one node of the top graph, once"),
        ("conv2", "add3", "add3 (Add) does not pass on a scale per channel"),
        ("conv4", "", "conv4_out is an output of the graph"),
    ]


def test_a_tensor_that_is_an_output_is_skipped():
    network = Network(0, 4)
    network.conv(4)
    network.add("Relu")
    network.conv(4)
    result = equalize(network.model("relu1_out"))
    assert (result.report.pairs, result.report.skipped[0].reason) == ((), "relu1_out is an output of the graph")


@pytest.mark.parametrize(
    ("grow", "opset", "reason"),
    [
        (
            lambda network: network.add("BatchNormalization", *(network.constant(np.ones(network.channels)) for _ in range(4))),
            18,
            "the batch norm batchnormalization1 follows it: fold it first",
        ),
        (lambda network: network.add("Sigmoid"), 18, r"sigmoid1 (Sigmoid) does not pass on a scale per channel"),
        (
            lambda network: network.add("Clip", network.constant(-1.0), network.constant(1.0)),
            18,
            "clip1 (Clip) does not pass on a scale per channel",
        ),
        (
            lambda network: network.add("Clip", min=0.0, max=6.0),
            7,
            "a bound per channel needs operator set 8, the graph has 7",
        ),
        (
            lambda network: network.add("MaxPool", kernel_shape=[1, 1], results=["indices"]),
            18,
            "maxpool1 (MaxPool): its second result is read",
        ),
        (
            lambda network: network.add("Pad", network.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), "w0"),
            18,
            "pad1 (Pad) does not pass on a scale per channel",
        ),
    ],
)
def test_what_does_not_pass_a_scale_on_is_named(grow, opset, reason):
    network = Network(0, 4, opset=opset)
    if "Pad" in reason:
        network.constant(np.array(1.0))  # w0, the value of the border
    network.conv(4)
    grow(network)
    network.conv(3)
    model = network.model(*(["indices"] if "MaxPool" in reason else []))
    result = equalize(model)
    assert [one.reason for one in result.report.skipped] == [reason, f"{network.last} is an output of the graph"]
    assert result.report.pairs == ()
    assert {name: array.tobytes() for name, array in constants_of(result.model).items()} == {
        name: array.tobytes() for name, array in constants_of(model).items()
    }


def test_weights_that_are_computed_or_not_float32_are_named():
    network = Network(0, 4)
    network.conv(4)
    network.add("Relu")
    kept = network.last
    network.last = network.constant(np.ones((3, 4, 1, 1)))
    network.add("Abs")
    computed, network.last = network.last, kept
    network.add("Conv", computed)
    result = equalize(network.model())
    assert [(one.producer, one.reader, one.reason) for one in result.report.skipped] == [
        ("conv0", "conv3", "the weights of conv3 are computed"),
        ("conv3", "", "the weights of conv3 are computed"),
    ]


def test_counts_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="not 0 and 12"):
        equalize(pair_of_layers(), iterations=0)
    with pytest.raises(UsageError, match="not 20 and 100"):
        equalize(pair_of_layers(), limit=100)
