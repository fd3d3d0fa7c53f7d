"""The server's log on stderr, and one line for each request that failed or was slow.

With --log-json every line is one JSON object: `time` (UTC, RFC 3339), `level`, `event`, and the event's fields. The content
of requests and answers is never logged; names and identifiers that clients choose are cut and escaped.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from relu_deploy.serving.protocol.routes import RequestContext
from relu_deploy.serving.telemetry.observer import MAX_TEXT
from relu_deploy.serving.telemetry.statistics import PARTS, Timings

__all__ = ["LEVELS", "LINES_PER_SECOND", "AccessLog", "LogOptions", "RateLimit", "logging_to_stderr"]

LEVELS = ("debug", "info", "warning", "error")
#: lines of one kind in one second; further ones are dropped, and those about requests counted
LINES_PER_SECOND = 20
#: seconds between two tracebacks of one kind
TRACEBACK_SECONDS = 10.0
#: kinds of lines that are counted
MAX_KINDS = 1000

log = logging.getLogger("relu_deploy.serve")
access = logging.getLogger("relu_deploy.serve.access")


@dataclass(frozen=True)
class LogOptions:
    """What is logged, and how.

    Attributes:
        as_json: One JSON object a line.
        level: The least that is logged, one of `LEVELS`; at debug every request is.
        slow: Seconds from which a request counts as slow.
    """

    as_json: bool = False
    level: str = "info"
    slow: float = 1.0


@contextmanager
def logging_to_stderr(options: LogOptions) -> Iterator[None]:
    """Send what the package logs, and warnings of its libraries, to stderr until the block ends."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if options.as_json else LineFormatter())
    handler.addFilter(RateLimit())
    own, root = logging.getLogger("relu_deploy"), logging.getLogger()
    level, propagate = own.level, own.propagate
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(handler.formatter)
    libraries.addFilter(handler.filters[0])
    libraries.setLevel(max(logging.WARNING, getattr(logging, options.level.upper())))
    own.addHandler(handler)
    root.addHandler(libraries)
    own.setLevel(options.level.upper())
    own.propagate = False
    try:
        yield
    finally:
        own.removeHandler(handler)
        root.removeHandler(libraries)
        own.level, own.propagate = level, propagate


class RateLimit(logging.Filter):
    """Drops lines of one kind beyond `LINES_PER_SECOND`, and their tracebacks beyond one each `TRACEBACK_SECONDS`."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[tuple[str, str], tuple[int, int]] = {}
        self._tracebacks: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, str(record.msg)[:MAX_TEXT]), time.monotonic()
        with self._lock:
            if len(self._lines) > MAX_KINDS:
                self._lines.clear()
                self._tracebacks.clear()
            second, lines = self._lines.get(kind, (int(now), 0))
            lines = lines + 1 if second == int(now) else 1
            self._lines[kind] = int(now), lines
            if record.exc_info:
                if now < self._tracebacks.get(kind, 0.0):
                    record.exc_info = record.exc_text = None
                else:
                    self._tracebacks[kind] = now + TRACEBACK_SECONDS
        return lines <= LINES_PER_SECOND


class JsonFormatter(logging.Formatter):
    """One JSON object a line. A record's `fields` are merged in."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True)


class LineFormatter(logging.Formatter):
    """One line for people: time, level, event and fields; a traceback goes below."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={_plain(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{clock} {record.levelname.lower()}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


class AccessLog:
    """A `RequestObserver` that logs requests over HTTP and gRPC, at a bounded rate.

    Failures of the server (500 and above) are warnings, others (400 and above) and slow requests infos, the rest debug.
    """

    def __init__(self, options: LogOptions = LogOptions()) -> None:  # it is frozen
        self._slow = options.slow
        self._second, self._lines, self._left_out = 0, 0, 0

    def on_complete(self, context: RequestContext, status: int, seconds: float) -> None:
        """Log one request, where the level says so."""
        slow = seconds >= self._slow
        level = logging.WARNING if status >= 500 else logging.INFO if status >= 400 or status == 0 or slow else logging.DEBUG
        if not access.isEnabledFor(level):
            return
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self._left_out += 1
            return
        event = "failed" if status >= 400 else "gone" if status == 0 else "slow" if slow else "served"
        fields = {**_fields(context), "status": status, "ms": round(seconds * 1e3, 3), **_times(context.timings)}
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        access.log(level, event, extra={"fields": fields})


def _fields(context: RequestContext) -> dict[str, Any]:
    """Return what the log says of the request itself; empty fields are left out."""
    names = ("method", "path", "client", "model", "id", "trace_id")
    return {name: text[:MAX_TEXT] for name in names if (text := getattr(context, name))}


def _times(timings: Timings | None) -> dict[str, float]:
    return {} if timings is None else {f"{name}_ms": round(getattr(timings, name) * 1e3, 3) for name in PARTS}
