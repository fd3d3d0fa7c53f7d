"""16-bit graphs: strongly typed, valid, as right as the precision allows, and float32 where 16 bits have no room."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small import graph_of, residual

from relu_deploy.errors import UsageError
from relu_deploy.graph import find_relus, load_model, precision_of, save_model, to_bytes
from relu_deploy.graph.quantization.cast_precision import cast_model, range_reasons, simulated, weight_losses
from relu_deploy.verification.run import verify

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
X = np.random.default_rng(2).standard_normal((2, 16, 8, 8)).astype(np.float32)


def types_of(model, folder):
    """Return the element type of every tensor, as full shape inference sees it in a file that the checker accepts."""
    save_model(model, folder / "low.onnx")
    onnx.checker.check_model(str(folder / "low.onnx"), full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(folder / "low.onnx"), strict_mode=True).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def agrees(model, float32, folder, x=X):
    """Return the verdict on the 16-bit `model`, as it runs on a CPU without such kernels, against `float32`."""
    save_model(float32, folder / "float32.onnx")
    save_model(simulated(model), folder / "simulated.onnx")
    against = str(folder / "float32.onnx")
    return verify(folder / "simulated.onnx", ["onnxruntime-cpu"], feeds={"x": x}, against=against, optimization="basic")


@pytest.mark.parametrize(("dtype", "stored"), [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)])
def test_a_residual_network_is_typed_throughout_and_agrees(dtype, stored, tmp_path):
    model = residual()
    before = to_bytes(model)
    lowered = cast_model(model, dtype)
    assert to_bytes(model) == before
    assert not lowered.report.float32_nodes
    types = types_of(lowered.model, tmp_path)
    assert types["x"] == types["y"] == TensorProto.FLOAT
    assert {types[relu.output] for relu in find_relus(lowered.model)} == {stored}
    assert types["w1"] == stored
    assert precision_of(lowered.model) == precision_of(simulated(lowered.model)) == dtype
    report = agrees(lowered.model, model, tmp_path)
    assert report.passed, report.first_divergence
    assert report.precision == dtype


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["float16", "bfloat16"]))
def test_networks_agree_within_the_noise_of_their_precision(tmp_path_factory, seed, dtype):
    model = residual(seed)
    assert agrees(cast_model(model, dtype).model, model, tmp_path_factory.mktemp("n")).passed


def test_a_node_that_is_kept_computes_in_float32_between_two_casts(tmp_path):
    lowered = cast_model(residual(), "float16", {"inner": "because"})
    assert lowered.report.float32_nodes == {"inner": "because"}
    types = types_of(lowered.model, tmp_path)
    assert types["inner"] == TensorProto.FLOAT
    assert types["inner_relu"] == types["stem_relu"] == TensorProto.FLOAT16
    casts = [node for node in lowered.model.graph if node.op_type == "Cast"]
    assert len(casts) == 4, "one at each end, one into and one out of the kept node"
    assert agrees(lowered.model, residual(), tmp_path).passed


def test_bounds_of_a_clip_and_scales_of_a_resize_get_the_type_that_their_schema_wants(tmp_path):
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["a"], "clip"),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], "resize", mode="nearest"),
        helper.make_node("Reshape", ["b", "shape"], ["c"], "reshape"),
        helper.make_node("Softmax", ["c"], ["y"], "softmax"),
    ]
    constants = [
        ("low", np.float32(0)),
        ("high", np.float32(6)),
        ("scales", np.float32([1, 1, 2, 2])),
        ("shape", np.int64([2, -1])),
    ]
    model = graph_of(nodes, [("x", [2, 16, 8, 8])], [("y", None)], constants)
    types = types_of(cast_model(model, "float16").model, tmp_path)
    assert (types["low"], types["a"], types["scales"], types["shape"]) == (
        *(TensorProto.FLOAT16, TensorProto.FLOAT16),
        *(TensorProto.FLOAT, TensorProto.INT64),
    )
    assert agrees(cast_model(model, "float16").model, model, tmp_path).passed


def test_weights_that_a_kept_and_a_lowered_node_share_exist_in_both_types(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w"], ["y"], "two"),
    ]
    weights = np.random.default_rng(0).standard_normal((16, 16, 1, 1)).astype(np.float32) / 4
    model = graph_of(nodes, [("x", [2, 16, 8, 8])], [("y", None)], [("w", weights)])
    lowered = cast_model(model, "float16", {"two": "kept"})
    kinds = sorted(value.const_value.dtype.name for value in lowered.model.graph.initializers.values())
    assert kinds == ["FLOAT", "FLOAT16"]
    assert agrees(lowered.model, model, tmp_path).passed


def overflowing():
    """Return a network whose first Relu reaches far beyond float16, and whose second convolution brings it back."""
    model = residual()
    for name, factor in (("w0", 1e5), ("w1", 1e-5)):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor((value.const_value.numpy() * factor).astype(np.float32), name=name)
    return model


def test_what_overflows_float16_is_named_with_the_numbers_and_stays_float32(tmp_path):
    model = overflowing()
    reasons = range_reasons(
        model, "float16", {"stem": 3e5, "stem_relu": 3e5, "last": 3e5, "sum": 6e5, "sum_relu": 6e5, "mean": 2e5}
    )
    assert "it makes stem, which reaches 300000: more than half of float16's 65504" in reasons["stem"]
    assert "inner" in reasons
    assert not range_reasons(model, "bfloat16", {"stem": 3e5})
    save_model(cast_model(model, "float16", reasons).model, tmp_path / "kept.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "kept.onnx"), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"x": X})[0]).all()


def test_weights_that_overflow_or_vanish_are_named():
    model = residual()
    for name, factor in (("w1", 1e-9), ("w2", 1e6)):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor((value.const_value.numpy() * np.float32(factor)), name=name)
    losses = {loss.initializer: loss for loss in weight_losses(model, "float16")}
    assert losses["w1"].vanishing > 0
    assert losses["w2"].overflowing > 0
    reasons = range_reasons(model, "float16", {})
    assert "vanish" in reasons["inner"]
    assert "overflow" in reasons["last"]


def test_a_guard_against_division_by_zero_does_not_become_zero():
    nodes = [
        helper.make_node("Clip", ["x", "least"], ["a"], "guard"),
        helper.make_node("Div", ["one", "a"], ["y"], "divide"),
    ]
    model = graph_of(nodes, [("x", [2, 2])], [("y", [2, 2])], [("least", np.float32(1e-12)), ("one", np.float32(1))])
    assert "guard" in range_reasons(model, "float16", {})


def test_an_unknown_dtype_or_node_is_refused():
    with pytest.raises(UsageError, match="cannot be lowered to 'float12'"):
        cast_model(residual(), "float12")
    with pytest.raises(UsageError, match="no node of the graph is called 'nothing'"):
        cast_model(residual(), "float16", {"nothing": "?"})


def test_the_rounding_of_a_simulation_survives_every_level_of_optimization(tmp_path):
    # 1 + 2^-9 is no bfloat16: were the pair of casts optimized away, it would come through.
    nodes = [helper.make_node("Relu", ["x"], ["a"], "relu"), helper.make_node("Mul", ["a", "one"], ["y"], "mul")]
    model = graph_of(nodes, [("x", [1, 2])], [("y", [1, 2])], [("one", np.float32(1))])
    save_model(simulated(cast_model(model, "bfloat16").model), tmp_path / "s.onnx")
    onnx.checker.check_model(str(tmp_path / "s.onnx"), full_check=True)
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), options, providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": np.float32([[1 + 2**-9, -1]])})[0].tolist() == [[1, 0]]


def test_the_digit_classifier_passes_in_both(digits_bundle, tmp_path):
    from relu_deploy.data.datasets import load_dataset

    x = next(load_dataset(digits_bundle, "digits").batches(4))["x"]
    model = load_model(digits_bundle.onnx)
    for dtype in ("float16", "bfloat16"):
        report = agrees(cast_model(model, dtype).model, model, tmp_path, x)
        assert report.passed
        assert len(report.backends[0].relus) == 6
