"""Weights that the graph transposes or reshapes are constants of the layers that read them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.graph import save_model
from relu_deploy.graph.rewriting.computed_weights import fold_computed_weights
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.run import optimize_bundle

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node, value = helper.make_node, helper.make_tensor_value_info
TABLE = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)


def model_of(nodes, inputs, **constants):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", FLOAT, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tied():
    """A last layer that shares the table of the embedding."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"], "embedding"),
        node("Relu", ["e"], ["r"], "relu"),
        node("Transpose", ["table"], ["t"], "turned"),
        node("MatMul", ["r", "t"], ["y"], "head"),
    ]
    return model_of(nodes, [value("ids", INT64, ["n", 5])], table=TABLE)


def folded(proto, folder, feeds):
    """Return the folded graph, once it is known to compute the same."""
    made = fold_computed_weights(ir.from_proto(proto))
    onnx.save(proto, folder / "before.onnx")
    save_model(made, folder / "after.onnx")
    before, after = (load(folder / f"{name}.onnx", "reference").run(feeds)["y"] for name in ("before", "after"))
    np.testing.assert_array_equal(before, after)
    return made


def test_a_shared_table_stays_for_the_embedding_and_is_a_constant_of_the_last_layer(tmp_path):
    proto = tied()
    made = folded(proto, tmp_path, {"ids": np.arange(10).reshape(2, 5)})
    assert [each.op_type for each in made.graph] == ["Gather", "Relu", "MatMul"]
    assert set(made.graph.initializers) == {"table", "t/folded"}
    assert [each.op_type for each in ir.from_proto(proto).graph].count("Transpose") == 1


def test_reshapes_in_a_row_are_folded_and_shared_by_two_layers(tmp_path):
    nodes = [
        node("Reshape", ["w", "sizes"], ["a"], "reshape"),
        node("Unsqueeze", ["a", "first"], ["b"], "unsqueeze"),
        node("Squeeze", ["b", "first"], ["c"], "squeeze"),
        node("Transpose", ["c"], ["d"], "turn", perm=[1, 0]),
        node("MatMul", ["x", "d"], ["u"], "one"),
        node("MatMul", ["u", "d"], ["y"], "two"),
    ]
    constants = {"w": TABLE[:8].reshape(4, 16), "sizes": np.array([8, -1]), "first": np.array([0])}
    made = folded(model_of(nodes, [value("x", FLOAT, ["n", 8])], **constants), tmp_path, {"x": TABLE})
    assert [each.name for each in made.graph] == ["one", "two"]
    assert made.graph.node(0).inputs[1] is made.graph.node(1).inputs[1]


@pytest.mark.parametrize("kind", ["fed", "computed", "output"])
def test_what_is_no_constant_or_read_elsewhere_stays(tmp_path, kind):
    source = {"fed": "x", "computed": "m", "output": "w"}[kind]
    nodes = [
        node("Mul", ["w", "w"], ["m"], "mul"),
        node("Transpose", [source], ["t"], "turn"),
        node("MatMul", ["x", "t"], ["y"], "mm"),
    ]
    proto = model_of(nodes, [value("x", FLOAT, [8, 8])], w=TABLE[:8])
    if kind == "output":
        proto.graph.output.append(value("t", FLOAT, [8, 8]))
    made = folded(proto, tmp_path, {"x": TABLE[:8]})
    assert "Transpose" in [each.op_type for each in made.graph]
    assert ("t/folded" in made.graph.initializers) == (kind == "output")


def test_a_last_layer_with_a_shared_table_is_quantized(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    onnx.save(tied(), tmp_path / "m.onnx")
    np.savez(tmp_path / "m.npz", ids=np.random.default_rng(1).integers(0, 20, (40, 5)))
    options = OptimizeOptions(calibration=str(tmp_path / "m.npz"), threads=1, measure_speed=False)
    report = optimize_bundle(tmp_path / "m.onnx", "cpu", "int8", out=tmp_path / "m.rdb", options=options)
    assert report.passed
    assert list(report.fallbacks) == []
    assert report.drop < 0.05
