"""What TensorRT says: its logger, and the lines that its compiler prints to stdout."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["captured_stdout", "logger_of"]


@cache
def logger_of(trt: Any) -> Any:
    """Return the logger of the library, which keeps its first logger as long as any of its objects exists.

    Attributes of the logger: `messages`, (severity, text) of each warning and error; `one_at_a_time`, a lock for its users.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []
            self.one_at_a_time = threading.Lock()

        def log(self, severity: Any, msg: str) -> None:
            if severity.name not in ("INFO", "VERBOSE"):
                self.messages.append((severity.name, msg.strip()))

    logger = Logger()
    if (register := getattr(trt, "init_libnvinfer_plugins", None)) is not None:
        # Registers the standard plug-ins, such as EfficientNMS_TRT.
        register(logger, "")
    return logger


@contextmanager
def captured_stdout() -> Iterator[list[str]]:
    """Redirect file descriptor 1, which the compiler prints to, and add the lines to the yielded list after the block."""
    lines: list[str] = []
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 1)
        try:
            yield lines
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            caught.seek(0)
            lines += caught.read().decode(errors="replace").splitlines()
