"""Irregular files that runtimes accept: each irregularity is named once, and a regular file has no notes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import relu_deploy
from relu_deploy.bundle import Bundle
from relu_deploy.cli.main import main

FLOAT = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info


def linear():
    nodes = [node("MatMul", ["x", "w"], ["m"], "matmul"), node("Relu", ["m"], ["y"], "relu")]
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _stale(proto):
    proto.graph.value_info.append(value("m", FLOAT, ["n", 7]))


def _repeated(proto):
    for text in ("first", "second"):
        proto.metadata_props.add(key="made_by", value=text)


def _unused(proto):
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "spare"))


def _unsorted(proto):
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _listed_twice(proto):
    proto.graph.initializer.append(numpy_helper.from_array(np.full((4, 4), 2, np.float32), "w"))


def _not_imported(proto):
    nodes = [
        node("Gelu", ["y"], ["g"], "gelu", domain="com.microsoft"),
        node("Scaler", ["g"], ["s"], "scaler", domain="ai.onnx.ml", offset=[0.0], scale=[2.0]),
    ]
    proto.graph.node.extend(nodes)
    proto.graph.output.append(value("s", FLOAT, ["n", 4]))


IRREGULAR = {"stale": (_stale, "m is recorded as nx7"), "repeated": (_repeated, "made_by"), "unused": (_unused, "spare")}
IRREGULAR["unsorted"] = (_unsorted, "topological order")
IRREGULAR["listed twice"] = (_listed_twice, "and the last counts: w")
IRREGULAR["not imported"] = (_not_imported, "com.microsoft, ai.onnx.ml")


def saved(change, folder):
    proto = linear()
    change(proto)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("kind", IRREGULAR)
def test_an_irregular_file_has_one_note_that_names_the_irregularity(tmp_path, kind):
    change, named = IRREGULAR[kind]
    notes = Bundle.open(saved(change, tmp_path)).notes
    assert len(notes) == 1
    assert named in notes[0]


def test_a_regular_file_has_no_notes(tmp_path):
    assert Bundle.open(saved(lambda proto: None, tmp_path)).notes == ()


def test_verbs_print_the_notes_of_a_file_on_stderr_and_of_its_bundle_no_more(tmp_path, capsys):
    path = saved(lambda proto: (_stale(proto), _repeated(proto)), tmp_path)
    bundle = tmp_path / "m.rdb"
    for command, times in (
        (["inspect", str(path)], 1),
        (["verify", str(path)], 1),
        (["export", str(path), "-o", str(bundle)], 1),
        (["inspect", str(bundle)], 0),
    ):
        assert main([*command, "--quiet"]) == 0
        stderr = capsys.readouterr().err
        assert stderr.count("note: ") == 2 * times
        assert stderr.count("made_by") == times
        assert stderr.count("contradict") == times


@pytest.mark.parametrize("kind", ["listed twice", "not imported"])
def test_an_irregular_file_becomes_a_bundle_that_answers_as_onnx_runtime_does_from_the_file(tmp_path, kind):
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    path, rows = saved(IRREGULAR[kind][0], tmp_path), np.arange(8, dtype=np.float32).reshape(2, 4)
    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": rows})
    assert main(["export", str(path), "-o", str(tmp_path / "m.rdb"), "--quiet"]) == 0
    assert main(["verify", str(tmp_path / "m.rdb"), "--quiet"]) == 0
    answers = Bundle.open(tmp_path / "m.rdb").session("onnxruntime-cpu").run({"x": rows})
    for name, array in zip(("y", "s"), expected, strict=False):
        np.testing.assert_allclose(answers[name], array, rtol=1e-6)


@pytest.mark.parametrize("listed", [True, False], ids=["inputs", "no inputs"])
def test_a_file_of_the_third_version_becomes_a_graph_that_the_checker_accepts(tmp_path, listed):
    def old(proto):
        proto.ir_version = 3
        proto.opset_import[0].version = 8
        if listed:
            proto.graph.input.append(value("w", FLOAT, [4, 4]))

    bundle = tmp_path / "m.rdb"
    assert main(["export", str(saved(old, tmp_path)), "-o", str(bundle), "--quiet"]) == 0
    onnx.checker.check_model(str(bundle / "model.onnx"))
    # What was adopted can be adopted again.
    assert main(["export", str(bundle / "model.onnx"), "-o", str(tmp_path / "again.rdb"), "--quiet"]) == 0


def test_a_graph_that_imports_no_operators_of_onnx_itself_becomes_a_bundle(tmp_path):
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([scaler], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=3), tmp_path / "m.onnx")
    bundle = relu_deploy.export(tmp_path / "m.onnx", tmp_path / "m.rdb")
    # The third version of the format has the operator sets up to 8.
    assert bundle.manifest["opset"] == 8
    answer = bundle.session("onnxruntime-cpu").run({"x": np.array([[1, 2], [3, 4]], np.float32)})["y"]
    np.testing.assert_array_equal(answer, [[0, 2], [4, 6]])
