"""Runs a command in a process of its own, so that a crash of a runtime, or a graph that never ends, is an error like others.

A model file from elsewhere can crash the runtime that runs it, keep it busy for ever or exhaust the memory. The command is
therefore forked before anything heavy is imported, which takes about a millisecond: the child does all the work, and this
process waits, forwards signals, ends the child after `--timeout` and turns its death into one sentence. The child has lower
limits of memory, is the first that a system without memory ends, and dies with its parent.

Signals end the child at once, without an exception: one that is raised inside a call of a runtime back into Python is lost, or ends
the process with an abort, and nobody waits for threads of a runtime. Files of the child are whole at any moment; what is unfinished
is removed by this process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from relu_deploy.errors import EXIT_BAD_INPUT, InputError, ReluDeployError, TooLong, Unsupported, UsageError
from relu_deploy.interrupts import end_on_signals
from relu_deploy.parent_process import end_with_parent
from relu_deploy.trial_outcome import OUT_OF_MEMORY, OVERDUE, outcome_of

__all__ = ["check_timeout", "memory_of_command", "run_isolated", "try_in_child"]

#: Seconds between the request to end and the kill.
GRACE = 3.0
#: Seconds between a signal that ends this process and the kill of a child whose runtime blocks or handles that signal.
ENDING_GRACE = 1.0
#: Exit code of a child whose parent has ended.
ORPHANED = 128 + 15
#: bytes that runtimes need by themselves
LEAST_MEMORY = 4 * 10**9
#: Signals that request the end of a process.
ENDING = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM), getattr(signal, "SIGQUIT", signal.SIGTERM))
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
    """Fork this process, and wait in the parent.

    Returns:
        In the child, and where the command is not isolated, None: go on with the command. In the parent, the exit code of the
        child.

    Raises:
        InputError: In the parent, if the child took longer than `--timeout` or was killed for want of memory.
        KeyboardInterrupt: In the parent, if the child was killed after Ctrl-C.
        Unsupported: In the parent, if the child crashed.
        UsageError: If `--timeout` is not positive, or not supported on this system.
    """
    timeout = check_timeout(options)
    if not _can_fork():
        return None
    watch = _fork(timeout, core=options.debug, max_memory=getattr(options, "max_memory", None))
    if watch is None:
        return None
    # A run that takes too long ends its process with the code of bad input, in another thread than the one that has files to remove.
    if watch.received or not watch.has_exited or watch.code == EXIT_BAD_INPUT:
        _sweep(options)
    if watch.has_exited:
        return watch.code
    raise watch.error(" ".join([options.verb, *_model_files(options)[:1]]))


def check_timeout(options: argparse.Namespace) -> float | None:
    """Return the seconds of `--timeout`, None for no limit. Raises UsageError if it is not positive or not supported here."""
    timeout: float | None = getattr(options, "timeout", None)
    if timeout is not None and not timeout > 0:
        raise UsageError(f"--timeout must be positive, not {timeout:g}", "for instance --timeout 60")
    if timeout is not None and not _can_fork():
        raise UsageError("--timeout is not supported on this system", "leave it out")
    return timeout


def try_in_child(work: Callable[[], object], command: str, timeout: float | None) -> None:
    """Run `work` in a process of its own and wait. What it prints is dropped, and an error that it raises is ignored.

    Args:
        work: What may crash the process that it runs in, and is done again in this one.
        command: What to call it in an error.
        timeout: Seconds that it may take, None for no limit.

    Raises:
        InputError: If it took longer than `timeout`, or all memory.
        TooLong: If there is no `timeout`, and a graph takes longer than one from elsewhere may.
        Unsupported: If it crashed.
    """
    if not _can_fork():
        return
    watch = _fork(timeout, core=False)
    if watch is None:
        os._exit(_quiet(work, limited=timeout is None))
    if watch.code == OVERDUE:
        raise TooLong(
            f"{command} takes too long", "say how long it may take with --timeout, or use a smaller model or --max-batch"
        )
    if watch.code == OUT_OF_MEMORY:
        raise InputError(f"there is not enough memory for {command}", "use a smaller model or --max-batch")
    if not watch.has_exited:
        raise watch.error(command)


def _quiet(work: Callable[[], object], limited: bool) -> int:
    """Do `work` without output, and return the exit code of this process. limited: as for `outcome_of`."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        return outcome_of(work, limited)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except OSError:  # without a file descriptor the work fails as well, and that is reported
        return 0


def memory_of_command(max_memory: float | None) -> int:
    """Return the bytes of writable memory that a command may take.

    It is that of as many tensors of the largest allowed size as an evaluation may hold, at most all of the machine: what a graph
    computes from its inputs is known only when it runs.

    Args:
        max_memory: The largest tensor in GB, None for the default.
    """
    from relu_deploy.graph.loading.resources import TENSORS

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if max_memory is None or not max_memory > 0:
        return memory
    return min(memory, max(LEAST_MEMORY, int(TENSORS * max_memory * 1e9)))


