"""Long sums of operators that divide by one, and normalizations of numbers far from 0."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.verification.run import verify

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
LONG, CONTRIB = 100_000, "com.microsoft"


def saved(path, nodes, shape, weights=(), opset=17):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in (("x", shape), ("y", None))]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(weights).items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def node(operator, inputs, **attributes):
    domain = CONTRIB if operator.startswith("Skip") else ""
    return helper.make_node(operator, inputs, ["y"], "sum", domain=domain, **attributes)


SUMS = {
    "ReduceLogSum": (node("ReduceLogSum", ["s"], axes=[1]), 2 * LONG),
    "LpNormalization 1": (node("LpNormalization", ["s"], axis=1, p=1), LONG),
    "LpNormalization 2": (node("LpNormalization", ["s"], axis=1, p=2), LONG),
    "GlobalLpPool": (node("GlobalLpPool", ["u"], p=1), LONG),
    "SimplifiedLayerNormalization": (node("SimplifiedLayerNormalization", ["s", "ones"], axis=-1), LONG),
    "SkipSimplifiedLayerNormalization": (node("SkipSimplifiedLayerNormalization", ["s", "x", "ones"]), 4096),
}


def network(path, kind, scale=1.0):
    last, terms = SUMS[kind]
    nodes = [helper.make_node("Mul", ["x", "scale"], ["m"], "scaled"), helper.make_node("Add", ["m", "one"], ["s"], "shifted")]
    nodes += [helper.make_node("Unsqueeze", ["s", "axis"], ["u"])] if "u" in last.input else []
    weights = {"scale": np.float32(scale), "one": np.float32(1e-3), "axis": np.array([1]), "ones": np.ones(terms, np.float32)}
    read = {name for each in (*nodes, last) for name in each.input}
    return saved(path, [*nodes, last], ["n", terms], {name: array for name, array in weights.items() if name in read})


@pytest.mark.parametrize("kind", SUMS)
def test_a_long_sum_beside_a_dominant_term_is_no_fault_and_a_wrong_factor_before_it_is(tmp_path, kind):
    x = np.random.default_rng(0).random((2, SUMS[kind][1])).astype(np.float32)
    x[:, 5] = 1e4
    right = network(tmp_path / "right.onnx", kind)
    assert verify(right, feeds={"x": x}).passed
    report = verify(network(tmp_path / "wrong.onnx", kind, 1.01), feeds={"x": x}, against=str(right))
    assert not report.passed
    assert report.first_divergence == "scaled"


SCALE = {"s": np.ones(4, np.float32)}
NORMALIZATIONS = {
    "InstanceNormalization": (node("InstanceNormalization", ["x", "s", "s"]), [2, 4, 32, 64], SCALE),
    "LayerNormalization": (node("LayerNormalization", ["x", "s"]), [2, 4, 4096], {"s": np.ones(4096, np.float32)}),
    "MeanVarianceNormalization": (node("MeanVarianceNormalization", ["x"]), [2, 4, 32, 64], {}),
}


@pytest.mark.parametrize("mean", [0, 100, 1000])
@pytest.mark.parametrize("operator", NORMALIZATIONS)
def test_the_normalization_of_numbers_far_from_0_is_no_fault(tmp_path, operator, mean):
    last, shape, weights = NORMALIZATIONS[operator]
    x = (np.random.default_rng(0).standard_normal(shape) + mean).astype(np.float32)
    assert verify(saved(tmp_path / "m.onnx", [last], shape, weights), feeds={"x": x}).passed


def test_a_variance_in_one_pass_that_cancels_is_a_fault_of_the_runtime(tmp_path):
    """ONNX Runtime computes GroupNormalization as the mean of the squares less the square of the mean, in float32."""
    shape, last = [2, 4, 32, 64], node("GroupNormalization", ["x", "s", "s"], num_groups=2)
    path = saved(tmp_path / "m.onnx", [last], shape, SCALE, opset=21)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert verify(path, feeds={"x": x}).passed
    (report,) = verify(path, feeds={"x": x + np.float32(1000)}).backends
    # Numbers of variance 1 are off by half of their deviation: not the rounding of any sum of 4096 terms.
    assert report.outputs["y"].max_abs > 0.1
    assert [(fault.node, fault.where) for fault in report.faults] == [("sum", "onnxruntime-cpu")]


@pytest.mark.parametrize(
    ("last", "terms"),
    [
        (node("LayerNormalization", ["x", "s"]), 15),
        (node("InstanceNormalization", ["x", "s", "s"]), 15),
        (node("GroupNormalization", ["x", "s", "s"], num_groups=2), 30),
    ],
    ids=["layer", "instance", "group"],
)
def test_the_least_favorable_order_is_that_of_two_float32_sums_one_term_after_the_other(last, terms):
    import onnx_ir as ir

    from relu_deploy.verification.judging.normalization_order import shift_of_order

    x = (np.random.default_rng(0).standard_normal((2, 4, 15)) + 1000).astype(np.float32)
    expected = []
    for row in x.reshape(-1, terms):
        narrow = row - summed(row) / np.float32(terms)
        in_order = narrow / np.sqrt(summed(narrow * narrow) / np.float32(terms) + np.float32(1e-5))
        wide = row.astype(np.float64) - row.mean(dtype=np.float64)
        expected.append(in_order - wide / np.sqrt((wide**2).mean() + 1e-5))
    shift = shift_of_order(ir.serde.deserialize_node(last), x, 21)
    np.testing.assert_allclose(shift, np.reshape(expected, x.shape), rtol=1e-5, atol=1e-12)
    assert np.abs(shift).max() > 1e-6


def summed(terms):
    total = np.float32(0)
    for term in sorted(terms, key=lambda term: -abs(term)):
        total += term
    return total


def transformed(path, points, opset, factor=1.0, onesided=0):
    """A discrete Fourier transform of rows of `points` numbers, times a factor, and a Relu."""
    attributes = {"axis": 1} if opset < 20 else {}
    nodes = [
        helper.make_node("DFT", ["x"] if opset < 20 else ["x", "", "axis"], ["d"], "dft", onesided=onesided, **attributes),
        helper.make_node("Mul", ["d", "factor"], ["m"], "scale"),
        helper.make_node("Relu", ["m"], ["y"], "relu"),
    ]
    stored = {"factor": np.float32(factor), **({"axis": np.array(1)} if opset >= 20 else {})}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, points, 1 if onesided else 2])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("points", [15, 64, 400, 1001])
def test_angles_of_a_transform_may_be_rounded_to_float32(tmp_path, points, opset, onesided):
    x = 100 * np.random.default_rng(points).standard_normal((2, points, 1 if onesided else 2)).astype(np.float32)
    right = transformed(tmp_path / "right.onnx", points, opset, onesided=onesided)
    report = verify(right, feeds={"x": x})
    assert report.passed, report.to_json()
    wrong = transformed(tmp_path / "wrong.onnx", points, opset, 1.0005, onesided)
    report = verify(wrong, feeds={"x": x}, against=str(right))
    assert report.first_divergence == "scale"
