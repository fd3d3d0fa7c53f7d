"""Two `optimize` commands that run at once on one bundle leave it whole, with the variant of each."""

import json
import subprocess

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from processes import python

from relu_deploy.bundle import Bundle
from relu_deploy.storage.files import is_temporary_name


@pytest.fixture
def bundle(tmp_path):
    """A bundle of one layer and a Relu."""
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], "layer"), helper.make_node("Relu", ["m"], ["y"], "relu")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    words = [python(), "-m", "relu_deploy", "export", tmp_path / "m.onnx", "-o", tmp_path / "m.rdb", "--quiet"]
    subprocess.run(words, check=True, capture_output=True)
    return tmp_path / "m.rdb"


@pytest.mark.parametrize("precisions", [("int8", "int8"), ("int8", "fp32")], ids=" and ".join)
def test_both_commands_end_well_and_the_bundle_holds_what_they_made(bundle, precisions):
    pipe = subprocess.PIPE
    np.savez(bundle.parent / "x.npz", x=np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32))
    words = [python(), "-m", "relu_deploy", "optimize", bundle, "--calibration", bundle.parent / "x.npz", "--max-drop", "1"]
    words += ["--threads", "1", "--quiet", "--json"]
    answers = [bundle.parent / f"answer{number}.json" for number in range(2)]
    running = [
        subprocess.Popen([*words, answer, "--precision", precision], stdout=pipe, stderr=pipe, text=True)
        for answer, precision in zip(answers, precisions, strict=True)
    ]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in running]
    assert [code for _, _, code in ended] == [0, 0], ended
    opened = Bundle.open(bundle)
    made = {json.loads(answer.read_text())["variant"] for answer in answers}
    assert made == set(opened.manifest["variants"])
    assert len(made) == len(set(precisions))
    for name in made:
        assert Bundle.open(bundle).with_variant(name).onnx.is_file()
    left = [file.name for file in bundle.parent.rglob("*") if is_temporary_name(file.name) or file.name.endswith(".staged")]
    assert left == []
    checked = subprocess.run([python(), "-m", "relu_deploy", "verify", bundle, "--quiet"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
