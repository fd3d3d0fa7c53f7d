"""Traces of inference requests for an OpenTelemetry collector, made of what is known when a request has ended.

A request that is not sampled costs a look at its headers. One that is becomes a span with a child for each part of its
time. They are sent by a thread of the SDK's own, from a bounded queue; what a collector does not take is lost, and told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from relu_deploy.errors import UsageError, missing_package
from relu_deploy.serving.errors import DeadlineExceeded, InternalError, InvalidArgument, NotFound, TooLarge, Unavailable
from relu_deploy.serving.protocol.routes import asked_of
from relu_deploy.serving.telemetry.observer import CUT, RequestObserver
from relu_deploy.serving.telemetry.span_exporter import CountingExporter, delivering
from relu_deploy.serving.telemetry.statistics import PARTS, Timings
from relu_deploy.version import __version__

__all__ = ["TraceOptions", "Traces", "tracing"]

PATH = "/v1/traces"
#: of the semantic conventions whose names are used here
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
SERVICE = "inference.GRPCInferenceService"
#: the calls that are traced, over HTTP and over gRPC: those that run a model
VERBS, CALLS = ("infer", "predict", "relus"), ("ModelInfer",)
#: by the HTTP status that the same refusal has
GRPC = {200: "OK", 0: "CANCELLED"} | {
    kind.http: kind.grpc for kind in (InvalidArgument, NotFound, TooLarge, Unavailable, DeadlineExceeded, InternalError)
}
#: W3C's two headers, as HTTP and as gRPC hand them over
CONTEXT = {name: name for name in ("traceparent", "tracestate")}
NAMES: dict[Any, str] = CONTEXT | {name.encode(): name for name in CONTEXT}

Attributes: TypeAlias = dict[str, str | int]


@dataclass(frozen=True)
class TraceOptions:
    """endpoint: of a collector that takes OTLP over HTTP. share: of the requests that come without a trace, 0 to 1."""

    endpoint: str
    share: float = 0.01

    @property
    def url(self) -> str:
        """Return where spans are sent. Raises UsageError for an endpoint that is none."""
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"--traces {self.endpoint!r} is no HTTP endpoint of a collector", "for instance --traces http://localhost:4318"
            )
        path = parts.path.rstrip("/")
        return parts._replace(path=path if path.endswith(PATH) else path + PATH).geturl()


@contextmanager
def tracing(options: TraceOptions, then: RequestObserver) -> Iterator[Traces]:
    """Yield who makes traces and tells `then`; in the end, send what is left, within `delivery.FLUSH` seconds.

    Raises BackendUnavailable without the packages, UsageError for an endpoint that is none.
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
        # The share is drawn before anything is made of a request; what comes here without a parent has been drawn.
        provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), resource=_resource(), shutdown_on_exit=False)
        delivery = CountingExporter(OTLPSpanExporter(endpoint=url))
        provider.add_span_processor(BatchSpanProcessor(delivery))  # type: ignore[arg-type,unused-ignore]
    except ValueError as error:
        raise UsageError(f"--traces: the environment's OTEL_ variables do not fit: {error}", "set them anew") from error
    with delivering(provider, delivery, url):
        yield Traces(provider.get_tracer("relu_deploy.serve", __version__, SCHEMA), options.share, then, delivery)


