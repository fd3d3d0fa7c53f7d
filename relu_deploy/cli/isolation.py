"""Runs a command in a process of its own, so that a crash of a runtime, or a graph that never ends, is an error like others.

A model file from elsewhere can crash the runtime that runs it, keep it busy for ever or exhaust the memory. The command is
therefore forked before anything heavy is imported, which takes about a millisecond: the child does all the work, and this
process waits, forwards signals, ends the child after `--timeout` and turns its death into one sentence. The child has lower
limits of memory, is the first that a system without memory ends, and dies with its parent.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from relu_deploy.errors import InputError, ReluDeployError, Unsupported, UsageError

__all__ = ["run_isolated"]

#: Seconds between the request to end and the kill.
GRACE = 3.0
#: Exit code of a child that ended on request.
STOPPED = 128 + 15
PR_SET_PDEATHSIG = 1
CRASHES = {
    "SIGSEGV": "segmentation fault",
    "SIGABRT": "abort",
    "SIGBUS": "bus error",
    "SIGFPE": "arithmetic error",
    "SIGILL": "illegal instruction",
    "SIGTRAP": "trap",
    "SIGSYS": "forbidden system call",
}
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def run_isolated(options: argparse.Namespace) -> int | None:
    """Fork this process if the command runs a model file.

    Returns:
        In the child, and where the command is not isolated, None: go on with the command. In the parent, the exit code of the
        child.

    Raises:
        InputError: In the parent, if the child took longer than `--timeout` or was killed for want of memory.
        Unsupported: In the parent, if the child crashed.
        UsageError: If `--timeout` is not positive, or not supported on this system.
    """
    timeout = getattr(options, "timeout", None)
    if timeout is not None and not timeout > 0:
        raise UsageError(f"--timeout must be positive, not {timeout:g}", "for instance --timeout 60")
    if not hasattr(signal, "sigtimedwait") or threading.active_count() > 1:
        if timeout is not None:
            raise UsageError("--timeout is not supported on this system", "leave it out")
        return None
    models = _model_files(options)
    if not models and timeout is None:
        return None
    signals = {signal.SIGCHLD, *(getattr(signal, name) for name in FORWARDED)}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Whoever started this process does not want to know how its children ended; this process does.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become_child(parent, core=options.debug)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return None
    try:
        watch = _Watch(child, signals, timeout)
        code = watch.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if code >= 0 and not watch.timed_out and not (code == STOPPED and signal.SIGTERM in watch.forwarded):
        return code
    _sweep(options)
    if watch.timed_out:
        raise InputError(
            f"{_command(options, models)} took longer than {timeout:g} s", "allow more with --timeout, or use smaller inputs"
        )
    number = signal.SIGTERM if code == STOPPED else -code
    if number in watch.forwarded:
        # End as this process would have without a child.
        signal.signal(number, signal.SIG_DFL)
        os.kill(parent, number)
    raise _crash(number, _command(options, models))


def _model_files(options: argparse.Namespace) -> list[str]:
    """Return the arguments of the command that are the paths of existing model files or bundles."""
    given = getattr(options, getattr(options, "models", ""), None)
    names: Sequence[str] = [given] if isinstance(given, str) else given or []
    files = []
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            if Path(name).exists():
                files.append(name)
    return files


def _command(options: argparse.Namespace, models: Sequence[str]) -> str:
    return " ".join([options.verb, *models[:1]])


class _Watch:
    """Waits for a child.

    Attributes:
        timed_out: The child was ended because it took too long.
        forwarded: Signals that another process sent, and that were passed on.
    """

    def __init__(self, child: int, signals: set[signal.Signals], timeout: float | None) -> None:
        self._child, self._signals = child, signals
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.timed_out = False
        self.forwarded: set[int] = set()

    def wait(self) -> int:
        """Return the exit code of the child, or minus the number of the signal that ended it."""
        while True:
            done, status = os.waitpid(self._child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            remaining = 3600.0 if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            received = signal.sigtimedwait(self._signals, remaining)
            if received is None:
                self._expire()
            elif received.si_signo != signal.SIGCHLD and received.si_code <= 0:
                # The terminal sends Ctrl-C to the child as well; what a process sent, only this one received.
                self.forwarded.add(received.si_signo)
                self._send(received.si_signo)

    def _expire(self) -> None:
        """Request the child to end, or kill it if that was requested before."""
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        self._send(signal.SIGKILL if self.timed_out else signal.SIGTERM)
        self._deadline = None if self.timed_out else time.monotonic() + GRACE
        self.timed_out = True

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)


def _become_child(parent: int, core: bool) -> None:
    """Make this process one that dies with its parent, cleans up when it is told to end, and cannot take all memory."""
    import ctypes
    import resource

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(STOPPED)
    signal.signal(signal.SIGTERM, _stop)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    with contextlib.suppress(OSError, ValueError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory if most < 0 else min(memory, most), most))
    if not core:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _stop(*_: object) -> None:
    raise SystemExit(STOPPED)


def _crash(number: int, command: str) -> ReluDeployError:
    """Return the error for a child that a signal ended."""
    name = signal.Signals(number).name
    if name == "SIGKILL":
        return InputError(
            f"{command} was killed, most likely because the memory was exhausted",
            "use a smaller batch, fewer --samples or smaller input shapes",
        )
    if name not in CRASHES:
        return InputError(f"{command} was ended by {name}", "run it again")
    return Unsupported(
        f"{command} crashed in the runtime that ran the model ({CRASHES[name]})",
        "the file may be damaged; try another --backend or version of the runtime; verify --backend reference needs no runtime",
    )


def _sweep(options: argparse.Namespace) -> None:
    """Remove the unfinished files and folders of a child that was killed."""
    from relu_deploy.storage.files import sweep, temporary_prefix
    from relu_deploy.storage.folders import sweep_temporary_folders

    sweep_temporary_folders()
    out = getattr(options, "out", None)
    if out is not None:
        target = Path(os.path.realpath(out))
        sweep(target.parent, temporary_prefix(target.name))
