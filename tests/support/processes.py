"""Python processes for tests: forked from a warmed-up one where the platform can, real ones elsewhere.

`python()` stands where a command has `sys.executable`, and `command_folder()` goes in front of PATH. Such a process differs from
a real one in its start only: it is forked by `fork_server` and need not import torch, which takes most of a command's time.
A test of how a process starts, what it imports, what kills it or how much memory it takes uses `sys.executable`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from filelock import FileLock

__all__ = ["begin", "can_fork", "command_folder", "end", "python"]

#: names the folder that all processes of this run of the tests share
VARIABLE = "RELU_DEPLOY_TEST_FOLDER"
HERE = Path(__file__).parent
#: what the console script runs, with this working tree's package
CONSOLE_SCRIPT = "import sys\nfrom relu_deploy.__main__ import main\nsys.exit(main())\n"


def can_fork() -> bool:
    return sys.platform == "linux"


def python() -> str:
    """Return the path of a `python` whose processes are forked; it takes `-m MODULE`, `-c CODE`, `-` and scripts."""
    folder = command_folder()
    return sys.executable if folder is None else str(folder / "python")


def command_folder() -> Path | None:
    """Return a folder with a `relu-deploy` and a `python` whose processes are forked, None where this platform cannot."""
    if not can_fork():
        return None
    folder = Path(os.environ[VARIABLE])
    with FileLock(folder / "lock"):
        if not (folder / "pid").exists():
            _start(folder)
    return folder


def begin() -> bool:
    """Prepare a run of the tests. Return whether this process is the one that is to `end` it: its workers are not."""
    if VARIABLE in os.environ:
        return False
    folder = Path(tempfile.mkdtemp(prefix="relu-deploy-tests-"))
    os.environ[VARIABLE] = str(folder)
    # The tests neither read nor fill the cache of the user.
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    (folder / "owner").write_text(str(os.getpid()))
    return True


def end() -> None:
    """End the fork server, if one was needed, and remove the folder that `begin` made."""
    folder = Path(os.environ.pop(VARIABLE))
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> None:
    address, console_script = folder / "socket", folder / "console_script.py"
    console_script.write_text(CONSOLE_SCRIPT)
    client = (HERE / "fork_client.py").read_text()
    for name, before in (("python", []), ("relu-deploy", [str(console_script)])):
        script = folder / name
        script.write_text(f"#!{sys.executable} -IS\n{client}\n\nrun({sys.executable!r}, {str(folder)!r}, {before!r})\n")
        script.chmod(0o755)
    words = [sys.executable, str(HERE / "fork_server.py"), str(folder), (folder / "owner").read_text()]
    # One thread while it warms up: a thread does not survive a fork. Its children have as many as they ask for.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    server = subprocess.Popen(
        words,
        env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **single},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "errors").open("w"),
        start_new_session=True,
    )
    while not address.exists():
        if server.poll() is not None:
            raise RuntimeError(f"the fork server did not start: {(folder / 'errors').read_text()}")
        time.sleep(0.01)
    (folder / "pid").write_text(str(server.pid))


def is_running(pid: int) -> bool:
    """Return whether there is a process `pid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
