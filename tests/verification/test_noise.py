"""The noise of correct arithmetic where one random draw does not measure it: few numbers, long sums, faint sigmoids, decisions."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.verification.run import verify

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


def saved(path, nodes, inputs, outputs, weights=()):
    values = [[helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in each] for each in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(weights).items()]
    graph = helper.make_graph(nodes, "graph", *values, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def classifier(path, logits, operator="Softmax"):
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node(operator, ["r"], ["y"], name="head", axis=-1)]
    return saved(path, nodes, [("x", FLOAT, ["n", logits])], [("y", FLOAT, ["n", logits])])


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("logits", [6625, 50257])
def test_a_sum_of_many_terms_beside_a_dominant_one_is_no_fault(tmp_path, logits, operator):
    x = np.random.default_rng(0).uniform(0, 1.5, (4, logits)).astype(np.float32)
    x[:, 5] = 19
    assert verify(classifier(tmp_path / "m.onnx", logits, operator), feeds={"x": x}).passed


def test_a_wrong_temperature_before_a_long_sum_is_a_fault(tmp_path):
    def model(name, scale):
        nodes = [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Mul", ["r", "t"], ["s"], name="scale"),
            helper.make_node("Softmax", ["s"], ["y"], axis=-1),
        ]
        ends = [("x", FLOAT, ["n", 18710])], [("y", FLOAT, ["n", 18710])]
        return saved(tmp_path / name, nodes, *ends, {"t": np.float32(scale)})

    x = np.random.default_rng(0).uniform(0, 1.5, (4, 18710)).astype(np.float32)
    x[:, 5] = 19
    report = verify(model("wrong.onnx", 1.01), feeds={"x": x}, against=str(model("right.onnx", 1.0)))
    assert not report.passed
    assert report.first_divergence == "scale"


def scores(path, offset):
    """A Sigmoid of numbers far below 0, as the scores of an empty picture, with a Relu that multiplies them."""
    nodes = [
        helper.make_node("Add", ["x", "offset"], ["logits"], name="bias"),
        helper.make_node("Sigmoid", ["logits"], ["s"], name="sigmoid"),
        helper.make_node("Mul", ["s", "x"], ["m"], name="mul"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
    ]
    ends = [("x", FLOAT, ["n", 64])], [("s", FLOAT, ["n", 64]), ("r", FLOAT, ["n", 64])]
    return saved(path, nodes, *ends, {"offset": np.float32(offset)})


@pytest.mark.parametrize("offset", [-6, -14])
def test_the_error_of_a_sigmoid_by_tanh_is_no_fault_however_small_its_result(tmp_path, offset):
    # ONNX Runtime 1.32 gives 2.4e-6 with an error of 1.2e-7, which is 1e6 roundings of float32.
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    assert verify(scores(tmp_path / "m.onnx", offset), feeds={"x": x}).passed


def test_a_wrong_bias_before_a_faint_sigmoid_is_a_fault(tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    right = scores(tmp_path / "right.onnx", -14)
    report = verify(scores(tmp_path / "wrong.onnx", -14.01), feeds={"x": x}, against=str(right))
    assert not report.passed
    assert report.first_divergence == "bias"


def faint_exponentials(path, operator, factor=1.0):
    domain = "com.microsoft" if operator == "QuickGelu" else ""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["m"], name="mul"),
        helper.make_node(operator, ["m"], ["y"], name="activation", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 64])],
        [numpy_helper.from_array(np.float32(factor), "factor")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("operator", "center", "width"), [("Elu", 0, 1e-6), ("Selu", 0, 1e-4), ("Celu", 0, 1e-3), ("QuickGelu", -8, 1)]
)
def test_an_exponential_computed_as_it_is_written_is_no_fault_and_a_wrong_factor_is(tmp_path, operator, center, width):
    x = np.random.default_rng(0).normal(center, width, (8, 64)).astype(np.float32)
    right = faint_exponentials(tmp_path / "right.onnx", operator)
    assert verify(right, feeds={"x": x}).passed
    report = verify(faint_exponentials(tmp_path / "wrong.onnx", operator, 1.5), feeds={"x": x}, against=str(right))
    assert not report.passed
    assert report.first_divergence == "mul"


def decisions(path, scale=1e5):
    """Indices of a sort, rounded numbers, a Relu of integers, and a float tensor that depends on it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("TopK", ["r", "k"], ["v", "i"], name="sort"),
        helper.make_node("Mul", ["m", "scale"], ["t"]),
        helper.make_node("Cast", ["t"], ["c"], to=INT),
        helper.make_node("Relu", ["c32"], ["c_relu"], name="integer_relu"),
        helper.make_node("Cast", ["c_relu"], ["y"], to=FLOAT),
    ]
    nodes.insert(5, helper.make_node("Cast", ["c"], ["c32"], to=TensorProto.INT32))
    weights = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    weights[:, 10] = weights[:, 11]
    ends = [("x", FLOAT, ["n", 16])], [("i", INT, ["n", 64]), ("c_relu", TensorProto.INT32, ["n", 64]), ("y", FLOAT, ["n", 64])]
    return saved(path, nodes, *ends, {"w": weights, "k": np.array([64]), "scale": np.float32(scale)})


