"""`--shape` gives the varying dimensions of any model their sizes, in every verb."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import relu_deploy


@pytest.fixture
def free(tmp_path):
    """A fully convolutional model whose batch, height and width vary."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    shape = ["n", 3, "h", "w_"]
    graph = helper.make_graph(
        nodes,
        "free",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, "h", "w_"])],
        [weight],
    )
    path = tmp_path / "free.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_every_verb_takes_the_sizes_of_varying_dimensions(free, command):
    shape = ["--shape", "x=2x3x8x10"]
    inspected = command("inspect", free, *shape, "--json", "-")
    assert inspected.code == 0, inspected.stderr
    # 2 × 4 × 8 × 10 outputs of 3 × 3 × 3 products each, two operations a product
    assert inspected.json["flops"] >= 2 * 4 * 8 * 10 * 27 * 2
    assert command("verify", free, *shape, "--quiet").code == 0
    np.savez("rows.npz", x=np.random.default_rng(1).standard_normal((4, 3, 8, 10)).astype(np.float32))
    assert command("census", free, *shape, "--data", "rows.npz", "--quiet").code == 0
    words = ["--backend", "onnxruntime-cpu", "--seconds", "0.05", "--threads", "1", "--quiet"]
    benched = command("bench", free, *shape, *words, "--json", "-")
    assert benched.code == 0, benched.stderr
    assert benched.json["runs"][0]["batch"] == 1


def test_an_export_keeps_the_shape_in_the_graph(free, command):
    made = command("export", free, "-o", "fixed.rdb", "--shape", "x=1x3x8x10", "--quiet")
    assert made.code == 0, made.stderr
    shape = onnx.load("fixed.rdb/model.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 8, 10]
    assert command("verify", "fixed.rdb", "--quiet").code == 0


def test_an_export_of_a_finished_graph_fixes_the_batch_and_nothing_else(free, command):
    made = command("export", free, "-o", "fixed.rdb", "--batch", "3", "--quiet")
    assert made.code == 0, made.stderr
    inputs, outputs = onnx.load("fixed.rdb/model.onnx").graph.input, onnx.load("fixed.rdb/model.onnx").graph.output
    assert [dim.dim_value or dim.dim_param for dim in inputs[0].type.tensor_type.shape.dim] == [3, 3, "h", "w_"]
    assert [dim.dim_value or dim.dim_param for dim in outputs[0].type.tensor_type.shape.dim] == [3, 4, "h", "w_"]
    again = command("export", "fixed.rdb/model.onnx", "-o", "other.rdb", "--batch", "1", "--quiet")
    assert again.code == 2
    assert "--batch 1: the graph fixes its batch at 3" in again.stderr


def test_a_fixed_batch_that_is_not_in_front_stays_where_it_is(tmp_path):
    nodes = [helper.make_node("Add", ["x", "state"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, "n", 8]) for name in ("x", "state", "y")]
    graph = helper.make_graph(nodes, "steps", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "steps.onnx")
    bundle = relu_deploy.export(str(tmp_path / "steps.onnx"), tmp_path / "steps.rdb", batch=2)
    specs = (*bundle.inputs, *bundle.outputs)
    assert [(spec.shape, spec.batch_axis) for spec in specs] == [((5, 2, 8), 1)] * 3


@pytest.mark.parametrize(
    "given", ["x=1x3x8", "x=1x4x8x8", "z=1x3x8x8", "x=1x3x8x8:int64"], ids=["rank", "fixed", "unknown", "type"]
)
@pytest.mark.parametrize("verb", ["inspect", "verify", "bench"])
def test_a_shape_that_does_not_fit_is_bad_usage(free, command, verb, given):
    refused = command(verb, free, "--shape", given, "--quiet")
    assert refused.code == 2
    assert refused.stderr.startswith("error: ")
    assert "hint: " in refused.stderr
