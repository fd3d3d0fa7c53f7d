"""The backends that are measured by default are those that can run the model."""

import onnx
from onnx import TensorProto, helper

from relu_deploy.backends.base import Probe
from relu_deploy.benchmark import run
from relu_deploy.bundle import Bundle


def test_a_model_without_a_program_is_measured_on_the_backends_that_run_its_graph(tmp_path, monkeypatch):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    monkeypatch.setattr(run, "probe", lambda name: Probe(name, usable=True))
    chosen, left_out = run._choose(None, [Bundle.open(tmp_path / "m.onnx")])
    assert "onnxruntime-cpu" in chosen
    assert "torch" not in chosen
    assert left_out["torch"]