@pytest.mark.parametrize("seed", range(3))
def test_indices_and_rounded_numbers_that_tie_within_the_noise_are_no_faults(tmp_path, seed):
    x = np.random.default_rng(seed).standard_normal((64, 16)).astype(np.float32)
    report = verify(decisions(tmp_path / "m.onnx"), feeds={"x": x})
    assert report.passed, report.to_json()["backends"][0]["outputs"]


def test_a_cast_to_integers_is_no_fault_of_the_graph(tmp_path):
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    right = decisions(tmp_path / "right.onnx")
    model = onnx.load(right)
    cast = next(node for node in model.graph.node if node.output[0] == "c")
    # With another name the tensor has no counterpart in the truth, and is not taken for a copy of the number before it.
    cast.output[0] = "other"
    next(node for node in model.graph.node if node.input[0] == "c").input[0] = "other"
    onnx.save(model, tmp_path / "renamed.onnx")
    report = verify(tmp_path / "renamed.onnx", feeds={"x": x}, against=str(right))
    assert report.passed, report.first_divergence


def test_integers_that_differ_beyond_ties_are_faults_and_stay_valid_json(tmp_path):
    import json

    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    right, wrong = decisions(tmp_path / "right.onnx", 10), decisions(tmp_path / "wrong.onnx", 11)
    report = verify(wrong, feeds={"x": x}, against=str(right))
    outputs = report.backends[0].outputs
    assert outputs["i"].passed
    assert not outputs["c_relu"].passed
    assert "integers differ" in outputs["c_relu"].reason
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["backends"][0]["relus"][1]["passed"] is False


def test_one_number_of_a_float16_graph_is_not_refused_by_chance(tmp_path):
    from relu_deploy.graph import load_model, save_model
    from relu_deploy.graph.quantization.cast_precision import cast_model, simulated

    refused = []
    for seed in range(24):
        generator = np.random.default_rng(seed)
        first, second = generator.standard_normal((32, 64)) / 6, generator.standard_normal((64, 1)) / 8
        nodes = [
            helper.make_node("MatMul", ["x", "a"], ["m"]),
            helper.make_node("Relu", ["m"], ["r"]),
            helper.make_node("MatMul", ["r", "b"], ["y"]),
        ]
        weights = {"a": first.astype(np.float32), "b": second.astype(np.float32)}
        right = saved(tmp_path / "right.onnx", nodes, [("x", FLOAT, ["n", 32])], [("y", FLOAT, ["n", 1])], weights)
        save_model(simulated(cast_model(load_model(right), "float16").model), tmp_path / "half.onnx")
        x = generator.standard_normal((1, 32)).astype(np.float32)
        report = verify(tmp_path / "half.onnx", feeds={"x": x}, against=str(right), optimization="basic")
        refused += [] if report.passed else [seed]
    # One draw of noise for one number would refuse (2 / pi) atan(1 / 4), every sixth.
    assert refused == []


