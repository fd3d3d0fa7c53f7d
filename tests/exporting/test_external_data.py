"""A bundle holds all weights of its model, wherever they were stored before."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.exporting.exporter import export_source

WEIGHTS = np.arange(16, dtype=np.float32).reshape(4, 4)
BIAS = np.array([1, -2, 3, -4], np.float32)


def model():
    """y = relu(x @ w + b): a bias of few bytes, and the weights."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    weights = [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(BIAS, "b")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_bundle_of_a_model_with_external_weights_runs_on_another_machine(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(model(), source / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    export_source("source/m.onnx", tmp_path / "m.rdb")
    shutil.rmtree(source)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "m.rdb", tmp_path / "elsewhere" / "moved.rdb")
    bundle = Bundle.open(tmp_path / "elsewhere" / "moved.rdb")
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(bundle.onnx).graph.initializer}
    np.testing.assert_array_equal(stored["w"], WEIGHTS)
    np.testing.assert_array_equal(stored["b"], BIAS)
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(bundle.session("reference").run({"x": x})["y"], np.maximum(WEIGHTS + BIAS, 0))


@pytest.mark.parametrize("location", ["../secret", "/secret", "link"])
def test_weights_outside_the_models_folder_are_refused_before_they_are_read(tmp_path, monkeypatch, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    (folder / "link").symlink_to("../secret")
    made = model()
    made.graph.initializer[0].ClearField("raw_data")
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    made.graph.initializer[0].external_data.add(
        key="location", value=location if location != "/secret" else str(tmp_path / "secret")
    )
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    monkeypatch.chdir(folder)
    for name in ("m.onnx", str(folder / "m.onnx")):
        with pytest.raises(InputError):
            export_source(name, tmp_path / "m.rdb")
    assert not (tmp_path / "m.rdb").exists()
