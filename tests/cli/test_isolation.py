"""What becomes of a command whose runtime crashes, hangs or takes all memory: one sentence, an exit code, and nothing left over."""

import argparse
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from processes import is_running, python

from relu_deploy.cli.main import create_parser
from relu_deploy.errors import InputError, TooLong, Unsupported
from relu_deploy.serving.loading import ModelOptions
from relu_deploy.serving.trial import Trials

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="commands are isolated on Linux only")

#: A backend that does in `run` what the environment says.
BACKEND = """
import ctypes, os, signal, threading, time
import numpy as np
from relu_deploy import run_limit
from relu_deploy.backends.base import Probe

def probe(name):
    # As OpenVINO does when it is imported.
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return Probe(name, True, version="1", device="CPU")

def load(name, bundle, options):
    return Session(bundle)

class Session:
    def __init__(self, bundle):
        self.inputs, self.outputs, self.facts = bundle.inputs, bundle.outputs, {}

    def run(self, feeds):
        act = os.environ["ACT"]
        if act == "deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        if act == "abort on request":
            signal.signal(signal.SIGTERM, lambda *_: os.abort())
        # Whoever reads this may send a signal. What a process that measures prints is dropped.
        print(os.getpid(), flush=True)
        with open(os.path.join(os.path.dirname(__file__), "running"), "w") as file:
            file.write(f"{os.getpid()}\\n")
        if act == "loop":
            run_limit.LOOP_SECONDS = 0.3
            with run_limit.ending_process("m", "sick"):
                time.sleep(600)
        if act == "segfault":
            ctypes.string_at(0)
        if act == "abort":
            os.abort()
        if act == "memory":
            kept = [np.empty(2**32, np.uint8) for _ in range(10**6)]  # reserved and never touched
        time.sleep(600)

    def executed(self):
        return ()

    def close(self):
        pass
"""


@pytest.fixture
def place(tmp_path):
    """A folder with a model, a backend called `sick` and a folder for temporary files."""
    (tmp_path / "sick.py").write_text(BACKEND)
    info = tmp_path / "sick-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sick\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[relu_deploy.backends]\nsick = sick\n")
    (tmp_path / "temporary").mkdir()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path


def start(place, act, *words):
    environment = {**os.environ, "PYTHONPATH": str(place), "TMPDIR": str(place / "temporary"), "ACT": act}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "relu_deploy", *words], cwd=place, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def census(place, act, *words):
    """Start the verb that runs a model on one backend and on nothing else."""
    np.savez(place / "x.npz", x=np.zeros((4, 2), np.float32))
    return start(place, act, "census", "m.onnx", "--data", "x.npz", "--backend", "sick", "--quiet", *words)


@pytest.mark.parametrize(
    ("act", "words", "code", "sentence"),
    [
        ("segfault", (), 3, "error: census m.onnx crashed in the runtime that ran the model (segmentation fault)\n"),
        ("abort", (), 3, "error: census m.onnx crashed in the runtime that ran the model (abort)\n"),
        ("memory", (), 2, "error: there is not enough memory for this\n"),
        ("loop", (), 2, "error: m has Loops, and one run of it has taken longer than 0.3 s on sick\n"),
        ("loop", ("--timeout", "2"), 2, "error: census m.onnx took longer than 2 s\n"),
        ("sleep", ("--timeout", "2"), 2, "error: census m.onnx took longer than 2 s\n"),
        ("deaf", ("--timeout", "2"), 2, "error: census m.onnx took longer than 2 s\n"),
    ],
)
def test_a_runtime_that_crashes_hangs_or_takes_all_memory_is_one_sentence(place, act, words, code, sentence):
    running = census(place, act, "--json", "answer.json", *words)
    stdout, stderr = running.communicate(timeout=120)
    assert (running.returncode, stderr.startswith(sentence)) == (code, True), stderr
    assert stderr.count("\n") == 2
    assert "hint: " in stderr
    # On a busy machine the time may be over before the runtime has started.
    assert not any(is_running(int(pid)) for pid in stdout.split())
    assert not (place / "answer.json").exists()
    assert list((place / "temporary").iterdir()) == []


SERVE = ("serve", "m.onnx", "--backend", "sick", "--http-port", "0", "--grpc-port", "-1", "--metrics-port", "-1")


