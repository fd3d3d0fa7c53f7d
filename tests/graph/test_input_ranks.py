"""Inputs whose shape a file does not record: their rank follows from the graph, is given, or is asked for in words."""

from contextlib import suppress

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.graph.loading.missing_shapes import add_missing_shapes
from relu_deploy.graph.model import load_model


def saved(path, nodes, outputs=("y",), inputs=("x",), **weights):
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names] for names in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


W2, W4 = np.ones((3, 2), np.float32), np.ones((2, 3, 3, 3), np.float32)
DERIVED = {
    "Conv": (
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        {"w": W4},
        ("x_0", 3, "x_2", "x_3"),
    ),
    "Gemm": ([helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Gemm", ["r", "w"], ["y"])], {"w": W2}, ("x_0", 3)),
    "Transpose": (
        [helper.make_node("Transpose", ["x"], ["t"], perm=[2, 0, 1]), helper.make_node("Relu", ["t"], ["y"])],
        {},
        ("x_0", "x_1", "x_2"),
    ),
}


@pytest.mark.parametrize("kind", DERIVED)
def test_the_rank_of_an_input_follows_from_what_reads_it_and_so_do_its_channels(tmp_path, kind):
    nodes, weights, shape = DERIVED[kind]
    (spec,) = Bundle.open(saved(tmp_path / "m.onnx", nodes, **weights)).inputs
    assert spec.shape == shape


def test_a_rank_that_does_not_follow_is_asked_for_with_the_option_that_gives_it(tmp_path):
    path = saved(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    with pytest.raises(InputError, match="input 'x' has no shape") as error:
        Bundle.open(path)
    assert "--shape x=" in error.value.hint
    assert "relu-deploy export FILE.onnx --shape" in error.value.hint
    assert Bundle.open(path, {"x": (2, 3)}).inputs[0].shape == ("x_0", "x_1")


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_file_without_shapes_is_verified_like_any_other(tmp_path, command, kind):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    nodes, weights, shape = DERIVED[kind]
    saved(tmp_path / "m.onnx", nodes, **weights)
    ended = command("verify", tmp_path / "m.onnx", "--shape", "x=2x3x8x8" if len(shape) == 4 else "x=2x3", "--quiet")
    assert ended.code == 0, ended.stderr


@pytest.mark.parametrize("weight", [np.ones(3, np.float32), np.ones((2, 3), np.float32), np.zeros((2, 0, 3, 3), np.float32)])
def test_weights_that_fit_no_convolution_end_in_a_sentence_or_in_dimensions_that_vary(tmp_path, weight):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], group=2**62), helper.make_node("Relu", ["c"], ["y"])]
    path = saved(tmp_path / "m.onnx", nodes, w=weight)
    with suppress(InputError):
        assert all(isinstance(dim, str) for dim in Bundle.open(path).inputs[0].shape)


def test_the_shape_of_an_input_is_looked_for_once_through_a_long_chain(tmp_path):
    count = 20_000
    nodes = [helper.make_node("Relu", [f"t{index}" if index else "x"], [f"t{index + 1}"]) for index in range(count)]
    nodes.append(helper.make_node("Transpose", [f"t{count}"], ["y"], perm=[1, 0]))
    graph = onnx.load(saved(tmp_path / "m.onnx", nodes)).graph
    assert add_missing_shapes(graph) == ["the input x has no shape, and gets the 2 dimensions that Transpose 'y' needs"]


@pytest.mark.parametrize("given", ["--shape", "--inputs", "export"])
def test_a_rank_that_is_given_is_enough(tmp_path, command, given):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    nodes = [helper.make_node("Add", ["x", "one"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    path = saved(tmp_path / "m.onnx", nodes, one=np.ones(3, np.float32))
    np.savez(tmp_path / "x.npz", x=np.array([[-2, -1, 0], [0.5, 1, -7]], np.float32))
    if given == "export":
        ended = command("export", path, "--shape", "x=2x3", "-o", tmp_path / "m.rdb", "--quiet")
        assert ended.code == 0, ended.stderr
        ended = command("verify", tmp_path / "m.rdb", "--quiet")
    else:
        ended = command("verify", path, given, "x=2x3" if given == "--shape" else tmp_path / "x.npz", "--quiet")
    assert ended.code == 0, ended.stderr


def test_ranks_are_not_tried_for_thousands_of_inputs(tmp_path, monkeypatch):
    # Each trial infers the shapes of the whole graph.
    monkeypatch.setattr("relu_deploy.graph.shapes.input_ranks._fits", None)
    inputs = [onnx.helper.make_tensor_value_info(f"x{place}", onnx.TensorProto.FLOAT, None) for place in range(1000)]
    node = onnx.helper.make_node("Sum", [value.name for value in inputs], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", inputs, [output])), tmp_path / "m.onnx")
    assert len(load_model(tmp_path / "m.onnx").graph.inputs) == 1000
