"""Optimizing models with masks, integer Clips, Q/DQ pairs and bodies; and which variant `auto` keeps."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import relu_deploy
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.report import OptimizeReport
from relu_deploy.optimization.run import _fastest, optimize_bundle

FLOAT = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info


def weights(*shape):
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def save(path, nodes, shape, output, **constants):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, shape)], [value("y", FLOAT, output)], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    rows = np.random.default_rng(0).standard_normal((40, *shape[1:])).astype(np.float32)
    np.savez(path.with_suffix(".npz"), x=rows)
    return path


def optimized(path, target, precision, **options):
    settings = OptimizeOptions(calibration=str(path.with_suffix(".npz")), threads=1, **options)
    report = optimize_bundle(path, target, precision, out=path.with_suffix(".rdb"), force=True, options=settings)
    json.dumps(report.to_json(), allow_nan=False)
    return report


def attention(path, lowest):
    mask = np.triu(np.full((6, 6), lowest, np.float32), 1)
    nodes = [
        *(node("Conv", ["x", f"w{name}"], [name], name) for name in ("q", "k", "v")),
        node("Transpose", ["q"], ["qt"], perm=[0, 2, 1]),
        node("MatMul", ["qt", "k"], ["scores"], "scores"),
        node("Add", ["scores", "mask"], ["masked"], "add"),
        node("Softmax", ["masked"], ["p"], "softmax", axis=-1),
        node("Transpose", ["v"], ["vt"], perm=[0, 2, 1]),
        node("MatMul", ["p", "vt"], ["o"], "mix"),
        node("Transpose", ["o"], ["ot"], perm=[0, 2, 1]),
        node("Conv", ["ot", "wo"], ["c"], "out"),
        node("Relu", ["c"], ["y"], "relu"),
    ]
    return save(
        path,
        nodes,
        ["n", 16, 6],
        ["n", 8, 6],
        mask=mask,
        wq=weights(16, 16, 1),
        wk=weights(16, 16, 1),
        wv=weights(16, 16, 1),
        wo=weights(8, 16, 1),
    )


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("lowest", "kept"), [(np.finfo(np.float32).min, {"add", "softmax"}), (-np.inf, set())])
def test_a_mask_is_optimized_and_only_what_overflows_float16_stays_float32(tmp_path, lowest, kept):
    report = optimized(attention(tmp_path / "m.onnx", lowest), "cuda", "fp16")
    assert report.passed
    assert {fallback["node"] for fallback in report.fallbacks} == kept


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_mask_of_infinities_can_be_calibrated_for_8_bits(tmp_path):
    report = optimized(attention(tmp_path / "m.onnx", -np.inf), "cpu", "int8")
    assert report.search.passed
    # Softmax and the products of two activations are not among the quantized nodes.
    assert {fallback["node"] for fallback in report.fallbacks} >= {"scores", "mix"}


def test_an_integer_clip_between_convolutions_is_no_error(tmp_path):
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        node("Cast", ["c"], ["i"], to=TensorProto.INT64),
        node("Clip", ["i", "zero"], ["k"]),
        node("Cast", ["k"], ["f"], to=FLOAT),
        node("Conv", ["f", "v"], ["y"]),
    ]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        ["n", 3, 8, 8],
        ["n", 4, 8, 8],
        w=10 * weights(8, 3, 3, 3),
        v=weights(4, 8, 1, 1),
        zero=np.int64(0),
    )
    report = optimized(path, "cpu", "int8", method="auto", compact=True, allow_observed=True)
    assert report.method in ("mse", "minmax", "percentile")
    assert report.passed or report.remedy


def rounded_between_convolutions(path, seed, wrong=1.0):
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        node("Cast", ["c"], ["i"], "cast", to=TensorProto.INT64),
        node("Clip", ["i", "zero"], ["k"], "clip"),
        node("Cast", ["k"], ["f"], "back", to=FLOAT),
        node("Conv", ["f", "v"], ["y"], "last"),
    ]
    generator = np.random.default_rng(seed)
    first = (40 * generator.uniform(-0.2, 0.2, (8, 3, 3, 3))).astype(np.float32)
    first[5] *= wrong
    last = generator.uniform(-0.3, 0.3, (4, 8, 1, 1)).astype(np.float32)
    return save(path, nodes, ["n", 3, 8, 8], ["n", 4, 8, 8], w=first, v=last, zero=np.int64(0))


@pytest.mark.parametrize("seed", [0, 1])
def test_rounded_numbers_that_8_bits_move_by_some_units_are_stored(tmp_path, seed):
    report = optimized(rounded_between_convolutions(tmp_path / "m.onnx", seed), "cpu", "int8")
    assert report.search.passed
    assert report.verified.passed, report.verified.to_json()
    assert report.passed


def test_a_model_that_was_traced_with_one_row_is_run_with_one_row(tmp_path):
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv"),
        node("Relu", ["c"], ["r"], "relu"),
        node("Reshape", ["r", "one_row"], ["f"], "flatten"),
        node("MatMul", ["f", "v"], ["y"], "last"),
    ]
    sizes = np.array([1, 8])
    path = save(tmp_path / "m.onnx", nodes, ["n", 3, 4, 4], ["n", 4], w=weights(2, 3, 3, 3), v=weights(8, 4), one_row=sizes)
    report = optimized(path, "cpu", "int8", max_drop=1.0, measure_speed=False)
    assert report.before.samples == 40
    assert report.verified.passed
    (relu,) = relu_deploy.census(path, path.with_suffix(".npz")).relus
    assert relu.channels == 2


def outlier_that_one_relu_sees(path):
    """One channel of the convolution is above 0 only at the one number, in all the data, that is above 8.6."""
    weights, biases = np.full((2, 8, 1, 1), 1 / 8, np.float32), np.array([0, -8.6], np.float32)
    weights[1] = np.eye(8, dtype=np.float32)[0, :, None, None]
    save(
        path,
        [node("Conv", ["x", "w", "b"], ["c"], "conv"), node("Relu", ["c"], ["y"], "relu")],
        ["n", 8, 32, 32],
        ["n", 2, 32, 32],
        w=weights,
        b=biases,
    )
    rows = np.abs(np.load(path.with_suffix(".npz"))["x"]).clip(max=4)
    rows[0, 0, 0, 0] = 10
    np.savez(path.with_suffix(".npz"), x=rows)
    return path


def test_the_default_calibration_clips_no_outlier_that_a_relu_depends_on(tmp_path):
    report = optimized(outlier_that_one_relu_sees(tmp_path / "m.onnx"), "cpu", "int8", measure_speed=False)
    assert report.passed
    assert (report.method, report.instead_of) == ("minmax", "mse")


def test_a_calibration_method_that_is_named_is_kept_and_the_remedy_names_the_one_that_clips_nothing(tmp_path):
    report = optimized(outlier_that_one_relu_sees(tmp_path / "m.onnx"), "cpu", "int8", measure_speed=False, method="mse")
    assert report.search.passed
    assert not report.passed
    assert (report.method, report.instead_of) == ("mse", "")
    assert "--method minmax, which clips nothing" in report.remedy


def test_a_wrong_weight_before_rounded_numbers_is_found_in_an_8_bit_graph(tmp_path):
    from relu_deploy.verification.run import verify

    right = rounded_between_convolutions(tmp_path / "right.onnx", 0)
    variant = optimized(rounded_between_convolutions(tmp_path / "wrong.onnx", 0, wrong=-1.5), "cpu", "int8").bundle
    rows = np.load(right.with_suffix(".npz"))["x"][:2]
    report = verify(variant.with_variant("int8-cpu").onnx, feeds={"x": rows}, against=str(right))
    assert not report.passed
    assert report.first_divergence == "conv"


def test_a_model_with_qdq_pairs_is_taken_as_it_is(tmp_path):
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
        node("DequantizeLinear", ["wq", "sw", "zw"], ["w"]),
        node("MatMul", ["d", "w"], ["m"]),
        node("Relu", ["m"], ["y"]),
    ]
    stored = np.clip(np.round(weights(8, 16) * 100), -127, 127).astype(np.int8)
    constants = {"sx": np.float32(0.03), "zx": np.uint8(128), "sw": np.float32(0.01), "zw": np.int8(0), "wq": stored}
    report = optimized(save(tmp_path / "m.onnx", nodes, ["n", 8], ["n", 16], **constants), "cpu", "int8")
    assert report.passed
    assert report.drop == 0
    variant = onnx.load(report.bundle.with_variant("int8-cpu").onnx)
    assert [each.op_type for each in variant.graph.node if "Linear" in each.op_type] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
    ]


@pytest.mark.parametrize("condition", ["data", "constant"])
def test_layers_inside_a_branch_are_quantized_where_it_always_runs_and_else_listed_as_not_quantized(tmp_path, condition):
    branches = {
        name: helper.make_graph(
            [node("Gemm", ["h", f"{name}_w"], [f"{name}_m"], "fc"), node("Relu", [f"{name}_m"], [f"{name}_y"], "relu")],
            name,
            [],
            [value(f"{name}_y", FLOAT, None)],
            [numpy_helper.from_array(weights(8, 8) * sign, f"{name}_w")],
        )
        for name, sign in (("then", 1), ("else", -1))
    }
    nodes = [
        node("Gemm", ["x", "w"], ["g"], "first"),
        node("Relu", ["g"], ["h"], "relu"),
        node("If", ["c"], ["y"], "if", then_branch=branches["then"], else_branch=branches["else"]),
    ]
    constants = {"w": weights(8, 8)}
    if condition == "constant":
        constants["c"] = np.array(True)
    else:
        # The largest number of a batch is positive.
        constants["zero"] = np.float32(0)
        nodes.insert(0, node("Greater", ["largest", "zero"], ["c"], "greater"))
        nodes.insert(0, node("ReduceMax", ["x"], ["largest"], "largest", keepdims=0))
    report = optimized(save(tmp_path / "m.onnx", nodes, ["n", 8], ["n", 8], **constants), "cpu", "int8")
    reasons = {fallback["node"]: fallback["reason"] for fallback in report.fallbacks}
    inside = {name: why for name, why in reasons.items() if name.startswith("if/")}
    if condition == "constant":
        assert inside == {}
        assert [each.op_type for each in report.search.model.graph].count("Gemm") == 2
    else:
        assert inside == dict.fromkeys(["if/fc", "if/fc_1"], "it is inside the body of an If, Loop or Scan")


@pytest.mark.parametrize(("target", "others"), [("cpu", "fp32"), ("tensorrt-rtx", "bf16 or fp16 or fp32")])
def test_a_graph_without_a_node_for_8_bits_is_refused_with_the_other_precisions_of_the_target(tmp_path, target, others):
    path = save(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"], "relu")], ["n", 8], ["n", 8])
    with pytest.raises(InputError, match="no node that int8 could be used for") as refused:
        optimized(path, target, "int8")
    assert refused.value.hint == f"use --precision {others}"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_graph_of_which_every_layer_is_in_a_branch_is_refused_in_16_bits_instead_of_stored_in_float32(tmp_path, precision):
    draw = np.random.default_rng(0)
    branches = {
        side: helper.make_graph(
            [node("Gemm", ["x", f"w_{side}"], [f"g_{side}"], "fc"), node("Relu", [f"g_{side}"], [f"y_{side}"], "relu")],
            side,
            [],
            [helper.make_tensor_value_info(f"y_{side}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(draw.standard_normal((8, 8)).astype(np.float32), f"w_{side}")],
        )
        for side in ("then", "else")
    }
    nodes = [
        node("Shape", ["x"], ["shape"], "shape"),
        node("Gather", ["shape", "zero"], ["rows"], "rows"),
        node("Greater", ["rows", "one"], ["c"], "greater"),
        node("If", ["c"], ["y"], "if", then_branch=branches["then"], else_branch=branches["else"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["n", 8], ["n", 8], zero=np.int64(0), one=np.int64(1))
    with pytest.raises(InputError, match=f"no node that {precision} could be used for: those inside bodies of If") as refused:
        optimized(path, "tensorrt-rtx", precision)
    assert refused.value.hint == "use --precision fp32"


def test_an_infinite_cost_is_null_in_the_report():
    from relu_deploy.optimization.report import _finite

    assert [_finite(number) for number in (float("inf"), float("nan"), 0.5, None)] == [None, None, 0.5, None]


def report_of(precision, speed, passed=True):
    fields = dict.fromkeys(OptimizeReport.__dataclass_fields__)
    search = SimpleNamespace(passed=passed)
    return OptimizeReport(**fields | {"precision": precision, "speed": SimpleNamespace(value=speed), "search": search})


def test_auto_never_keeps_a_variant_that_is_slower_than_float32():
    fast, slow, float32 = report_of("int8", 1.5), report_of("int8", 0.85), report_of("fp32", 0.8)
    assert slow.is_slower
    assert not fast.is_slower
    assert _fastest([slow, float32]) is float32
    assert _fastest([fast, float32]) is fast
    assert _fastest([slow]) is slow
    assert _fastest([report_of("int8", 3.0, passed=False), float32]) is float32


def test_random_inputs_have_the_shape_that_is_given_and_integers_inside_their_table(tmp_path):
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gather", ["table", "ids"], ["e"]),
        node("Add", ["f", "e"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(weights(4, 3, 3, 3), "w"), numpy_helper.from_array(weights(2, 4), "table")]
    inputs = [value("x", FLOAT, ["n", 3, "h", "w_"]), value("ids", TensorProto.INT64, ["n"])]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", FLOAT, ["n", 4])], tensors)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(InputError, match="no fixed size"):
        optimize_bundle(path, "cuda", "fp16", out=tmp_path / "o.rdb")
    report = optimize_bundle(
        Bundle.open(path).with_shapes({"x": (4, 3, 9, 7), "ids": (4,)}), "cuda", "fp16", out=tmp_path / "o.rdb"
    )
    assert report.data.measured_on.feeds["x"].shape[1:] == (3, 9, 7)
    assert report.data.measured_on.feeds["ids"].max() == 1
    assert report.search.passed


def stateful(path):
    """y = relu(gain * (x @ w)) and the state relu(h), whose rows are on axis 1; the scalar comes first."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Mul", ["m", "gain"], ["g"]),
        node("Relu", ["g"], ["y"], name="relu"),
        node("Relu", ["h"], ["next"], name="state"),
    ]
    inputs = [value("gain", FLOAT, []), value("h", FLOAT, [2, "batch", 4]), value("x", FLOAT, ["batch", 6])]
    outputs = [value("y", FLOAT, ["batch", 4]), value("next", FLOAT, [2, "batch", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weights(6, 4), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    generator = np.random.default_rng(0)
    arrays = {"x": generator.standard_normal((40, 6)), "h": generator.standard_normal((2, 40, 4)), "gain": np.array(2.0)}
    np.savez(path.with_suffix(".npz"), **{name: array.astype(np.float32) for name, array in arrays.items()})
    return path


def test_a_model_with_a_scalar_and_a_state_is_optimized_on_given_and_on_random_rows(tmp_path):
    path = stateful(tmp_path / "m.onnx")
    assert optimized(path, "cpu", "int8").passed
    on_random_rows = optimize_bundle(path, "tensorrt-rtx", "fp16", out=tmp_path / "r.rdb", options=OptimizeOptions(threads=1))
    assert on_random_rows.passed
    assert on_random_rows.data.random


def test_a_model_with_a_scalar_and_a_state_is_measured_and_counted(tmp_path, forked_workers):
    path = stateful(tmp_path / "m.onnx")
    report = relu_deploy.bench(path, ["onnxruntime-cpu"], batch=[1, 32], seconds=0.1).to_json()
    assert [(row["batch"], row["verified"], row["checked_rows"]) for row in report["runs"]] == [(1, True, 1), (32, True, 32)]
    assert relu_deploy.census(path, path.with_suffix(".npz")).samples == 40


def test_the_batch_is_that_of_the_first_input_that_has_one(tmp_path, forked_workers):
    """A scalar, and an input whose batch is fixed at 3."""
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Mul", ["m", "gain"], ["g"]), node("Relu", ["g"], ["y"], name="relu")]
    inputs, outputs = [value("gain", FLOAT, []), value("x", FLOAT, [3, 6])], [value("y", FLOAT, [3, 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weights(6, 4), "w")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    rows = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    np.savez(path.with_suffix(".npz"), x=rows, gain=np.float32(2))
    report = optimized(path, "cpu", "int8")
    assert report.passed
    assert report.data.batch == 3
    counted = relu_deploy.census(path, path.with_suffix(".npz"))
    assert (counted.batch, counted.samples, counted.left_over) == (3, 39, 1)
    (run,) = relu_deploy.bench(path, ["onnxruntime-cpu"], seconds=0.1).to_json()["runs"]
    assert (run["batch"], run["verified"]) == (3, True)


def test_a_sequence_among_the_outputs_is_no_tensor_to_calibrate(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], ["m"], "fc"),
        node("Relu", ["m"], ["y"], "relu"),
        node("SplitToSequence", ["y", "one"], ["parts"], "split", axis=1),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["n", 8], ["n", 4], w=weights(8, 4), one=np.int64(1))
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_sequence_value_info("parts", FLOAT, ["n", 1]))
    onnx.save(model, path)
    assert optimized(path, "tensorrt-rtx", "fp16").passed


def test_weights_and_a_result_that_are_outputs_as_well_stay_so_in_8_bits(tmp_path):
    generator = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv"),
        node("Relu", ["c"], ["r"], "relu"),
        node("Conv", ["r", "v"], ["y"], "last"),
    ]
    constants = {"w": generator.standard_normal((8, 3, 1, 1)), "v": generator.standard_normal((4, 8, 1, 1))}
    constants = {name: array.astype(np.float32) for name, array in constants.items()}
    path = save(tmp_path / "m.onnx", nodes, ["n", 3, 4, 4], ["n", 4, 4, 4], **constants)
    model = onnx.load(path)
    model.graph.output.extend([value("w", FLOAT, [8, 3, 1, 1]), value("r", FLOAT, ["n", 8, 4, 4])])
    onnx.save(model, path)
    report = optimized(path, "cpu", "int8")
    assert report.passed
    variant = report.bundle.with_variant("int8-cpu")
    results = variant.session("onnxruntime-cpu", threads=1).run({"x": np.ones((2, 3, 4, 4), np.float32)})
    assert set(results) == {"y", "w", "r"}
    assert np.array_equal(results["w"], constants["w"])
