"""Operators that the reference evaluator does not have: a runtime computes them on the truth's operands, and hides no fault."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.verification.run import verify

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def info(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def saved(path, nodes, ends, weights=()):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(weights).items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *ends, tensors), opset_imports=opsets, ir_version=9), path)
    return path


COEFFICIENTS = [1e4, -1e4, 1.5e4, -1e4]


def regression(path, operator, coefficients=COEFFICIENTS, offset=1.0):
    """Sums of large products of nearly equal numbers, by ai.onnx.ml's LinearRegressor or by MatMul, between two Muls."""
    weights = {"small": np.float32(1e-3), "offset": np.float32(offset), "two": np.float32(2)}
    if operator == "LinearRegressor":
        scores = helper.make_node(
            operator, ["a"], ["s"], "scores", domain="ai.onnx.ml", coefficients=coefficients, intercepts=[0.0]
        )
    else:
        weights["w"] = np.float32(coefficients).reshape(4, 1)
        scores = helper.make_node("MatMul", ["a", "w"], ["s"], "scores")
    nodes = [
        helper.make_node("Mul", ["x", "small"], ["t"], "shrink"),
        helper.make_node("Add", ["t", "offset"], ["a"], "shift"),
        scores,
        helper.make_node("Mul", ["s", "two"], ["d"], "double"),
        helper.make_node("Relu", ["d"], ["y"], "relu"),
    ]
    return saved(path, nodes, ([info("x", ["n", 4])], [info("y", ["n", 1])]), weights)


PAIRS = [("LinearRegressor", "MatMul"), ("MatMul", "LinearRegressor"), ("LinearRegressor", "LinearRegressor")]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_an_operator_that_only_a_runtime_has_may_stand_for_a_standard_one(tmp_path, ours, theirs):
    other = regression(tmp_path / "other.onnx", theirs)
    report = verify(regression(tmp_path / "m.onnx", ours), against=str(other), samples=8)
    assert report.passed, report.to_json()
    assert report.unknown == (("scores", "ai.onnx.ml.LinearRegressor"),)
    assert [(name, output.passed) for name, output in report.backends[0].outputs.items()] == [("y", True)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    ("fault", "node"),
    [({"coefficients": [1e4, -1e4, -1.5e4, -1e4]}, "scores"), ({"offset": 1.001}, "shift")],
    ids=["inside", "before"],
)
def test_a_wrong_weight_inside_or_before_such_an_operator_is_found_at_its_node(tmp_path, ours, theirs, fault, node):
    right = regression(tmp_path / "right.onnx", theirs)
    report = verify(regression(tmp_path / "wrong.onnx", ours, **fault), against=str(right), samples=8)
    assert not report.passed
    assert not report.backends[0].outputs["y"].passed
    assert [fault.node for fault in report.backends[0].faults] == [node]


def test_operands_have_the_types_of_the_graph_and_results_are_computed_on_them(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=INT64),
        helper.make_node("Scaler", ["i"], ["s"], "scaler", domain="ai.onnx.ml", offset=[1.0, 2.0], scale=[3.0, 0.5]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, ([info("x", ["n", 2])], [info("y", ["n", 2])]))
    session = load(path, "reference", delegate="onnxruntime-cpu")
    y = session.evaluate({"x": np.array([[5.9, 7.1], [-4.0, 2.0]], np.float32)})["y"]
    assert y.dtype == np.float64
    # (5 - 1) x 3 and (7 - 2) / 2; a negative number and 0.
    np.testing.assert_array_equal(y, [[12, 2.5], [0, 0]])
    with pytest.raises(Unsupported, match=r"does not have the operators of ai\.onnx\.ml\.Scaler"):
        load(path, "reference")


def body_of(name, coefficients):
    node = helper.make_node(
        "LinearRegressor",
        ["x"],
        [f"{name}_s"],
        f"{name}_scores",
        domain="ai.onnx.ml",
        coefficients=coefficients,
        intercepts=[1.0],
    )
    relu = helper.make_node("Relu", [f"{name}_s"], [f"{name}_y"], f"{name}_relu")
    return helper.make_graph([node, relu], name, [], [info(f"{name}_y", ["n", 1])])


def test_such_an_operator_inside_a_body_is_verified_too(tmp_path):
    def branches(path, coefficient):
        then, other = body_of("a", [1.0, coefficient]), body_of("b", [3.0, 1.0])
        node = helper.make_node("If", ["condition"], ["y"], name="if", then_branch=then, else_branch=other)
        ends = [info("x", ["n", 2])], [info("y", ["n", 1])]
        return saved(path, [node], ends, {"condition": np.array(True)})

    right = branches(tmp_path / "right.onnx", 2.0)
    report = verify(right, samples=4)
    assert report.passed, report.to_json()
    assert {node for node, _ in report.unknown} == {"if/a_scores", "if/b_scores"}
    report = verify(branches(tmp_path / "wrong.onnx", 2.1), against=str(right), samples=4)
    assert not report.passed
    assert report.first_divergence == "if/a_scores"


