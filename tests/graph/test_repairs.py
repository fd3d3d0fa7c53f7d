"""Irregular files that runtimes accept: each irregularity is named once, and a regular file has no notes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

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


IRREGULAR = {"stale": (_stale, "m is recorded as nx7"), "repeated": (_repeated, "made_by"), "unused": (_unused, "spare")}
IRREGULAR["unsorted"] = (_unsorted, "topological order")


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
