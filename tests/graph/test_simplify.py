"""Batch norms in the kernels before them, and means over space as pools: the same answers under the same names."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from small import graph_of

from relu_deploy.backends import load
from relu_deploy.graph import save_model
from relu_deploy.graph.rewriting.simplify import fold_batch_norms, pool_spatial_means


def evaluate(model, x, folder, wide=True):
    save_model(model, folder / "m.onnx")
    onnx.checker.check_model(str(folder / "m.onnx"), full_check=True)
    return load(folder / "m.onnx", "reference").evaluate({"x": x}, wide=wide)


def with_norm(operator, weights, bias, seed, **attributes):
    generator = np.random.default_rng(seed)
    channels = 6
    constants = [("w", weights)] + ([("b", bias)] if bias is not None else [])
    for name in ("scale", "shift", "mean", "variance"):
        constants.append((name, generator.uniform(0.2, 2, channels).astype(np.float32)))
    nodes = [
        helper.make_node(operator, ["x", "w"] + ([] if bias is None else ["b"]), ["made"], "kernel", **attributes),
        helper.make_node("BatchNormalization", ["made", "scale", "shift", "mean", "variance"], ["normal"], "norm", epsilon=1e-3),
        helper.make_node("Relu", ["normal"], ["y"], "relu"),
    ]
    shape = [2, 4] if operator == "Gemm" else [2, 4, 5, 5]
    return graph_of(nodes, [("x", shape)], [("y", None)], constants), generator.standard_normal(shape).astype(np.float32)


SHAPES = {
    "Conv": ((6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "ConvTranspose": ((4, 6, 3, 3), {}),
    "Gemm": ((4, 6), {}),
}


@given(st.sampled_from(sorted(SHAPES)), st.booleans(), st.integers(0, 1000))
def test_a_batch_norm_is_folded_into_the_kernel_before_it(tmp_path_factory, operator, has_bias, seed):
    folder = tmp_path_factory.mktemp("fold")
    shape, attributes = SHAPES[operator]
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal(shape).astype(np.float32)
    bias = generator.standard_normal(6).astype(np.float32) if has_bias else None
    model, x = with_norm(operator, weights, bias, seed, **attributes)
    folded = fold_batch_norms(model)
    assert [node.op_type for node in folded.graph] == [operator, "Relu"]
    assert [node.name for node in folded.graph] == ["kernel", "relu"]
    assert folded.graph[1].inputs[0].name == "normal"
    true, got = (evaluate(one, x, folder)["y"] for one in (model, folded))
    # The folded weights were rounded once, the operands of the norm never.
    np.testing.assert_allclose(got, true, rtol=1e-5, atol=1e-5 * np.abs(true).max())


def test_a_batch_norm_whose_kernel_somebody_else_reads_stays():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["made"], "kernel"),
        helper.make_node("BatchNormalization", ["made", *"abcd"], ["normal"], "norm"),
        helper.make_node("Add", ["made", "normal"], ["y"], "add"),
    ]
    constants = [("w", np.ones((2, 2, 1, 1), np.float32))] + [(name, np.ones(2, np.float32)) for name in "abcd"]
    model = graph_of(nodes, [("x", [1, 2, 3, 3])], [("y", None)], constants)
    assert [node.op_type for node in fold_batch_norms(model).graph] == ["Conv", "BatchNormalization", "Add"]


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_space_becomes_a_pool_of_the_same_name(keepdims, tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("ReduceMean", ["a", "axes"], ["y"], "mean", keepdims=keepdims),
    ]
    model = graph_of(nodes, [("x", [2, 3, 4, 5])], [("y", None)], [("axes", np.int64([2, 3]))])
    pooled = pool_spatial_means(model)
    assert [node.op_type for node in pooled.graph] == ["Relu", "GlobalAveragePool", *["Flatten"] * (1 - keepdims)]
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(evaluate(pooled, x, tmp_path)["y"], evaluate(model, x, tmp_path)["y"], rtol=1e-12)


def test_a_mean_over_channels_stays():
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean")]
    model = graph_of(nodes, [("x", [2, 3, 4, 5])], [("y", None)], [("axes", np.int64([1, 2]))])
    assert [node.op_type for node in pool_spatial_means(model).graph] == ["ReduceMean"]