def test_sizes_that_are_added_have_no_rounding_and_stay_integers():
    from relu_deploy.verification.judging.noise import LargeRounding

    sizes = [np.array([24]), np.array([2])]
    for value, size in zip(LargeRounding("int8", 0, 4.0).operands("Add", sizes, [False, False]), sizes, strict=True):
        assert value.dtype == np.int64
        assert np.array_equal(value, size)
    numbers = [np.array([24.0, 3.0]), np.array([2.0, 5.0])]
    rounded = LargeRounding("int8", 0, 4.0).operands("Add", numbers, [False, False])
    assert all((one != other).any() for one, other in zip(rounded, numbers, strict=True))


def test_a_layer_in_8_bits_behind_which_sizes_are_computed_is_verified(tmp_path):
    """TorchScript computes the parts of a chunk as (size + 2) / 3, which is 8 of 24 only for integers."""
    from relu_deploy.optimization.options import OptimizeOptions
    from relu_deploy.optimization.run import optimize_bundle

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["size"]),
        helper.make_node("Add", ["size", "two"], ["more"]),
        helper.make_node("Div", ["more", "three"], ["third"]),
        helper.make_node("Slice", ["r", "zero", "third", "last"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["t"], name="fc2"),
        helper.make_node("Greater", ["t", "half"], ["y"]),
    ]
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((8, 24)).astype(np.float32), "v": random.standard_normal((8, 5)).astype(np.float32)}
    weights |= {"last": np.array([-1]), "two": np.array([2]), "three": np.array([3]), "zero": np.array([0])}
    weights |= {"half": np.float32(0.5)}
    ends = [("x", FLOAT, ["n", 8])], [("t", FLOAT, ["n", 5]), ("y", TensorProto.BOOL, ["n", 5])]
    path = saved(tmp_path / "m.onnx", nodes, *ends, weights)
    np.savez(tmp_path / "rows.npz", x=random.standard_normal((32, 8)).astype(np.float32))
    options = OptimizeOptions(calibration=str(tmp_path / "rows.npz"), threads=1, measure_speed=False)
    assert optimize_bundle(path, "cpu", "int8", out=tmp_path / "out.rdb", options=options).passed


def normalized_in_halves(path, factor=1.0):
    """x - mean over the root of the mean of its squares, in float16, which ends at 65,504."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["c"], name="center"),
        helper.make_node("Mul", ["c", "c"], ["squares"], name="square"),
        helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Div", ["c", "deviation"], ["d"], name="divide"),
        helper.make_node("Mul", ["d", "factor"], ["m"], name="scale"),
        helper.make_node("Relu", ["m"], ["y"], name="relu"),
    ]
    ends = [("x", TensorProto.FLOAT16, ["n", 16])], [("y", TensorProto.FLOAT16, ["n", 16])]
    return saved(path, nodes, *ends, {"factor": np.float16(factor)})


@pytest.mark.parametrize("size", [1, 1000])
def test_squares_beyond_the_range_of_float16_hide_no_fault(tmp_path, size):
    x = (size * np.random.default_rng(0).standard_normal((4, 16))).astype(np.float16)
    right = normalized_in_halves(tmp_path / "right.onnx")
    # ONNX Runtime computes halves in float32 on the CPU, where nothing overflows.
    assert verify(right, feeds={"x": x}).passed
    report = verify(normalized_in_halves(tmp_path / "wrong.onnx", 1.05), feeds={"x": x}, against=str(right))
    assert not report.passed
    assert report.first_divergence == "scale"


def test_a_runtime_whose_squares_overflow_is_at_fault(tmp_path):
    """The reference evaluator in the graph's own types rounds every square to float16: the answer is 0 instead of about 1."""
    x = (1000 * np.random.default_rng(0).standard_normal((4, 16))).astype(np.float16)
    report = verify(normalized_in_halves(tmp_path / "m.onnx"), ["reference"], feeds={"x": x})
    assert not report.passed
    assert not report.backends[0].outputs["y"].passed
