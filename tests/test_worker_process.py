"""Worker processes: a copy has what the original has imported, and nothing else of it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from processes import is_running

from relu_deploy.errors import TooLong
from relu_deploy.run_limit import limited_runs
from relu_deploy.worker_process import WorkerProcess

WORKER = """
import os, sys, threading, time
from relu_deploy import run_limit
from relu_deploy.worker_process import serve

class Worker:
    count = 0
    def prepare(self):
        import json.tool
        return {}
    def add(self, number):
        self.count += number
        return {"count": self.count, "pid": os.getpid(), "imported": "json.tool" in sys.modules}
    def start_thread(self):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        return {}
    def die(self):
        os._exit(3)
    def sleep(self):
        time.sleep(60)
        return {}
    def loop(self):
        run_limit.LOOP_SECONDS = 0.2
        with run_limit.ending_process("m", "some backend"):
            time.sleep(60)
        return {}
    def limited(self):
        return {"limited": run_limit.runs_are_limited()}
    def fail(self):
        print("noise of a runtime", flush=True)
        raise ValueError("no such thing")

if __name__ == "__main__":
    serve(Worker())
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "counting_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    process = WorkerProcess("counting_worker", 1)
    yield process
    process.close()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork processes: run it on Linux or macOS")


@needs_fork
def test_a_copy_has_imported_what_the_original_has_and_works_on_its_own(worker, tmp_path):
    worker.get("prepare")
    original = worker.get("add", number=1)
    one, other = worker.fork(tmp_path), worker.fork(tmp_path)
    assert one.get("add", number=10)["count"] == 11
    assert one.get("add", number=10)["count"] == 21
    answer = other.get("add", number=100)
    assert (answer["count"], answer["imported"]) == (101, True)
    assert len({original["pid"], answer["pid"], one.get("add", number=0)["pid"]}) == 3
    assert worker.get("add", number=0)["count"] == 1
    one.close()
    other.close()
    deadline = time.monotonic() + 10
    while is_running(answer["pid"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(answer["pid"])


@needs_fork
def test_a_copy_that_dies_is_an_error_and_the_original_lives_on(worker, tmp_path):
    copy = worker.fork(tmp_path)
    assert "process ended" in copy.request("die")["error"]
    assert "process ended" in copy.request("add", number=1)["error"]
    copy.close()
    assert "no such thing" in worker.request("fail")["error"]
    with closing(worker.fork(tmp_path)) as again:
        assert "no such thing" in again.request("fail")["error"]
        assert again.get("add", number=1)["count"] == 1


@needs_fork
def test_runs_of_workers_and_their_copies_are_limited_as_those_of_their_parent(worker, tmp_path):
    assert worker.get("limited") == {"limited": False}
    with limited_runs(True), closing(WorkerProcess("counting_worker", 1)) as limited:
        assert limited.get("limited") == {"limited": True}
        with closing(limited.fork(tmp_path)) as copy, pytest.raises(TooLong, match=r"taken longer than 0\.2 s on some backend"):
            copy.get("loop")
        with pytest.raises(TooLong, match=r"m has Loops, and one run of it has taken longer than 0\.2 s") as caught:
            limited.get("loop")
        assert "--timeout" in caught.value.hint


@needs_fork
def test_a_copy_that_is_busy_is_killed_when_it_is_closed(worker, tmp_path, monkeypatch):
    monkeypatch.setattr("relu_deploy.worker_process.PATIENCE", 50.0)
    copy = worker.fork(tmp_path)
    pid = copy.get("add", number=0)["pid"]
    copy.send("sleep")
    began = time.monotonic()
    copy.close()
    assert time.monotonic() - began < 40
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def test_a_worker_that_is_busy_is_killed_when_it_is_closed(worker, monkeypatch):
    monkeypatch.setattr("relu_deploy.worker_process.PATIENCE", 50.0)
    pid = worker.get("add", number=0)["pid"]
    worker.send("sleep")
    began = time.monotonic()
    worker.close()
    assert time.monotonic() - began < 40
    assert not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="processes end with their parent on Linux: run it there")
def test_a_busy_worker_and_its_copy_end_with_a_parent_that_is_killed(worker, tmp_path):
    script = f"""
import os, pathlib, signal
from relu_deploy.worker_process import WorkerProcess
one = WorkerProcess("counting_worker", 1)
copy = one.fork(pathlib.Path({str(tmp_path)!r}))
print(one.get("add", number=0)["pid"], copy.get("add", number=0)["pid"], flush=True)
one.send("sleep")
copy.send("sleep")
os.kill(os.getpid(), signal.SIGKILL)
"""
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert made.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    numbers = [int(word) for word in made.stdout.split()]
    while any(is_running(number) for number in numbers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(numbers) == 2
    assert not any(is_running(number) for number in numbers)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the threads of a process are not known: run it on Linux")
def test_a_process_that_has_started_threads_is_not_copied(worker, tmp_path):
    worker.get("start_thread")
    assert worker.fork(tmp_path) is None
    assert worker.get("add", number=1)["count"] == 1


def test_a_folder_whose_path_is_too_long_for_a_socket_gives_no_copy(worker, tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    assert worker.fork(folder) is None
    assert worker.get("add", number=1)["count"] == 1