def test_a_graph_of_nothing_but_such_operators_is_refused_in_words_unless_another_is_its_truth(tmp_path):
    def scaler(name, scale):
        node = helper.make_node("Scaler", ["x"], ["y"], "scaler", domain="ai.onnx.ml", offset=[0.0], scale=[scale])
        return saved(tmp_path / name, [node], ([info("x", ["n", 2])], [info("y", ["n", 2])]))

    right = scaler("right.onnx", 2.0)
    with pytest.raises(InputError, match="nothing can be verified"):
        verify(right)
    assert verify(right, against=str(right)).passed
    assert verify(scaler("wrong.onnx", 2.01), against=str(right)).first_divergence == "scaler"


def test_an_operator_that_nobody_has_is_named_without_the_files_that_stand_for_it(tmp_path, capfd):
    node = helper.make_node("Foo", ["r"], ["y"], "foo", domain="com.microsoft")
    path = saved(
        tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["r"]), node], ([info("x", ["n", 2])], [info("y", ["n", 2])])
    )
    standard = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    plain = saved(tmp_path / "plain.onnx", standard, ([info("x", ["n", 2])], [info("y", ["n", 2])]))
    with pytest.raises(Unsupported, match=r"the operator of node 'foo' \(com\.microsoft\.Foo\)") as error:
        verify(plain, against=str(path))
    assert "tmp" not in error.value.message
    assert "--backend" in error.value.hint
    with pytest.raises(Unsupported, match="onnxruntime-cpu cannot run m"):
        verify(path, against=str(plain))
    # The runtime logs nothing of its own beside the error.
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- graphs that ONNX Runtime saved


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    """Two convolutions with Relus, their mean and a linear layer."""
    generator = np.random.default_rng(0)
    nodes, weights, source = [], {}, "x"
    for layer, (channels, before) in enumerate(((32, 3), (32, 32))):
        weights[f"w{layer}"] = generator.standard_normal((channels, before, 3, 3)).astype(np.float32)
        weights[f"b{layer}"] = generator.standard_normal(channels).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"w{layer}", f"b{layer}"], [f"c{layer}"], f"conv{layer}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"], f"relu{layer}"))
        source = f"r{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["p"], "pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["f", "w"], ["y"], "linear"))
    weights["w"] = generator.standard_normal((32, 10)).astype(np.float32)
    path = tmp_path_factory.mktemp("blocked") / "plain.onnx"
    return saved(path, nodes, ([info("x", ["n", 3, 12, 12])], [info("y", ["n", 10])]), weights)


@pytest.fixture(scope="module")
def blocked(convolutions):
    """The same as ONNX Runtime saves it at its highest level, with convolutions of blocked channels."""
    path = convolutions.with_name("blocked.onnx")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(convolutions), settings, providers=["CPUExecutionProvider"])
    if not any(node.domain == "com.microsoft.nchwc" for node in onnx.load(path).graph.node):
        pytest.skip("ONNX Runtime does not block channels on this processor (it does on x86-64 with AVX2)")
    return path


@pytest.mark.parametrize("seed", range(3))
def test_no_node_of_a_graph_with_blocked_convolutions_is_blamed(convolutions, blocked, seed):
    report = verify(blocked, against=str(convolutions), samples=2, seed=seed)
    assert "com.microsoft.nchwc.Conv" in {operator for _, operator in report.unknown}
    assert report.passed, report.to_json()
    assert report.first_divergence is None


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_a_weight_times_minus_one_and_a_half_in_such_a_graph_fails(convolutions, blocked, tmp_path, operator):
    model = onnx.load(blocked)
    node = [node for node in model.graph.node if node.op_type == operator][-1]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    changed = numpy_helper.to_array(weight).copy()
    changed[:, 1] *= -1.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    report = verify(tmp_path / "wrong.onnx", against=str(convolutions), samples=2)
    assert not report.passed
    (fault,) = report.backends[0].faults
    assert fault.node == node.name or node.name in fault.region


def test_a_dynamically_quantized_graph_that_onnx_runtime_fused_is_judged_as_8_bits(tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    def network(name, factor=1.0):
        generator = np.random.default_rng(0)
        weights = {f"w{k}": generator.standard_normal((32, 32)).astype(np.float32) for k in (1, 2)}
        weights |= {f"b{k}": generator.standard_normal(32).astype(np.float32) for k in (1, 2)}
        weights["w2"][:, 1] *= factor
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["m1"], "first"),
            helper.make_node("Add", ["m1", "b1"], ["a1"], "bias1"),
            helper.make_node("Relu", ["a1"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "w2"], ["m2"], "second"),
            helper.make_node("Add", ["m2", "b2"], ["y"], "bias2"),
        ]
        return saved(tmp_path / name, nodes, ([info("x", ["n", 32])], [info("y", ["n", 32])]), weights)

    def fused(path):
        quantize_dynamic(str(path), str(path.with_suffix(".int8.onnx")))
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.optimized_model_filepath = str(path.with_suffix(".fused.onnx"))
        onnxruntime.InferenceSession(str(path.with_suffix(".int8.onnx")), settings, providers=["CPUExecutionProvider"])
        return path.with_suffix(".fused.onnx")

    right = network("right.onnx")
    made = fused(right)
    assert "DynamicQuantizeMatMul" in {node.op_type for node in onnx.load(made).graph.node}
    report = verify(made, against=str(right), samples=8)
    assert report.precision == "int8"
    assert report.passed, report.to_json()
    assert not verify(fused(network("wrong.onnx", -1.5)), against=str(right), samples=8).passed
