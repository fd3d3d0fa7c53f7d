"""A node on another execution provider is a fall-back, unless all that it computes is shapes."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.backends.onnxruntime.placement import nodes_elsewhere, require_provider
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported

CUDA = "CUDAExecutionProvider"
SHAPES = ("shape", "batch", "sizes")


@pytest.fixture
def bundle(tmp_path):
    """A graph that flattens its input by its own batch size, then adds and keeps what is positive."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "zero"], ["b"], name="batch"),
        helper.make_node("Concat", ["b", "rest"], ["to"], name="sizes", axis=0),
        helper.make_node("Reshape", ["x", "to"], ["flat"], name="flatten"),
        helper.make_node("Add", ["flat", "one"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu"),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([-1]), "one": np.float32(1)}
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["n", 2, 3])],
        [info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return Bundle.open(tmp_path / "m.onnx")


class Placed:
    """What a session says of its placement: the nodes named are on the CPU, with those that ONNX Runtime added."""

    def __init__(self, bundle, on_cpu, added=()):
        nodes = [SimpleNamespace(name=node.name, op_type=node.op_type) for node in onnx.load(bundle.onnx).graph.node]
        here = [node for node in nodes if node.name in on_cpu] + [SimpleNamespace(name="", op_type=each) for each in added]
        self.parts = [(CUDA, [node for node in nodes if node.name not in on_cpu]), ("CPUExecutionProvider", here)]

    def get_providers(self):
        return [CUDA, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        return [SimpleNamespace(ep_name=name, get_nodes=lambda nodes=nodes: nodes) for name, nodes in self.parts if nodes]


def test_shape_arithmetic_on_the_cpu_is_no_fall_back(bundle):
    session = Placed(bundle, SHAPES, added=["MemcpyToHost"])
    assert nodes_elsewhere(session, CUDA, bundle) == []
    require_provider("onnxruntime-cuda", CUDA, session, bundle)


@pytest.mark.parametrize(("node", "operator"), [("sum", "Add"), ("flatten", "Reshape"), ("relu", "Relu")])
def test_a_node_that_computes_the_models_numbers_on_the_cpu_is_refused_by_name(bundle, node, operator):
    session = Placed(bundle, (*SHAPES, node))
    with pytest.raises(Unsupported, match=f"onnxruntime-cuda has no kernel for 1 nodes of m: {operator} '{node}'") as refused:
        require_provider("onnxruntime-cuda", CUDA, session, bundle)
    assert refused.value.exit_code == 3


def test_a_node_that_onnx_runtime_made_counts_by_what_it_does(bundle):
    assert nodes_elsewhere(Placed(bundle, (), added=["Shape"]), CUDA, bundle) == []
    assert len(nodes_elsewhere(Placed(bundle, (), added=["Add"]), CUDA, bundle)) == 1


def test_an_error_in_a_run_names_the_node_and_the_shapes(tmp_path):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "to"], ["y"], name="rows of three")],
        "g",
        [info("x", TensorProto.FLOAT, ["n"])],
        [info("y", TensorProto.FLOAT, ["a", 3])],
        [numpy_helper.from_array(np.array([-1, 3]), "to")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    session = load(tmp_path / "m.onnx", "onnxruntime-cpu")
    with pytest.raises(Unsupported, match=r"stopped at Reshape node 'rows of three' while running m on x 7: ") as stopped:
        session.run({"x": np.zeros(7, np.float32)})
    assert ".cc:" not in stopped.value.message
    assert "onnxruntime_src" not in stopped.value.message
    assert session.run({"x": np.ones(3, np.float32)})["y"].tolist() == [[1, 1, 1]]


def test_an_error_in_a_run_is_raised_and_not_logged_too(tmp_path, capfd):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["n"])],
        [info("y", TensorProto.FLOAT, ["a", 3])],
        [numpy_helper.from_array(np.array([-1, 3]), "to")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match="on x 7: The input tensor cannot be reshaped"):
        load(tmp_path / "m.onnx", "onnxruntime-cpu").run({"x": np.zeros(7, np.float32)})
    assert capfd.readouterr().err == ""
