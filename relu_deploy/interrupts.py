"""Signals before a command has begun and after it has ended: they end the process, without a traceback."""

from __future__ import annotations

import signal

__all__ = ["end_on_interrupt", "end_on_signals", "raise_on_interrupt"]


def end_on_interrupt() -> None:
    """Let Ctrl-C end this process at once, as it ends programs that do not handle it.

    While Python imports modules, and while it ends threads at exit, a KeyboardInterrupt is raised where nobody can catch it. Does
    nothing where Ctrl-C is ignored, as for a command that a shell runs in the background.
    """
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process at once. For the end of a command, whose own handlers raise exceptions."""
    end_on_interrupt()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, after `end_on_interrupt`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