class Traces:
    """A `RequestObserver` that makes traces and tells `then`, with the `trace_id` of what it has traced."""

    def __init__(self, tracer: Any, share: float, then: RequestObserver, delivery: CountingExporter) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        self._tracer, self._share, self._then, self._delivery = tracer, share, then, delivery
        self._kind, self._error = SpanKind.SERVER, Status(StatusCode.ERROR)

    def tell(self, fields: Mapping[str, Any], status: int, seconds: float) -> None:
        trace_id = self._traced(fields, status, seconds)
        self._then.tell(fields if trace_id is None else {**fields, "trace_id": trace_id}, status, seconds)

    def _traced(self, fields: Mapping[str, Any], status: int, seconds: float) -> str | None:
        """Return the identifier of the request's trace, None where it is not traced."""
        now, clock = time.time_ns(), time.perf_counter()
        parent = _parent(fields.get("headers", ()))
        if parent is None and random.random() >= self._share:
            return None
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        named = _rpc(fields, status) if fields["method"] == "gRPC" else _http(fields, status)
        if named is None:
            return None
        timings: Timings | None = fields.get("timings")
        began = now - round(seconds * 1e9)
        moments = [] if timings is None else [now - round((clock - moment) * 1e9) for moment in _moments(timings)]
        # Between the two readings of the clock the thread may have lost its turn, and a part cannot begin before the whole.
        began = min([began, *moments[:1]])
        span = self._tracer.start_span(named[0], parent or Context(), self._kind, start_time=began)
        if not span.is_recording():
            return None
        span.set_attributes({name: value for name, value in (named[1] | _ours(fields, timings)).items() if value != ""})
        if status >= 500:
            span.set_status(self._error)
        within = set_span_in_context(span, Context())
        for name, (start, end) in zip(PARTS, pairwise(moments), strict=False):
            self._tracer.start_span(name, within, start_time=start).end(end)
        span.end(now)
        self._delivery.made += 1 + max(0, len(moments) - 1)
        return f"{span.get_span_context().trace_id:032x}"


def _moments(timings: Timings) -> list[float]:
    """Return when the parts of `timings` began and the last one ended, in seconds of time.perf_counter()."""
    moments = [timings.arrived]
    for name in PARTS:
        moments.append(moments[-1] + getattr(timings, name))
    return moments


def _parent(headers: Iterable[tuple[Any, Any]]) -> Any:
    """Return the context that the request comes with, None when it comes with none that is valid."""
    found: dict[str, list[str]] = {}
    for key, value in headers:
        if (name := NAMES.get(key)) is not None:
            found.setdefault(name, []).append(value.decode("latin-1") if isinstance(value, bytes) else value)
    # Which of several would be meant is nobody's to guess.
    if len(found.get("traceparent", ())) != 1:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract(found, Context())
    return context if get_current_span(context).get_span_context().is_valid else None


def _http(fields: Mapping[str, Any], status: int) -> tuple[str, Attributes] | None:
    """Return the span's name and its attributes by the conventions, None for a request that runs no model."""
    method, path = fields["method"], fields["path"]
    asked = asked_of(path)
    if asked is None or method != "POST" or asked.verb not in VERBS:
        return None
    route = f"/v2/models/{{model}}{'/versions/{version}' if asked.version is not None else ''}/{asked.verb}"
    told: Attributes = {
        "http.request.method": method,
        "http.route": route,
        "url.scheme": "http",
        "url.path": _text(path),
        "client.address": _text(fields.get("client")),
        "relu_deploy.model": _text(asked.model),
    }
    if status:
        told["http.response.status_code"] = status
    if status >= 500 or not status:
        told["error.type"] = str(status) if status else "client_left"
    return f"{method} {route}", told


def _rpc(fields: Mapping[str, Any], status: int) -> tuple[str, Attributes] | None:
    """Return what `_http` does, for a call over gRPC."""
    if fields["path"] not in CALLS:
        return None
    name, code = f"{SERVICE}/{fields['path']}", GRPC.get(status, "UNKNOWN")
    told: Attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "rpc.response.status_code": code,
        "client.address": _text(fields.get("client")),
        "relu_deploy.model": _text(fields.get("model")),
    }
    if status >= 500 or not status:
        told["error.type"] = code
    return name, told


def _ours(fields: Mapping[str, Any], timings: Timings | None) -> Attributes:
    told: Attributes = {"relu_deploy.request_id": _text(fields.get("id"))}
    return told if timings is None else told | {"relu_deploy.batch_rows": timings.rows}


def _text(value: Any) -> str:
    """Return `value` cut, and as text that can be sent: half a surrogate pair would cost the whole batch of spans."""
    return str(value or "")[:CUT].encode("utf-8", "replace").decode()


def _resource() -> Any:
    """Return what the spans are of: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and where they do not, we."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create()
    named = not str(found.attributes["service.name"]).startswith("unknown_service")
    told = Resource({"service.version": __version__}).merge(found)
    return told if named else told.merge(Resource({"service.name": "relu-deploy"}))