@pytest.mark.parametrize(
    ("words", "act", "code", "sentence"),
    [
        (("predict", "digits", "digits.npz", "--backend", "sick"), "segfault", 3, "crashed in the runtime that ran the model"),
        (SERVE, "segfault", 3, "loading m.onnx crashed in the runtime that ran the model (segmentation fault)"),
        ((*SERVE, "--timeout", "3"), "sleep", 2, "loading m.onnx took longer than 3 s"),
        (SERVE, "loop", 2, "loading m.onnx takes too long"),
        (("bench", "m.onnx", "--backend", "sick"), "loop", 2, "one run of it has taken longer than 0.3 s on sick"),
    ],
    ids=["predict", "serve", "serve that never loads", "serve that is limited", "bench"],
)
def test_predict_and_serve_meet_a_model_in_a_process_of_its_own(place, digits_bundle, words, act, code, sentence):
    np.savez(place / "digits.npz", x=np.zeros((2, 1, 28, 28), np.float32))
    running = start(place, act, *(str(digits_bundle.path) if word == "digits" else word for word in words))
    _, stderr = running.communicate(timeout=120)
    assert (running.returncode, sentence in stderr) == (code, True), stderr
    assert "Traceback" not in stderr


def test_a_running_server_tries_a_model_in_another_process_before_it_loads_it_again(place, monkeypatch):
    for name, text in (("PYTHONPATH", str(place)), ("ACT", "segfault")):
        monkeypatch.setenv(name, text)
    trials = Trials()
    with pytest.raises(Unsupported, match=r"m\.onnx crashed the runtime that loaded it \(signal 11\)"):
        trials.try_to_load(place / "m.onnx", ModelOptions("sick"))
    monkeypatch.setenv("ACT", "sleep")
    with pytest.raises(InputError, match="took longer than 2 s"):
        trials.try_to_load(place / "m.onnx", ModelOptions("sick", load_seconds=2))
    monkeypatch.setenv("ACT", "loop")
    with pytest.raises(TooLong, match="takes too long"):
        trials.try_to_load(place / "m.onnx", ModelOptions("sick"))
    # One that cannot be loaded is left to the server, which has the reason.
    trials.try_to_load(place / "missing.onnx", ModelOptions("sick"))


@pytest.mark.parametrize("verb", ["export", "inspect", "verify", "census", "optimize", "compile", "bench", "predict", "package"])
def test_every_verb_that_opens_a_model_runs_in_a_process_of_its_own(verb):
    (action,) = (each for each in create_parser([verb])._actions if isinstance(each, argparse._SubParsersAction))
    parser = action.choices[verb]
    assert parser.get_default("models") in {each.dest for each in parser._actions}
    assert "--timeout" in parser.format_help()


def test_a_loop_without_end_is_ended(place):
    # Whether it goes on depends on what is fed: a constant condition is refused before the graph runs.
    going = [
        helper.make_node("ReduceMax", ["value"], ["largest"], keepdims=0),
        helper.make_node("IsNaN", ["largest"], ["stop"]),
        helper.make_node("Not", ["stop"], ["on"]),
    ]
    kept = helper.make_node("Identity", ["value"], ["same"])
    infos = {name: helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("going", "on")}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("value", "same", "x", "y")}
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    body = helper.make_graph([*going, kept], "body", [count, infos["going"], values["value"]], [infos["on"], values["same"]])
    constants = [
        helper.make_tensor("most", TensorProto.INT64, [], [2**63 - 1]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [1]),
    ]
    loop = helper.make_node("Loop", ["most", "yes", "x"], ["y"], "loop", body=body)
    graph = helper.make_graph([loop], "g", [values["x"]], [values["y"]], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), place / "loop.onnx")
    began = time.monotonic()
    running = start(place, "", "verify", "loop.onnx", "--timeout", "3", "--quiet")
    _, stderr = running.communicate(timeout=200)
    assert running.returncode == 2
    assert stderr.startswith("error: verify loop.onnx took longer than 3 s")
    assert time.monotonic() - began > 3
    assert list((place / "temporary").iterdir()) == []