def _can_fork() -> bool:
    return hasattr(signal, "sigtimedwait") and threading.active_count() == 1


def _fork(timeout: float | None, core: bool, max_memory: float | None = None) -> _Watch | None:
    """Fork this process, and wait in the parent until the child has ended.

    Args:
        timeout: Seconds that the child may take.
        core: Whether a crash of the child may leave a core file.
        max_memory: The largest tensor in GB, None for the default.

    Returns:
        How the child ended; None in the child.
    """
    signals = {signal.SIGCHLD, *(getattr(signal, name) for name in FORWARDED)}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Whoever started this process does not want to know how its children ended; this process does.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with contextlib.suppress(OSError):
        # To find the folder Python writes a file into it, which a signal could leave there.
        tempfile.gettempdir()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become_child(parent, core, max_memory)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return None
    try:
        watch = _Watch(child, signals, timeout)
        watch.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return watch


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


class _Watch:
    """Waits for a child.

    Attributes:
        code: The exit code of the child, or minus the number of the signal that ended it.
        timed_out: The child was ended because it took too long.
        received: Signals that another process sent, which were passed on, and those of the terminal, which the child got as well.
    """

    def __init__(self, child: int, signals: set[signal.Signals], timeout: float | None) -> None:
        self._child, self._signals = child, signals
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.code = 0
        self.timed_out = False
        self.received: set[int] = set()
        self._kill_at: float | None = None

    @property
    def has_exited(self) -> bool:
        """Return whether the child ended by itself."""
        return self.code >= 0 and not self.timed_out

    def error(self, command: str) -> ReluDeployError:
        """Return the error for a child that did not end by itself; end this process where a signal was meant for it.

        Args:
            command: What the child ran.
        """
        if self.timed_out:
            return InputError(
                f"{command} took longer than {self._timeout:g} s", "allow more with --timeout, or use smaller inputs"
            )
        number = -self.code
        # A runtime that is interrupted may end with an abort, and one that does not listen was killed.
        ended_by = number if number in self.received else next((one for one in ENDING if one in self.received), None)
        if ended_by == signal.SIGINT:
            raise KeyboardInterrupt
        if ended_by is not None:
            # End as this process would have without a child.
            signal.signal(ended_by, signal.SIG_DFL)
            os.kill(os.getpid(), ended_by)
        return _crash(number, command)

    def wait(self) -> None:
        """Wait for the end of the child."""
        while True:
            done, status = os.waitpid(self._child, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
                return
            ends = [end for end in (self._deadline, self._kill_at) if end is not None]
            remaining = max(0.0, min(ends) - time.monotonic()) if ends else 3600.0
            received = signal.sigtimedwait(self._signals, remaining)
            # Where a signal that is not waited for arrives at the end of the wait, Python returns memory that it has not written.
            if received is None or received.si_signo not in self._signals:
                self._expire()
            elif received.si_signo != signal.SIGCHLD:
                self.received.add(received.si_signo)
                if received.si_signo in ENDING and self._kill_at is None:
                    self._kill_at = time.monotonic() + ENDING_GRACE
                # The terminal sends Ctrl-C to the child as well; what a process sent, only this one received.
                if received.si_code <= 0:
                    self._send(received.si_signo)

    def _expire(self) -> None:
        """Request the child to end, or kill it if that was requested before."""
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._send(signal.SIGKILL)
            self._kill_at = None
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        self._send(signal.SIGKILL if self.timed_out else signal.SIGTERM)
        self._deadline = None if self.timed_out else time.monotonic() + GRACE
        self.timed_out = True

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)


def _become_child(parent: int, core: bool, max_memory: float | None) -> None:
    """Make this process one that dies with its parent or by a signal, and cannot take all memory."""
    import resource

    if not end_with_parent(parent):
        os._exit(ORPHANED)
    end_on_signals()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        allowed = memory_of_command(max_memory)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed if most < 0 else min(allowed, most), most))
    if not core:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


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
    """Remove the unfinished files and folders of a child that was ended."""
    from relu_deploy.cli.output_files import written_paths
    from relu_deploy.storage.bundle_files import complete_unlocked
    from relu_deploy.storage.files import sweep, temporary_prefix
    from relu_deploy.storage.folders import sweep_temporary_folders

    sweep_temporary_folders()
    for path in written_paths(options).values():
        target = Path(os.path.realpath(path))
        sweep(target.parent, temporary_prefix(target.name))
    for name in _model_files(options):
        complete_unlocked(Path(name))
