"""A Loop that never ends, because of what is fed, is ended where Loops are limited, whatever runs it."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy import run_limit
from relu_deploy.backends import load
from relu_deploy.backends.reference import loop_turns
from relu_deploy.errors import InputError, TooLong
from relu_deploy.run_limit import limited_runs
from relu_deploy.serving.row_trial import RowTrial
from relu_deploy.tensors import TensorSpec

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
    monkeypatch.setattr(run_limit, "LOOP_SECONDS", 0.5)
    session = load(endless, "onnxruntime-cpu", threads=1)
    with limited_runs(True):
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
    monkeypatch.setattr(run_limit, "LOOP_SECONDS", 0.5)
    monkeypatch.setattr(loop_turns, "MOST_SECONDS", 0.5)
    np.savez("x.npz", x=np.float32([1, 2]))
    ended = command(words[0], endless, *words[1:], "--threads", "1", "--quiet")
    assert ended.code == 2, ended.stderr
    assert "Loops" in ended.stderr
    assert "--timeout" in ended.stderr


@pytest.fixture
def slow(tmp_path):
    """A graph that takes some seconds, and a node of which takes some milliseconds."""
    names = [f"t{place}" for place in range(2000)]
    nodes = [helper.make_node("MatMul", [one, "x"], [other]) for one, other in itertools.pairwise(["x", *names, "y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "N"]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("onnxruntime-cpu", r"m: one run of it has taken longer than 0\.1 s on onnxruntime-cpu"),
        ("reference", r"m: the reference evaluation took longer than 0\.1 s, at node"),
    ],
)
def test_a_graph_whose_sizes_are_known_only_when_it_runs_is_ended_too(slow, monkeypatch, backend, sentence):
    monkeypatch.setattr(run_limit, "RUN_SECONDS", 0.1)
    session = load(slow, backend, threads=1)
    large, small = ({"x": np.eye(size, dtype=np.float32)} for size in (600, 2))
    with limited_runs(True):
        with pytest.raises(TooLong, match=sentence) as caught:
            session.run(large)
        assert "--timeout" in caught.value.hint
        # The session is as good as before.
        monkeypatch.setattr(run_limit, "RUN_SECONDS", 600.0)
        assert session.run(small)["y"].tolist() == [[1, 0], [0, 1]]
    session.close()


#: load the model and run it where a runtime that cannot end a run ends its process
SCRIPT = """
import os, sys
import numpy as np
from relu_deploy import run_limit
from relu_deploy.backends import load

def end(error):
    print(error.message)
    os._exit(7)

run_limit.LOOP_SECONDS = 0.5
run_limit.end_overdue_runs(end)
session = load(sys.argv[1], sys.argv[2], threads=1)
with run_limit.limited_runs(True):
    assert session.run({"x": np.float32([11, 12])})["y"].tolist() == [11, 12]
    print("ran", flush=True)
    session.run({"x": np.float32([1, 2])})
"""


def test_a_runtime_that_cannot_end_a_run_ends_its_process(endless):
    pytest.importorskip("openvino", reason="openvino is not installed (pip install 'relu-deploy[openvino]')")
    words = [sys.executable, "-c", SCRIPT, str(endless), "openvino"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    sentence = "m has Loops, and one run of it has taken longer than 0.5 s on openvino"
    assert (ended.returncode, ended.stdout.splitlines()) == (7, ["ran", sentence]), ended.stderr


class _Overdue:
    """A session whose runs take too long."""

    inputs = outputs = (TensorSpec("x", "float32", ("N", 2)),)

    def __init__(self):
        self.runs = 0

    def run(self, feeds):
        self.runs += 1
        raise TooLong("m has Loops")


def test_a_trial_of_rows_ends_with_the_first_run_that_takes_too_long():
    session = _Overdue()
    with pytest.raises(TooLong):
        RowTrial(session, {}).reason()
    assert session.runs == 1


def test_one_thread_watches_all_runs():
    # To start and join a thread for each takes longer than a run of a small model.
    counts = set()
    for _ in range(100):
        with run_limit.ended_after(60, lambda: None):
            counts.add(threading.active_count())
    assert len(counts) == 1


def test_a_block_that_has_ended_in_time_is_not_ended_later():
    ended = []
    with run_limit.ended_after(0.1, lambda: ended.append("early")):
        pass
    with run_limit.ended_after(0.1, lambda: ended.append("late")):
        deadline = time.monotonic() + 30
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
    assert ended == ["late"]
