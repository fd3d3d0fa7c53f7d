"""Tree ensembles keep millions of numbers in attributes: shape inference gets none of them, and the graph keeps them all."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.weights import LONGEST_TABLE, to_proto_without_weights

TREES = LONGEST_TABLE


def forest(path):
    """Write a regressor of many trees with one decision each: x0 <= tree → 1, else 2."""
    ids = [tree for tree in range(TREES) for _ in range(3)]
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        "forest",
        domain="ai.onnx.ml",
        n_targets=2,
        nodes_treeids=ids,
        nodes_nodeids=[0, 1, 2] * TREES,
        nodes_featureids=[0] * 3 * TREES,
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * TREES,
        nodes_values=[float(number) for tree in range(TREES) for number in (tree, 0, 0)],
        nodes_truenodeids=[1, 0, 0] * TREES,
        nodes_falsenodeids=[2, 0, 0] * TREES,
        target_treeids=[tree for tree in range(TREES) for _ in range(2)],
        target_nodeids=[1, 2] * TREES,
        target_ids=[0, 1] * TREES,
        target_weights=[1.0, 2.0] * TREES,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_shape_inference_gets_no_long_table_and_the_graph_keeps_all(tmp_path):
    path = forest(tmp_path / "forest.onnx")
    model = load_model(path)
    light = to_proto_without_weights(model)
    lengths = {attribute.name: len(attribute.ints) + len(attribute.floats) for attribute in light.graph.node[0].attribute}
    assert max(lengths.values()) == 1
    assert [str(dim) for dim in model.graph.outputs[0].shape] == ["batch", "2"]
    save_model(model, tmp_path / "again.onnx")
    rows = np.float32([[-1, 0, 0], [10.5, 0, 0]])
    for file in (path, tmp_path / "again.onnx"):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": rows})[0].tolist() == [[TREES, 0], [TREES - 11, 22]]
