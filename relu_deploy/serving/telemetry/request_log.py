"""The server's log on stderr, and one line for each request that failed or was slow.

With --log-json every line is one JSON object: `time` (UTC, RFC 3339), `level`, `event`, and what belongs to it. Nothing of
a request's or an answer's content is ever in it; names and identifiers that clients choose are cut and escaped.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from relu_deploy.serving.telemetry.observer import BESIDE, CUT, RequestObserver
from relu_deploy.serving.telemetry.statistics import PARTS, Timings

__all__ = ["LEVELS", "Access", "AccessLog", "LogOptions", "logging_to_stderr"]

LEVELS = ("debug", "info", "warning", "error")
#: lines of one kind in one second; more are counted and told with the next one
MOST = 20

log = logging.getLogger("relu_deploy.serve")
access = logging.getLogger("relu_deploy.serve.access")


@dataclass(frozen=True)
class LogOptions:
    """level: the least that is told, one of `LEVELS`; at debug every request is. slow: seconds from which a request is slow."""

    as_json: bool = False
    level: str = "info"
    slow: float = 1.0


@contextmanager
def logging_to_stderr(options: LogOptions) -> Iterator[None]:
    """Send what the package logs to stderr until the block ends."""
    logger = logging.getLogger("relu_deploy")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if options.as_json else LineFormatter())
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(options.level.upper())
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class JsonFormatter(logging.Formatter):
    """One JSON object a line. A record's `fields` are merged in."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=True)


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


class Access:
    """A `RequestObserver` that logs what came of requests, over HTTP and gRPC, within bounds.

    Failures by the server (500 and above) are warnings, others (400 and above) and slow requests infos, the rest debug.
    """

    def __init__(self, options: LogOptions = LogOptions()) -> None:  # it is frozen
        self._slow = options.slow
        self._second, self._lines, self._left_out = 0, 0, 0

    def tell(self, fields: Mapping[str, Any], status: int, seconds: float) -> None:
        """Log one request, if it is worth it."""
        slow = seconds >= self._slow
        level = logging.WARNING if status >= 500 else logging.INFO if status >= 400 or status == 0 or slow else logging.DEBUG
        if not access.isEnabledFor(level):
            return
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines > MOST:
            self._left_out += 1
            return
        event = "failed" if status >= 400 else "gone" if status == 0 else "slow" if slow else "served"
        told = {**_cut(fields), "status": status, "ms": round(seconds * 1e3, 3), **_times(fields.get("timings"))}
        if self._left_out:
            told["left_out"], self._left_out = self._left_out, 0
        access.log(level, event, extra={"fields": told})


class AccessLog:
    """An ASGI application around another one, which tells `access` what comes of its requests."""

    def __init__(self, app: Any, access: RequestObserver) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        noted: dict[str, Any] = {}

        async def sent(message: Mapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app({**scope, "noted": noted}, receive, sent)
        finally:
            client = scope.get("client")
            fields = {"method": scope["method"], "path": scope["path"], "client": client[0] if client else ""}
            self._access.tell({**fields, "headers": scope["headers"], **noted}, status, time.perf_counter() - started)


def _cut(fields: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: value[:CUT] if isinstance(value, str) else value for name, value in fields.items() if name not in BESIDE}
    return {name: value for name, value in told.items() if value not in ("", None)}


def _times(timings: Timings | None) -> dict[str, float]:
    return {} if timings is None else {f"{name}_ms": round(getattr(timings, name) * 1e3, 3) for name in PARTS}
