"""`optimize` on graphs from quantization-aware training: no calibration data, verified, gated, and what stays float32 is named."""

import numpy as np
import onnx
import pytest
from trained_graphs import brevitas_graph, modelopt_graph, pytorch_graph

from relu_deploy.bundle import Bundle

GRAPHS = {"pytorch": pytorch_graph, "modelopt": modelopt_graph, "brevitas": brevitas_graph}


def saved(name):
    onnx.save(GRAPHS[name](), "m.onnx")
    np.savez("rows.npz", x=np.random.default_rng(0).standard_normal((24, 16, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_trained_graph_is_taken_for_a_cpu_without_calibration(command, tmp_path, name):
    saved(name)
    made = command("optimize", "m.onnx", "-o", "out.rdb", "--data", "rows.npz", "--quiet", "--json", "-")
    assert made.code == 0, made.stderr or made.json
    assert made.json["variant"] == "int8-cpu"
    assert made.json["accuracy"]["drop"] <= made.json["accuracy"]["max_drop"]
    assert made.json["verified"]["passed"]
    assert made.json["prepared"]["retargeting"]["pairs"] > 2
    variant = Bundle.open("out.rdb").with_variant("int8-cpu")
    onnx.checker.check_model(str(variant.onnx), full_check=True)
    named = {one["node"] for one in made.json["fallbacks"]}
    assert named == set(made.json["prepared"]["retargeting"]["float_nodes"])
    assert command("verify", str(variant.onnx), "--quiet").code == 0


@pytest.mark.parametrize(("name", "named"), [("modelopt", set()), ("pytorch", {"conv0", "conv1", "fc"})])
def test_a_trained_graph_is_taken_for_tensorrt_and_what_it_cannot_read_is_named(command, tmp_path, name, named):
    saved(name)
    arguments = ("optimize", "m.onnx", "-o", "out.rdb", "--for", "tensorrt", "--data", "rows.npz", "--max-drop", "0.5")
    made = command(*arguments, "--quiet", "--json", "-")
    assert made.code == 0, made.stderr or made.json
    assert {one["node"] for one in made.json["fallbacks"]} == named
    assert made.json["verified"]["passed"]


def test_another_precision_than_the_trained_one_is_refused(command, tmp_path):
    saved("pytorch")
    made = command("optimize", "m.onnx", "-o", "out.rdb", "--for", "tensorrt", "--precision", "fp16", "--data", "rows.npz")
    assert made.code == 2
    assert "--precision int8 takes the quantized graph" in made.stderr
