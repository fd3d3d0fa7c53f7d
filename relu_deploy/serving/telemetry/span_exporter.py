"""How spans reach a collector: in a thread of the SDK's, which keeps nobody waiting, and with few words when they do not.

The SDK waits up to half a minute for a collector when it ends, and its loggers would write what they like to stderr.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

__all__ = ["EVERY", "FLUSH", "CountingExporter", "delivering"]

#: seconds that the last spans may take
FLUSH = 2.0
#: seconds between two lines about a collector that does not take them
EVERY = 60.0
#: characters of what the SDK says about one
SAID = 400

log = logging.getLogger("relu_deploy.serve")


class CountingExporter:
    """An exporter around the SDK's. made: spans so far. delivered: those that the collector took."""

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
        """End what is being waited for, and send no more. More than once is no matter."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()


class ExporterLogFilter(logging.Handler):
    """Tells what the SDK logs about the collector at `url`, in one line each `EVERY` seconds; other things are not told.

    They would be about requests: a client could write our log with headers that are not what they should be.
    """

    def __init__(self, url: str) -> None:
        super().__init__(logging.WARNING)
        parts = urlsplit(url)
        self.collector = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # a password is not for the log
        self._next, self._left_out, self._tried = 0.0, 0, ""

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            return
        said = " ".join(record.getMessage().split())[:SAID]
        if record.levelno < logging.ERROR and record.name.startswith("opentelemetry.exporter"):
            # It tries again. If that is in vain too, this was why.
            self._tried = said
            return
        if time.monotonic() < self._next:
            self._left_out += 1
            return
        fields = {"collector": self.collector, "reason": said, "tried": self._tried, "left_out": self._left_out}
        log.warning("traces are not delivered", extra={"fields": {name: value for name, value in fields.items() if value}})
        self._next, self._left_out = time.monotonic() + EVERY, 0


@contextmanager
def delivering(provider: Any, delivery: CountingExporter, url: str) -> Iterator[None]:
    """Tell what becomes of the spans of `provider` until the block ends, and then for at most `FLUSH` seconds send those left."""
    complaints = ExporterLogFilter(url)
    logger = logging.getLogger("opentelemetry")
    propagated = logger.propagate
    logger.addHandler(complaints)
    logger.propagate = False
    log.info("tracing", extra={"fields": {"collector": complaints.collector}})
    try:
        yield
    finally:
        # A thread that dies with the process: nothing ends a request to a collector that does not answer.
        ending = threading.Thread(target=provider.shutdown, name="relu-deploy traces", daemon=True)
        ending.start()
        ending.join(FLUSH)
        delivery.shutdown()
        if (lost := delivery.made - delivery.delivered) > 0:
            fields = {"collector": complaints.collector, "spans": lost, "of": delivery.made}
            log.warning("traces were lost", extra={"fields": fields})
        if not ending.is_alive():
            logger.removeHandler(complaints)
            logger.propagate = propagated
