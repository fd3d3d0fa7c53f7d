"""A census counts what the Relus did, proves only what holds for every input, and keeps the two apart."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.activations.census import census
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.reporting.tables.census import print_census

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


def saved(path, nodes, shape, constants, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return path


def convolution(tmp_path, bias, shape=("n", 2, 4, 4), clip=False):
    """Return a Conv of three 1x1 channels (each the sum of its two inputs plus `bias`) and its Relu or ReLU6."""
    relu = helper.make_node("Clip", ["c", "zero", "six"], ["y"], "r") if clip else helper.make_node("Relu", ["c"], ["y"], "r")
    constants = {"w": np.ones((3, 2, 1, 1)), "b": bias, "zero": 0.0, "six": 6.0}
    used = constants if clip else {name: constants[name] for name in "wb"}
    return saved(tmp_path / "model.onnx", [helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"), relu], shape, used)


def data(tmp_path, array, name="data.npz"):
    np.savez(tmp_path / name, x=np.asarray(array, np.float32))
    return tmp_path / name


def uniform(rows=10, low=0.0, high=1.0):
    return np.random.default_rng(0).uniform(low, high, (rows, 2, 4, 4))


def test_a_channel_with_a_bias_of_minus_a_thousand_is_proven_dead(tmp_path):
    report = census(convolution(tmp_path, [-1000, 0, 0.5]), data(tmp_path, uniform()), input_range=(0, 1))
    relu = report.to_json()["relus"][0]
    assert (relu["dead"], relu["proven_dead"]) == (1, 1)
    assert relu["dead_channels"] == relu["proven_dead_channels"] == [0]
    assert (relu["always_on"], relu["proven_always_on"]) == (2, 1)
    assert report.input_range.source == "given"


def test_what_was_only_observed_is_not_called_proven(tmp_path):
    # The sum of two inputs could reach 2 and the bias is -1.9: the data stay below, the range does not.
    report = census(convolution(tmp_path, [-1.9, 0, 0]), data(tmp_path, uniform(high=0.9)), input_range=(0, 1))
    relu = report.to_json()["relus"][0]
    assert (relu["dead"], relu["dead_channels"]) == (1, [0])
    assert (relu["proven_dead"], relu["proven_dead_channels"]) == (0, [])
    assert relu["observed_bound"] == pytest.approx(1 - 0.05 ** (1 / 10))


@pytest.mark.parametrize(("samples", "bound"), [(10, 0.25887), (100, 0.029513), (1000, 0.0029912)])
def test_the_bound_of_observed_dead_is_the_exact_rule_of_three(tmp_path, samples, bound):
    report = census(convolution(tmp_path, [-9, 0, 0]), data(tmp_path, uniform(samples)), threads=1)
    assert report.relus[0].observed_bound == pytest.approx(bound, rel=1e-4)
    assert (1 - report.relus[0].observed_bound) ** samples == pytest.approx(0.05)


def test_without_a_range_nothing_that_needs_one_is_proven_and_the_json_says_so(tmp_path):
    report = census(convolution(tmp_path, [-1000, 0, 0]), data(tmp_path, uniform())).to_json()
    assert report["input_range"] is None
    assert (report["totals"]["dead"], report["totals"]["proven_dead"]) == (1, 0)


def test_a_batch_norm_of_scale_zero_is_proven_dead_for_any_input_at_all(tmp_path):
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"], "bn"),
        helper.make_node("Relu", ["n"], ["y"], "r"),
    ]
    constants = {"s": [0, 0, 1], "b": [-0.5, 0.5, 0], "m": [0, 0, 0], "v": [1, 1, 1]}
    path = saved(tmp_path / "bn.onnx", nodes, ("n", 3, 2, 2), constants)
    values = np.random.default_rng(0).standard_normal((5, 3, 2, 2))
    relu = census(path, data(tmp_path, values)).to_json()["relus"][0]
    assert relu["proven_dead_channels"] == relu["dead_channels"] == [0]
    assert (relu["always_on"], relu["proven_always_on"]) == (1, 1)


def test_counts_are_those_of_numpy_on_the_whole_array_however_the_batches_fall(tmp_path):
    values = uniform(23, -2, 2)
    path, arrays = convolution(tmp_path, [0, -1, 5], clip=True), data(tmp_path, values)
    true = np.clip(values.astype(np.float32).sum(axis=1, keepdims=True) + np.array([0, -1, 5]).reshape(1, 3, 1, 1), 0, 6)
    reports = [census(path, arrays, batch=batch, threads=1).to_json() for batch in (1, 5, 23, 64)]
    for report in reports:
        relu = report["relus"][0]
        assert relu["kind"] == "relu6"
        assert relu["sparsity"] == pytest.approx((true <= 0).mean(), abs=1e-3)
        assert relu["saturated"] == pytest.approx((true >= 6).mean(), abs=1e-3)
        assert relu["maximum"] == 6
    assert all(report["relus"] == reports[0]["relus"] for report in reports)


def test_a_plain_relu_has_no_bound_to_be_saturated_at(tmp_path):
    assert census(convolution(tmp_path, [0, 0, 0]), data(tmp_path, uniform())).relus[0].saturated is None


def test_totals_add_up(digits_bundle):
    result = census(digits_bundle, "digits", samples=50, threads=1).to_json()
    assert next(iter(result)) == "schema"
    assert result["schema"] == "relu-deploy/census/1"
    totals, relus = result["totals"], result["relus"]
    assert totals["relus"] == len(relus) == 6
    for name in ("channels", "dead", "always_on", "proven_dead", "proven_always_on"):
        assert totals[name] == sum(relu[name] for relu in relus)
    assert [relu["channels"] for relu in relus] == [16, 32, 64, 64, 96, 96]
    places = [784, 784, 196, 196, 49, 49]
    zeros = sum(relu["sparsity"] * relu["channels"] * place for relu, place in zip(relus, places, strict=True))
    values = sum(relu["channels"] * place for relu, place in zip(relus, places, strict=True))
    assert totals["sparsity"] == pytest.approx(zeros / values)
    assert totals["samples"] == 50


def test_the_range_is_what_the_preprocessing_makes_of_pixels_and_the_data_keep_to_it(digits_bundle):
    declared = census(digits_bundle, "digits", samples=20, threads=1).input_range
    assert (declared.source, declared.rows_outside) == ("preprocess", 0)
    low, high = declared.bounds["x"]
    assert low == pytest.approx(-0.1307 / 0.3081, rel=1e-6)
    assert high == pytest.approx((1 - 0.1307) / 0.3081, rel=1e-6)


def test_rows_outside_the_declared_range_are_counted(tmp_path):
    values = uniform()
    values[3, 0, 1, 1] = 7
    values[4, 1, 0, 0] = np.nan
    report = census(convolution(tmp_path, [0, 0, 0]), data(tmp_path, values), input_range=(0, 1))
    assert report.input_range.rows_outside == 2
    assert report.relus[0].to_json()["nan_channels"] == [0, 1, 2]
    assert report.relus[0].to_json()["dead"] == 0


@pytest.mark.parametrize("seed", range(8))
def test_what_is_proven_is_observed_on_data_inside_the_range(tmp_path, seed):
    generator = np.random.default_rng(seed)
    nodes, constants, last = [], {}, "x"
    for layer, (inputs, outputs) in enumerate([(2, 16), (16, 16), (16, 16)]):
        constants[f"w{layer}"] = generator.standard_normal((outputs, inputs, 3, 3)) * 0.1
        constants[f"b{layer}"] = generator.standard_normal(outputs) * 3**layer
        constants[f"b{layer}"][:2] = -1000, 1000
        nodes.append(helper.make_node("Conv", [last, f"w{layer}", f"b{layer}"], [f"c{layer}"], f"conv{layer}", pads=[1] * 4))
        last = f"r{layer}" if layer < 2 else "y"
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [last], f"relu{layer}"))
    path = saved(tmp_path / "net.onnx", nodes, ("n", 2, 6, 6), constants)
    values = generator.choice([-1.0, 1.0], (64, 2, 6, 6))
    report = census(path, data(tmp_path, values), input_range=(-1, 1), threads=1)
    assert report.totals["proven_dead"] >= 2
    assert report.totals["proven_always_on"] >= 2
    for relu in report.relus:
        assert relu.dead[relu.proven_dead].all()
        assert relu.always_on[relu.proven_always_on].all()


def test_a_model_of_fixed_batch_is_fed_whole_batches_and_the_rest_is_reported(tmp_path):
    report = census(convolution(tmp_path, [0, 0, 0], shape=(4, 2, 4, 4)), data(tmp_path, uniform(10)))
    assert (report.batch, report.samples, report.left_over) == (4, 8, 2)
    assert report.to_json()["totals"]["left_over"] == 2


def test_a_fixed_batch_refuses_another_size_and_too_little_data(tmp_path):
    path = convolution(tmp_path, [0, 0, 0], shape=(4, 2, 4, 4))
    with pytest.raises(UsageError, match="batches of 4 only"):
        census(path, data(tmp_path, uniform(10)), batch=2)
    with pytest.raises(InputError, match="the data have 3"):
        census(path, data(tmp_path, uniform(3)))


def test_features_of_a_two_dimensional_tensor_are_channels(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"], "gemm"), helper.make_node("Relu", ["g"], ["y"], "r")]
    path = saved(tmp_path / "mlp.onnx", nodes, ("n", 3), {"w": np.eye(3, 5), "b": [0, 0, 0, -1, 2]})
    relu = census(path, data(tmp_path, np.ones((6, 3)))).relus[0]
    assert relu.channels == 5
    assert relu.dead.tolist() == [False, False, False, True, False]
    # Two features have no weights at all: they are their bias for any input.
    assert relu.proven_dead.tolist() == [False, False, False, True, False]
    assert relu.proven_always_on.tolist() == [False, False, False, False, True]


def test_a_model_without_relus_has_an_empty_census(tmp_path):
    path = saved(tmp_path / "neg.onnx", [helper.make_node("Neg", ["x"], ["y"], "n")], ("n", 2, 4, 4), {})
    result = census(path, data(tmp_path, uniform())).to_json()
    assert result["relus"] == []
    assert result["totals"]["sparsity"] is None
    print_census(result)


def test_samples_are_spread_over_the_data(tmp_path):
    values = np.zeros((10, 2, 4, 4))
    values[5:] = 1
    report = census(convolution(tmp_path, [0, 0, 0]), data(tmp_path, values), samples=2)
    assert report.samples == 2
    assert report.relus[0].sparsity == 0.5


def test_a_uint8_input_is_bounded_by_its_bytes(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    from bundles import exported

    bundle = exported("digits", embed_preprocess=True)
    report = census(bundle, "digits", samples=10, threads=1)
    assert report.input_range.source == "uint8"
    assert report.input_range.rows_outside == 0
    assert report.totals["channels"] == 368


def test_the_reference_backend_counts_the_same(digits_bundle):
    counted = [
        census(digits_bundle, "digits", samples=4, backend=backend, threads=1).to_json()["totals"]
        for backend in ("onnxruntime-cpu", "reference")
    ]
    assert counted[0]["dead"] == counted[1]["dead"]
    assert counted[0]["sparsity"] == pytest.approx(counted[1]["sparsity"], abs=1e-4)


def test_a_compiled_backend_cannot_show_its_relus(digits_bundle):
    from relu_deploy.backends import probe

    if not probe("torch-compile").usable:
        pytest.skip("torch-compile is not usable: install a C++ compiler")
    with pytest.raises(Unsupported, match="inside a fused kernel"):
        census(digits_bundle, "digits", samples=4, backend="torch-compile")


# ---------------------------------------------------------------- the command


def test_the_command_answers_in_json_and_keeps_the_report_in_the_bundle(command, digits_copy):
    answer = command("census", digits_copy.path, "--data", "digits", "--samples", 20, "--threads", 1, "--json", "-")
    assert answer.code == 0
    assert next(iter(answer.json)) == "schema"
    assert answer.json["schema"] == "relu-deploy/census/1"
    assert answer.json["totals"]["samples"] == 20
    assert {"node", "channels", "dead", "always_on", "sparsity", "proven_dead"} <= set(answer.json["relus"][0])
    digits_copy.open(digits_copy.path).check_files()
    assert (digits_copy.path / "reports" / "census.json").is_file()


def test_the_command_prints_a_row_for_each_relu(command, digits_bundle, tmp_path):
    answer = command("census", digits_bundle.onnx, "--data", "digits", "--samples", 5, "--range=-1,3", "--threads", 1, "--quiet")
    assert answer.code == 2  # the bare graph does not know how pixels become its input
    path = convolution(tmp_path, [-1000, 0, 0.5])
    answer = command("census", path, "--data", data(tmp_path, uniform()), "--range", "0,1", "--quiet")
    assert answer.code == 0
    assert "1 dead (1 proven), 2 always on (1 proven)" in answer.stdout
    assert "x in 0 to 1" in answer.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "digitz"], "digitz"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        ([], "--data"),
        (["--data", "digits", "--range", "1"], "--range"),
        (["--data", "digits", "--range", "a,b"], "a,b"),
        (["--data", "digits", "--range", "3,1"], "3"),
        (["--data", "digits", "--range", "0,inf"], "inf"),
        (["--data", "digits", "--samples", "0"], "--samples"),
        (["--data", "digits", "--batch", "0"], "--batch"),
        (["--data", "digits", "--backend", "nosuch"], "nosuch"),
    ],
)
def test_bad_usage_is_exit_2_with_a_hint(command, digits_bundle, options, says):
    answer = command("census", digits_bundle.path, *options)
    assert answer.code == 2
    assert says in answer.stderr
    assert "\nhint: " in answer.stderr
    assert answer.stdout == ""


def test_a_graph_without_inputs_is_counted_on_its_constants(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["w"], ["y"], "relu")],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.array([[1, -2, 3], [4, -5, -6]], np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "none.npz")
    report = census(tmp_path / "m.onnx", tmp_path / "none.npz")
    assert report.relus[0].positive.tolist() == [2, 0, 1]


def test_rows_are_counted_along_the_axis_of_the_batch(tmp_path):
    """(steps, rows, features): as many rows as two batches and a half, and the counts of the same model with the rows in front."""
    values = np.random.default_rng(0).standard_normal((160, 3, 4))
    counts = []
    for shape, array in ((["n", 3, 4], values), ([3, "n", 4], values.transpose(1, 0, 2))):
        model = saved(tmp_path / "model.onnx", [helper.make_node("Relu", ["x"], ["y"], "r")], shape, {})
        report = census(model, data(tmp_path, array))
        counts.append((report.samples, report.batch, report.relus[0].positive.tolist()))
    assert counts[0] == counts[1] == (160, 64, (values > 0).sum((0, 2)).tolist())


@pytest.mark.parametrize("operator", ["Concat", "Slice"])
def test_a_tensor_without_elements_bounds_nothing(tmp_path, operator):
    """An empty constant behind the rows, and an empty piece of the rows behind them."""
    empty = helper.make_node("Slice", ["x", "start", "start"], ["e"], "slice")
    nodes = [
        *([empty] if operator == "Slice" else []),
        helper.make_node("Concat", ["x", "e"], ["c"], "concat", axis=0),
        helper.make_node("Relu", ["c"], ["y"], "r"),
    ]
    model = saved(tmp_path / "model.onnx", nodes, ["n", 4], {"e": np.zeros((0, 4))} if operator == "Concat" else {})
    if operator == "Slice":
        proto = onnx.load(model)
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "start"))
        onnx.save(proto, model)
    report = census(model, data(tmp_path, np.full((5, 4), 2)), input_range=(1, 3))
    assert report.relus[0].always_on.tolist() == [True] * 4
    # A part of the tensor could lie below 1 as far as the bounds know.
    assert not report.relus[0].proven_dead.any()


def test_a_relu_of_a_single_number_is_one_channel(tmp_path):
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], "greatest", keepdims=0),
        helper.make_node("Relu", ["m"], ["r"], "relu"),
        helper.make_node("Mul", ["x", "r"], ["y"], "scale"),
    ]
    path = saved(tmp_path / "m.onnx", nodes, (1, 3), {})
    (relu,) = census(path, data(tmp_path, [[-1, -2, -3], [1, 2, 3]])).relus
    # 0 and 3 are its results for the two rows.
    assert (relu.channels, relu.dead, relu.sparsity, float(relu.maximum.max())) == (1, 0, 0.5, 3.0)
