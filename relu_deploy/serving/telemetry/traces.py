"""Traces of inference requests for an OpenTelemetry collector, built when a request has ended.

A request that is not sampled costs one pass over its headers. A sampled one becomes a span with a child for each part of its
time. A thread of the SDK sends them, from a bounded queue; spans that the collector does not accept are lost and logged.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from relu_deploy.errors import UsageError, missing_package
from relu_deploy.serving.errors import ServeError
from relu_deploy.serving.protocol.proto import SERVICE
from relu_deploy.serving.protocol.routes import INFERENCE, RequestContext
from relu_deploy.serving.telemetry.observer import MAX_TEXT, RequestObserver
from relu_deploy.serving.telemetry.span_exporter import CountingExporter, delivering
from relu_deploy.serving.telemetry.statistics import PARTS, Timings
from relu_deploy.version import __version__

__all__ = ["TraceOptions", "Traces", "tracing"]

PATH = "/v1/traces"
#: of the semantic conventions whose names are used here
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
#: the gRPC calls that are traced: those that run a model
CALLS = ("ModelInfer",)
#: gRPC status codes by the HTTP status of the same error
GRPC = {200: "OK", 0: "CANCELLED"} | {kind.http: kind.grpc for kind in ServeError.__subclasses__()}
#: W3C's two headers, as text (gRPC) and as bytes (HTTP)
CONTEXT = {name: name for name in ("traceparent", "tracestate")}
NAMES: dict[Any, str] = CONTEXT | {name.encode(): name for name in CONTEXT}

Attributes: TypeAlias = dict[str, str | int]


@dataclass(frozen=True)
class TraceOptions:
    """Where traces are sent.

    Attributes:
        endpoint: Of a collector that takes OTLP over HTTP.
        share: Of the requests without a trace context that are traced, 0 to 1.
    """

    endpoint: str
    share: float = 0.01

    @property
    def url(self) -> str:
        """Return the URL that spans are sent to. Raises UsageError if the endpoint is not an HTTP URL."""
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"--traces {self.endpoint!r} is not an HTTP URL of a collector", "for instance --traces http://localhost:4318"
            )
        path = parts.path.rstrip("/")
        return parts._replace(path=path if path.endswith(PATH) else path + PATH).geturl()


@contextmanager
def tracing(options: TraceOptions, following: RequestObserver) -> Iterator[Traces]:
    """Yield an observer that makes traces; at the end, send those that are left, within `span_exporter.FLUSH` seconds.

    Args:
        options: Where traces are sent, and of how many requests.
        following: Is notified of each request afterwards.

    Raises:
        BackendUnavailable: If the packages are not installed.
        UsageError: If the endpoint or an OTEL_ variable is invalid.
    """
    url = options.url
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
    except ImportError as error:
        raise missing_package(error.name or "opentelemetry-sdk", "otel") from error
    try:
        # Requests without a parent are sampled in `Traces`, before a span is made.
        provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), resource=_resource(), shutdown_on_exit=False)
        exporter = CountingExporter(OTLPSpanExporter(endpoint=url))
        provider.add_span_processor(BatchSpanProcessor(exporter))  # type: ignore[arg-type,unused-ignore]
    except ValueError as error:
        raise UsageError(f"--traces: the OTEL_ environment variables are invalid: {error}", "correct them") from error
    with delivering(provider, exporter, url):
        yield Traces(provider.get_tracer("relu_deploy.serve", __version__, SCHEMA), options.share, following, exporter)


class Traces:
    """A `RequestObserver` that makes traces, and sets the `trace_id` of traced requests for the observer that follows."""

    def __init__(self, tracer: Any, share: float, following: RequestObserver, exporter: CountingExporter) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        self._tracer, self._share, self._following, self._exporter = tracer, share, following, exporter
        self._kind, self._error = SpanKind.SERVER, Status(StatusCode.ERROR)

    def on_complete(self, context: RequestContext, status: int, seconds: float) -> None:
        """Trace the request, if it is sampled."""
        context.trace_id = self._trace(context, status, seconds)
        self._following.on_complete(context, status, seconds)

    def _trace(self, context: RequestContext, status: int, seconds: float) -> str:
        """Return the identifier of the request's trace, "" where it is not traced."""
        now, clock = time.time_ns(), time.perf_counter()
        parent = _parent(context.headers)
        if parent is None and random.random() >= self._share:
            return ""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        described = _rpc(context, status) if context.method == "gRPC" else _http(context, status)
        if described is None:
            return ""
        (name, attributes), timings = described, context.timings
        began = now - round(seconds * 1e9)
        moments = [] if timings is None else [now - round((clock - moment) * 1e9) for moment in _moments(timings)]
        # The thread may have been interrupted between the two readings of the clock, and a part cannot begin before the whole.
        began = min([began, *moments[:1]])
        span = self._tracer.start_span(name, parent or Context(), self._kind, start_time=began)
        if not span.is_recording():
            return ""
        span.set_attributes({key: value for key, value in (attributes | _own(context)).items() if value != ""})
        if status >= 500:
            span.set_status(self._error)
        within = set_span_in_context(span, Context())
        for part, (start, end) in zip(PARTS, pairwise(moments), strict=False):
            self._tracer.start_span(part, within, start_time=start).end(end)
        span.end(now)
        self._exporter.made += 1 + max(0, len(moments) - 1)
        return f"{span.get_span_context().trace_id:032x}"


