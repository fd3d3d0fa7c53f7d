"""A forked process is, to whoever starts it, what a real one is; and the installed console script works."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import can_fork, command_folder, python

import relu_deploy

ROOT = Path(relu_deploy.__file__).parents[1]
needs_fork = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux: run this there")

ABOUT_ITSELF = """
import json, os, signal, sys
print(json.dumps({
    "name": __name__,
    "arguments": sys.argv,
    "folder": os.getcwd(),
    "path": sys.path,
    "variables": {name: value for name, value in os.environ.items() if name != "_"},
    "input": sys.stdin.read(),
    "encodings": [stream.encoding for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)],
    "processors": sorted(os.sched_getaffinity(0)),
    "threads": __import__("torch").get_num_threads(),
}))
"""


def run(interpreter, *arguments, **options):
    words = [str(word) for word in (interpreter, *arguments)]
    return subprocess.run(words, **{"capture_output": True, "text": True, "check": False, "timeout": 120, **options})


@needs_fork
@pytest.mark.parametrize("way", ["-c", "script", "-m"])
def test_a_forked_process_sees_what_a_real_one_sees(way, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[torch]'")
    (tmp_path / "about.py").write_text(ABOUT_ITSELF)
    words = {"-c": ["-c", ABOUT_ITSELF], "script": [tmp_path / "about.py"], "-m": ["-m", "about"]}[way]
    given = {"cwd": tmp_path, "env": {**os.environ, "ÜNI": "kódé", "PYTHONPATH": str(ROOT)}, "input": "words\n"}
    real, forked = (run(one, *words, "--option", "ärgument", **given) for one in (sys.executable, python()))
    assert (real.returncode, real.stderr, forked.stderr) == (0, "", "")
    expected = json.loads(real.stdout)
    # Set by the package, which the forked process has imported.
    expected["variables"].setdefault("ORT_DISABLE_TELEMETRY", "1")
    assert json.loads(forked.stdout) == expected


@needs_fork
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os; os.kill(os.getpid(), 15)", -15),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import atexit; atexit.register(print, 'end'); print('begin')", 0),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()", 0),
        ("import sys; sys.stdout.write('no newline'); sys.stderr.write('nor here')", 0),
    ],
)
def test_a_forked_process_ends_as_a_real_one_ends(code, expected):
    real, forked = (run(one, "-c", code) for one in (sys.executable, python()))
    assert (real.returncode, forked.returncode) == (expected, expected)
    assert (forked.stdout, forked.stderr) == (real.stdout, real.stderr)


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_forked_process_receives_the_signals_of_the_one_that_stands_for_it(number):
    code = f"""
import signal, sys, time
def end(*_):
    print("got it", flush=True)
    sys.exit(7)
signal.signal({int(number)}, end)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([python(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == 7
        assert process.stdout.read() == "got it\n"


@needs_fork
def test_a_forked_process_is_killed_with_the_one_that_stands_for_it():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen([python(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.kill()
        assert process.wait(30) == -9
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@needs_fork
def test_the_processes_that_a_forked_one_starts_are_forked_too_unless_they_need_more_than_three_streams():
    code = "import os, sys; print(os.getppid() == int(sys.argv[1])); print(sys.executable)"
    server = (command_folder() / "pid").read_text()
    assert run(python(), "-c", code, server).stdout.split() == ["True", python()]
    with (command_folder() / "owner").open() as file:
        answer = run(python(), "-c", f"import os; print(os.read({file.fileno()}, 99))", pass_fds=[file.fileno()])
    assert (answer.stdout, answer.stderr) == (f"{(command_folder() / 'owner').read_bytes()!r}\n", "")


@needs_fork
def test_a_copy_of_the_package_in_the_folder_is_the_one_that_runs(tmp_path):
    shutil.copytree(ROOT / "relu_deploy", tmp_path / "relu_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models").symlink_to(ROOT / "models")
    version = tmp_path / "relu_deploy" / "version.py"
    version.write_text(version.read_text().replace(f'__version__ = "{relu_deploy.__version__}"', '__version__ = "0.copy"'))
    assert run(python(), "-m", "relu_deploy", "--version", cwd=tmp_path).stdout == "relu-deploy 0.copy\n"
    assert run(command_folder() / "relu-deploy", "--version", cwd=tmp_path).stdout == f"relu-deploy {relu_deploy.__version__}\n"


@needs_fork
def test_a_threaded_runtime_works_in_a_forked_process(digits_bundle):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[cpu]'")
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[torch]'")
    code = """
import sys
import numpy as np, torch
from relu_deploy.bundle import Bundle
torch.set_num_threads(4)
x = torch.ones(2000, 500)
assert float((x @ x.T).sum()) == 2000 * 2000 * 500
bundle = Bundle.open(sys.argv[1])
answers = [bundle.session(name, threads=4).run({"x": np.ones((64, 1, 28, 28), np.float32)})["y"] for name in ("onnxruntime-cpu", "torch")]
np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4)
"""
    answer = run(python(), "-c", code, digits_bundle.path)
    assert answer.returncode == 0, answer.stderr


def test_the_installed_console_script_works(tmp_path):
    script = Path(sys.executable).with_name("relu-deploy")
    if not script.exists():
        pytest.skip("the package is not installed into this environment: pip install -e .")
    answer = run(script, "--version", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (0, f"relu-deploy {relu_deploy.__version__}\n")
    answer = run(script, "inspect", "nosuch.rdb", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: nosuch.rdb does not exist\nhint: ")


BROKEN = (
    "import sys; import relu_deploy.cli.zoo as verb; verb.run = lambda options: 1 // 0; from relu_deploy.cli.main import main; "
)


@pytest.mark.internal_error
def test_a_command_that_exits_with_70_is_noted_wherever_it_runs(command, monkeypatch):
    import internal_errors

    import relu_deploy.cli.zoo

    monkeypatch.setattr(relu_deploy.cli.zoo, "run", lambda options: 1 // 0)
    assert command("zoo").code == 70
    (here,) = internal_errors.taken()
    assert here.startswith("zoo: error: unexpected ZeroDivisionError")
    if can_fork():
        assert run(python(), "-c", BROKEN + "sys.exit(main(['zoo']))").returncode == 70
        (forked,) = internal_errors.taken()
        assert "1 // 0" in forked
    assert internal_errors.taken() == []


def test_a_test_whose_command_exits_with_70_fails_whatever_it_asserts(tmp_path):
    (tmp_path / "test_broken.py").write_text(
        "import relu_deploy.cli.zoo\n"
        "def test_broken(command, monkeypatch):\n"
        "    monkeypatch.setattr(relu_deploy.cli.zoo, 'run', lambda options: 1 // 0)\n"
        "    assert command('zoo').code == 70\n"
        "def test_sound(command):\n"
        "    assert command('zoo').code == 0\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "RELU_DEPLOY_TEST"))}
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "conftest")
    paths = os.pathsep.join(str(ROOT / "tests" / folder) for folder in ("", "support"))
    answer = run(sys.executable, *words, tmp_path / "test_broken.py", env={**environment, "PYTHONPATH": paths}, cwd=tmp_path)
    assert answer.returncode == 1, answer.stdout
    assert "exit code 70, a bug in relu-deploy: zoo" in answer.stdout
    assert [line.partition(" - ")[0].partition("::")[2] for line in answer.stdout.splitlines() if line.startswith("ERROR ")] == [
        "test_broken"
    ]
