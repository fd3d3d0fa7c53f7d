"""A Loop that never ends, because of what is fed, is ended where Loops are limited, whatever runs it."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.backends import load
from relu_deploy.backends.onnxruntime import session as of_runtime
from relu_deploy.backends.reference import loop_turns
from relu_deploy.errors import InputError
from relu_deploy.loop_limit import limited_loops

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


@pytest.fixture
def endless(tmp_path):
    """A graph whose Loop goes on as long as its state is not above 10, which never happens for numbers up to 10."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["state"], ["next"], "relu"),
        helper.make_node("ReduceMax", ["next"], ["largest"], keepdims=0),
        helper.make_node("LessOrEqual", ["largest", "ten"], ["on"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [value("turn", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("state", TensorProto.FLOAT, [2])],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [2])],
    )
    loop = helper.make_node("Loop", ["", "yes", "x"], ["y"], "loop", body=body)
    constants = [helper.make_tensor("yes", TensorProto.BOOL, [], [1]), helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0])]
    x, y = (value(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([loop], "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_runtime_is_ended_within_one_run(endless, monkeypatch):
    monkeypatch.setattr(of_runtime, "LOOP_SECONDS", 0.5)
    session = load(endless, "onnxruntime-cpu", threads=1)
    with limited_loops(True):
        assert session.run({"x": np.float32([11, 12])})["y"].tolist() == [11, 12]
        began = time.monotonic()
        with pytest.raises(InputError, match=r"m has Loops, and one run of it has taken longer than 0\.5 s") as caught:
            session.run({"x": np.float32([1, 2])})
        assert time.monotonic() - began < 60
        assert "--timeout" in caught.value.hint
        # The session is as good as before.
        assert session.run({"x": np.float32([11, 12])})["y"].tolist() == [11, 12]
    session.close()


@pytest.mark.parametrize("words", [("verify",), ("census", "--data", "x.npz")], ids=lambda words: words[0])
def test_a_command_ends_and_names_the_option_that_allows_more(endless, command, monkeypatch, words):
    monkeypatch.setattr(of_runtime, "LOOP_SECONDS", 0.5)
    monkeypatch.setattr(loop_turns, "MOST_SECONDS", 0.5)
    np.savez("x.npz", x=np.float32([1, 2]))
    ended = command(words[0], endless, *words[1:], "--threads", "1", "--quiet")
    assert ended.code == 2, ended.stderr
    assert "Loops" in ended.stderr
    assert "--timeout" in ended.stderr