def _moments(timings: Timings) -> list[float]:
    """Return when the parts of `timings` began and the last one ended, in seconds of time.perf_counter()."""
    moments = [timings.arrived]
    for name in PARTS:
        moments.append(moments[-1] + getattr(timings, name))
    return moments


def _parent(headers: Iterable[tuple[Any, Any]]) -> Any:
    """Return the trace context in the request's headers, None without a valid one."""
    found: dict[str, list[str]] = {}
    for key, value in headers:
        if (name := NAMES.get(key)) is not None:
            found.setdefault(name, []).append(value.decode("latin-1") if isinstance(value, bytes) else value)
    # With several, none is valid.
    if len(found.get("traceparent", ())) != 1:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract(found, Context())
    return context if get_current_span(context).get_span_context().is_valid else None


def _http(context: RequestContext, status: int) -> tuple[str, Attributes] | None:
    """Return the span's name and its attributes by the semantic conventions, None for a request that runs no model."""
    route = context.route
    if route.endpoint not in INFERENCE:
        return None
    attributes: Attributes = {
        "http.request.method": context.method,
        "http.route": route.template,
        "url.scheme": "http",
        "url.path": _text(context.path),
        "client.address": _text(context.client),
        "relu_deploy.model": _text(route.model),
    }
    if status:
        attributes["http.response.status_code"] = status
    if status >= 500 or not status:
        attributes["error.type"] = str(status) if status else "client_left"
    return f"{context.method} {route.template}", attributes


def _rpc(context: RequestContext, status: int) -> tuple[str, Attributes] | None:
    """Return what `_http` does, for a gRPC call."""
    if context.path not in CALLS:
        return None
    name, code = f"{SERVICE}/{context.path}", GRPC.get(status, "UNKNOWN")
    attributes: Attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "rpc.response.status_code": code,
        "client.address": _text(context.client),
        "relu_deploy.model": _text(context.model),
    }
    if status >= 500 or not status:
        attributes["error.type"] = code
    return name, attributes


def _own(context: RequestContext) -> Attributes:
    attributes: Attributes = {"relu_deploy.request_id": _text(context.id)}
    return attributes if context.timings is None else attributes | {"relu_deploy.batch_rows": context.timings.rows}


def _text(value: str) -> str:
    """Return `value` cut, and as valid UTF-8: half a surrogate pair would cost the whole batch of spans."""
    return value[:MAX_TEXT].encode("utf-8", "replace").decode()


def _resource() -> Any:
    """Return the resource of the spans: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, with defaults of our own."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create()
    named = not str(found.attributes["service.name"]).startswith("unknown_service")
    resource = Resource({"service.version": __version__}).merge(found)
    return resource if named else resource.merge(Resource({"service.name": "relu-deploy"}))
