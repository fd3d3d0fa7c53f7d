"""Q/DQ graphs: exact scales, zeros that stay zero, answers within the precision's own noise, and what each runtime takes."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from small import graph_of, residual

from relu_deploy.graph import find_relus, load_model, save_model, to_bytes
from relu_deploy.graph.quantization.qdq import SCHEMES, Scheme, quantize, quantized_weights, scale_and_zero
from relu_deploy.graph.quantization.qdq_placement import place_qdq
from relu_deploy.verification.run import verify

CPU, TENSORRT, FLOAT8 = (SCHEMES[key] for key in (("cpu", "int8"), ("tensorrt", "int8"), ("tensorrt", "float8")))


def run_all(model, x):
    """Return every tensor of `model` on ONNX Runtime, nothing merged."""
    from relu_deploy.graph import with_taps

    names = [value.name for node in model.graph for value in node.outputs]
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_bytes(with_taps(model, names)), settings, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    return {"x": x, **dict(zip(outputs, session.run(outputs, {"x": x}), strict=True))}


def ranges_of(values):
    return {name: (float(array.min()), float(array.max())) for name, array in values.items() if array.dtype.kind == "f"}


@pytest.fixture
def pictures():
    return np.random.default_rng(1).standard_normal((4, 16, 8, 8)).astype(np.float32)


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_zero_is_stored_without_error_whatever_the_range(a, b):
    low, high = min(a, b), max(a, b)
    scale, zero = scale_and_zero(low, high, "uint8")
    assert scale > 0
    assert 0 <= zero <= 255
    assert (zero - zero) * scale == 0
    # The ends of the range are met within half a step.
    for end in (min(low, 0), max(high, 0)):
        stored = np.clip(np.round(end / scale) + zero, 0, 255)
        assert abs((stored - zero) * scale - end) <= scale * 1.001 + 1e-30


def test_behind_a_relu_all_255_steps_are_above_zero():
    assert scale_and_zero(0.0, 6.0, "uint8") == (6 / 255, 0)
    assert scale_and_zero(0.0, 6.0, "int8") == (6 / 127, 0)
    assert scale_and_zero(-1.0, 896.0, "float8") == (2.0, 0)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.sampled_from([0, 1, None]), st.sampled_from([127, 63]))
def test_weights_come_back_within_half_a_step_of_their_channel(seed, axis, levels):
    weights = np.random.default_rng(seed).standard_normal((4, 6, 3, 3)).astype(np.float32)
    weights[0] *= 100
    stored, scale = quantized_weights(weights, axis, Scheme("uint8", "int8", levels))
    shape = [1] * 4
    if axis is not None:
        shape[axis] = -1
    assert np.abs(stored).max() <= levels
    error = np.abs(stored.astype(np.float64) * scale.reshape(shape) - weights)
    assert (error <= scale.reshape(shape) * 0.5001).all()


def test_weights_that_are_all_zero_stay_zero():
    stored, scale = quantized_weights(np.zeros((2, 3), np.float32), 0, CPU)
    assert not stored.any()
    assert (scale > 0).all()


def test_the_cpu_graph_is_merged_into_8_bit_kernels_by_onnx_runtime_and_agrees(pictures, tmp_path):
    model = residual()
    save_model(model, tmp_path / "float.onnx")
    quantized = quantize(model, place_qdq(model, "cpu"), ranges_of(run_all(model, pictures)), CPU)
    save_model(quantized, tmp_path / "int8.onnx")
    onnx.checker.check_model(str(tmp_path / "int8.onnx"), full_check=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "merged.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "merged.onnx").graph.node)
    assert (kernels["QLinearConv"], kernels["QLinearAdd"], kernels["QGemm"], kernels["Conv"], kernels["Relu"]) == (3, 1, 1, 0, 0)
    report = verify(tmp_path / "int8.onnx", ["onnxruntime-cpu"], feeds={"x": pictures}, against=str(tmp_path / "float.onnx"))
    assert report.passed
    assert report.as_requested
    assert [relu.comparison is not None for relu in report.backends[0].relus] == [True] * 3


@pytest.mark.parametrize(("precision", "scheme"), [("int8", TENSORRT), ("float8", FLOAT8)])
def test_the_tensorrt_graph_is_symmetric_with_float_biases_and_agrees(pictures, tmp_path, precision, scheme):
    model = residual(channels=32)
    save_model(model, tmp_path / "float.onnx")
    placed = place_qdq(model, "tensorrt", precision)
    quantized = quantize(model, placed, ranges_of(run_all(model, pictures)), scheme)
    save_model(quantized, tmp_path / "low.onnx")
    proto = onnx.load(tmp_path / "low.onnx")
    onnx.checker.check_model(proto, full_check=True)
    zeros = [one for one in proto.graph.initializer if one.name.split("/")[-1].startswith("zero_point")]
    assert zeros
    assert not any(np.asarray(onnx.numpy_helper.to_array(one)).astype(np.float32).any() for one in zeros)
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    biases = [node.input[2] for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert not any(bias in makers for bias in biases)
    # Between a Conv and what is merged into it stands nothing.
    readers = [node.op_type for node in proto.graph.node for name in node.input if makers.get(name) == "Conv"]
    assert set(readers) <= {"Relu", "Add"}
    against = str(tmp_path / "float.onnx")
    report = verify(tmp_path / "low.onnx", ["onnxruntime-cpu"], feeds={"x": pictures}, against=against, optimization="basic")
    assert report.passed, report.first_divergence


def test_relus_keep_their_tensors_and_the_model_given_is_not_changed(pictures):
    model = residual()
    before = to_bytes(model)
    quantized = quantize(model, place_qdq(model, "cpu"), ranges_of(run_all(model, pictures)), CPU)
    assert to_bytes(model) == before
    assert [relu.output for relu in find_relus(quantized)] == [relu.output for relu in find_relus(model)]


def test_an_output_of_the_graph_that_is_quantized_keeps_its_name(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    model = graph_of(
        nodes, [("x", [1, 16, 4, 4])], [("y", [1, 16, 4, 4])], [("w", np.eye(16, dtype=np.float32)[..., None, None])]
    )
    x = np.random.default_rng(0).standard_normal((1, 16, 4, 4)).astype(np.float32)
    quantized = quantize(model, place_qdq(model, "cpu"), {"x": (-4, 4), "y": (-4, 4)}, CPU)
    save_model(quantized, tmp_path / "q.onnx")
    assert [value.name for value in load_model(tmp_path / "q.onnx").graph.outputs] == ["y"]
    assert np.abs(run_all(quantized, x)["y"] - x).max() <= 8 / 255 * 1.01


def test_bias_correction_takes_the_mean_error_of_the_weights_out(pictures):
    model = residual()
    values = run_all(model, pictures)
    means = {name: array.mean(axis=(0, 2, 3)) for name, array in values.items() if array.ndim == 4}
    placed = place_qdq(model, "tensorrt")
    coarse = Scheme("int8", "int8", 7)
    errors = []
    for given_means in ({}, means):
        got = run_all(quantize(model, placed, ranges_of(values), coarse, given_means), pictures)["inner"]
        errors.append(np.abs((got - values["inner"]).mean(axis=(0, 2, 3))).mean())
    # The first layer's error reaches the second as well, and at the border fewer weights act: not all of it goes.
    assert errors[1] < 0.5 * errors[0]


def test_weights_that_two_nodes_share_are_stored_once():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w"], ["y"], "two"),
    ]
    model = graph_of(nodes, [("x", [1, 16, 4, 4])], [("y", None)], [("w", np.ones((16, 16, 1, 1), np.float32))])
    quantized = quantize(model, place_qdq(model, "tensorrt"), {"x": (-1, 1), "b": (0, 16)}, TENSORRT)
    names = list(quantized.graph.initializers)
    assert [name for name in names if name.startswith("w")] == ["w/quantized", "w/scale", "w/zero_point"]


@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-9, 1e-3])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_channel_of_tiny_weights_keeps_its_bias(tmp_path, factor, per_channel):
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((4, 16, 3, 3)).astype(np.float32)
    weights[:2] *= np.float32(factor)
    head = generator.standard_normal((4, 3)).astype(np.float32)
    head[:, 0] *= np.float32(factor)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "h", "hb"], ["y"], "head"),
    ]
    constants = [
        ("w", weights),
        ("b", np.array([5, 3, 0, 0], np.float32)),
        ("h", head),
        ("hb", np.array([-4.5, 0, 1], np.float32)),
    ]
    model = graph_of(nodes, [("x", ["n", 16, 8, 8])], [("y", ["n", 3])], constants)
    x = generator.standard_normal((8, 16, 8, 8)).astype(np.float32)
    true = run_all(model, x)
    scheme = Scheme("uint8", "int8", 127, per_channel)
    quantized = quantize(
        model,
        place_qdq(model, "cpu"),
        ranges_of(true),
        scheme,
        {name: one.mean((0, *range(2, one.ndim))) for name, one in true.items() if one.ndim > 1},
    )
    save_model(quantized, tmp_path / "q.onnx")
    # With all of ONNX Runtime's optimizations, where the bias is an int32.
    (y,) = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
    # The first output is its bias, and what five channels times tiny weights add to it.
    reach = np.abs(true["y"]).max()
    assert np.abs(y - true["y"]).max() <= 0.03 * reach
    np.testing.assert_allclose(y[:, 0], true["y"][:, 0], atol=0.03 * reach)


def test_a_tensor_that_was_always_zero_has_an_ordinary_scale():
    assert scale_and_zero(0.0, 0.0, "uint8") == (1 / 255, 0)
    assert scale_and_zero(0.0, 0.0, "int8") == (1 / 255, 0)