def ends(process):
    """Return whether the process with this number ends within half a minute."""
    deadline = time.monotonic() + 30
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_command_that_is_ended_takes_its_process_along(place, number):
    running = census(place, "sleep")
    child = int(running.stdout.readline())
    assert child != running.pid
    running.send_signal(number)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert stderr == ("interrupted\n" if number == signal.SIGINT else "")
    assert ends(child)


def test_a_command_that_was_started_to_outlive_its_terminal_does(place):
    environment = {**os.environ, "PYTHONPATH": str(place), "ACT": "sleep"}
    np.savez(place / "x.npz", x=np.zeros((4, 2), np.float32))
    words = ["nohup", sys.executable, "-m", "relu_deploy", "census", "m.onnx", "--data", "x.npz", "--backend", "sick", "--quiet"]
    running = subprocess.Popen(words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child = int(running.stdout.readline())
    running.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert is_running(child)
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_that_measures_outlives_its_command(place, number):
    running = start(place, "sleep", "bench", "m.onnx", "--backend", "sick", "--quiet")
    deadline = time.monotonic() + 60
    while not (place / "running").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    # The file may exist for a moment before it has a content.
    while not (text := (place / "running").read_text()).endswith("\n"):
        time.sleep(0.02)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in stderr
    assert ends(int(text))
    if number == signal.SIGKILL:
        # The next command removes what a killed one could not.
        assert start(place, "", "inspect", "missing.onnx").wait(60) == 2
        assert start(place, "", "prove", "--dtype", "int8", "--quiet").wait(60) == 0
    assert list((place / "temporary").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_without_a_model_file_leaves_no_temporary_folder(place, number):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    running = start(place, "", "prove", "--dtype", "float32", "--quiet")
    deadline = time.monotonic() + 60
    while not list((place / "temporary").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert stderr == ("interrupted\n" if number == signal.SIGINT else "")
    assert list((place / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("act", "number"),
    [("deaf", signal.SIGINT), ("deaf", signal.SIGHUP), ("abort on request", signal.SIGTERM)],
)
def test_a_command_whose_runtime_does_not_listen_ends_by_the_signal_that_it_got(place, act, number):
    running = census(place, act)
    child = int(running.stdout.readline())
    began = time.monotonic()
    running.send_signal(number)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == ((130, "interrupted\n") if number == signal.SIGINT else (-number, ""))
    assert time.monotonic() - began < 20
    assert ends(child)


def test_what_is_written_by_a_command_in_a_process_of_its_own_comes_once_and_in_order(digits_bundle):
    words = [python(), "-m", "relu_deploy", "inspect", str(digits_bundle.path)]
    made = subprocess.run(words, capture_output=True, text=True, check=True)
    assert made.stdout.count("Relu") >= 6
    words = [python(), "-m", "relu_deploy", "inspect", str(digits_bundle.path), "--timeout", "-1"]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, "error: --timeout must be positive, not -1")


def test_a_command_may_take_as_much_memory_as_sixteen_of_the_largest_tensors():
    from relu_deploy.cli.isolation import memory_of_command

    whole = memory_of_command(None)
    assert whole > 10**9
    assert memory_of_command(0.001) == min(whole, 4 * 10**9)
    assert memory_of_command(0.5) == min(whole, 8 * 10**9)
    assert memory_of_command(1e6) == whole


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of writable memory is Linux's: run this there")
def test_the_process_of_a_command_has_the_memory_that_it_may_take():
    code = (
        "import os, resource\n"
        "from relu_deploy.cli.isolation import _become_child, memory_of_command\n"
        "_become_child(os.getppid(), False, 0.3)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0], memory_of_command(0.3))"
    )
    answer = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=True)
    limit, allowed = map(int, answer.stdout.split())
    assert limit == allowed <= 4.8e9


def test_what_python_has_not_written_is_no_signal(monkeypatch):
    # CPython returns uninitialized memory where a signal that is not waited for arrives as the wait ends.
    from relu_deploy.cli.isolation import _Watch

    def wait(signals, seconds):
        time.sleep(0.05)
        return argparse.Namespace(si_signo=123_456, si_code=0)

    monkeypatch.setattr(signal, "sigtimedwait", wait)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    watch = _Watch(child.pid, {signal.SIGCHLD}, None)
    watch.wait()
    assert (watch.code, watch.received) == (0, set())
    child.returncode = 0
