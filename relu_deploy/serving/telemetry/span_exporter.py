"""The export of spans to a collector: in a thread of the SDK, and with few log lines when it fails.

The SDK waits up to half a minute for a collector at its end, and its loggers write to stderr without a limit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

__all__ = ["FLUSH", "INTERVAL", "CountingExporter", "ExporterLogFilter", "delivering"]

#: seconds that sending the last spans may take
FLUSH = 2.0
#: seconds between two lines about a collector that does not accept spans
INTERVAL = 60.0
#: characters of the SDK's message in such a line
MAX_MESSAGE = 400

log = logging.getLogger("relu_deploy.serve")


class CountingExporter:
    """An exporter around the SDK's.

    Attributes:
        made: Spans so far.
        delivered: Those that the collector accepted.
    """

    def __init__(self, exporter: Any) -> None:
        self._exporter, self._closed = exporter, False
        self.made = self.delivered = 0

    def export(self, spans: Sequence[Any]) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._closed:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        return result

    def shutdown(self) -> None:
        """Stop waiting for the collector, and send no more. May be called more than once."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()


class ExporterLogFilter(logging.Handler):
    """Logs what the SDK says about the collector at `url`, in one line each `INTERVAL` seconds, and drops the rest.

    The rest would be about requests: a client could write our log with malformed headers.
    """

    def __init__(self, url: str) -> None:
        super().__init__(logging.WARNING)
        parts = urlsplit(url)
        self.collector = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
        self._next, self._left_out, self._tried = 0.0, 0, ""

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            return
        message = " ".join(record.getMessage().split())[:MAX_MESSAGE]
        if record.levelno < logging.ERROR and record.name.startswith("opentelemetry.exporter"):
            # It retries. If that fails too, this was the reason.
            self._tried = message
            return
        if time.monotonic() < self._next:
            self._left_out += 1
            return
        fields = {"collector": self.collector, "reason": message, "tried": self._tried, "left_out": self._left_out}
        log.warning("traces are not delivered", extra={"fields": {name: value for name, value in fields.items() if value}})
        self._next, self._left_out = time.monotonic() + INTERVAL, 0


@contextmanager
def delivering(provider: Any, exporter: CountingExporter, url: str) -> Iterator[None]:
    """Log failed exports of `provider` until the block ends, and then send the spans that are left, for at most `FLUSH` seconds."""
    log_filter = ExporterLogFilter(url)
    logger = logging.getLogger("opentelemetry")
    propagated = logger.propagate
    logger.addHandler(log_filter)
    logger.propagate = False
    log.info("tracing", extra={"fields": {"collector": log_filter.collector}})
    try:
        yield
    finally:
        # A daemon thread, because nothing ends a request to a collector that does not answer.
        ending = threading.Thread(target=provider.shutdown, name="relu-deploy traces", daemon=True)
        ending.start()
        ending.join(FLUSH)
        exporter.shutdown()
        if (lost := exporter.made - exporter.delivered) > 0:
            fields = {"collector": log_filter.collector, "spans": lost, "of": exporter.made}
            log.warning("traces were lost", extra={"fields": fields})
        if not ending.is_alive():
            logger.removeHandler(log_filter)
            logger.propagate = propagated
