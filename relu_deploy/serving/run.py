"""The verb serve: its options, and `serve`, which runs the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relu_deploy.errors import UsageError
from relu_deploy.serving.batcher import Limits
from relu_deploy.serving.loading import ModelOptions
from relu_deploy.serving.prediction.images import PictureLimits
from relu_deploy.serving.server import Ports, ServeOptions, serve
from relu_deploy.serving.telemetry.request_log import LogOptions
from relu_deploy.serving.telemetry.traces import TraceOptions
from relu_deploy.serving.transport.access import AccessOptions, ApiKeys
from relu_deploy.serving.transport.admission import AdmissionLimits
from relu_deploy.serving.transport.limits import HttpLimits
from relu_deploy.serving.transport.tls import TlsOptions

__all__ = [
    "AccessOptions",
    "AdmissionLimits",
    "ApiKeys",
    "HttpLimits",
    "Limits",
    "LogOptions",
    "ModelOptions",
    "Ports",
    "ServeOptions",
    "TlsOptions",
    "TraceOptions",
    "serve",
    "serve_options",
]


def serve_options(arguments: Any) -> ServeOptions:
    """Return the options of the command line's arguments. Raises UsageError for an invalid one."""
    for name, least in (
        ("max_batch", 1),
        ("queue", 1),
        ("max_delay", 0),
        ("deadline", 0),
        ("max_body", 0),
        ("request_memory", 1),
        ("max_per_client", 0),
    ):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {value}", "see relu-deploy serve --help")
    if not 0 < arguments.max_pixels <= 178:
        raise UsageError(f"--max-pixels must be above 0 and at most 178, not {arguments.max_pixels:g}", "it counts megapixels")
    ports = {}
    for name in ("http", "grpc", "metrics"):
        port = getattr(arguments, f"{name}_port")
        if not -1 <= port < 2**16 or (name == "http" and port < 0):
            raise UsageError(f"--{name}-port must be a port, not {port}", "0 takes a free one")
        ports[name] = None if port < 0 else port
    taken = [port for port in ports.values() if port]
    if len(set(taken)) < len(taken):
        raise UsageError(
            f"two of --http-port, --grpc-port and --metrics-port are {max(taken, key=taken.count)}", "0 takes a free one"
        )
    if arguments.monitor_share is not None and not 0 <= arguments.monitor_share <= 1:
        raise UsageError(
            f"--monitor-share must be from 0 to 1, not {arguments.monitor_share:g}", "for instance --monitor-share 0.01"
        )
    if arguments.log_slow < 0:
        raise UsageError(f"--log-slow must be at least 0, not {arguments.log_slow:g}", "for instance --log-slow 1000")
    traces = _trace_options(arguments.traces, arguments.trace_share)
    limits = Limits(arguments.max_batch, arguments.max_delay / 1e3, arguments.queue)
    return ServeOptions(
        host=arguments.host,
        ports=Ports(**ports),  # type: ignore[arg-type]
        limits=HttpLimits(max_body=int(arguments.max_body * 2**20)),
        admission=AdmissionLimits(int(arguments.request_memory * 2**20), arguments.max_per_client),
        access=_access_options(arguments),
        tls=_tls_options(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca),
        settings=ModelOptions(
            arguments.backend,
            arguments.threads,
            arguments.device,
            limits,
            arguments.deadline,
            arguments.allow_nan,
            arguments.require_signature,
            arguments.timeout,
        ),
        pictures=PictureLimits(max_pixels=int(arguments.max_pixels * 1e6)),
        watch=arguments.watch,
        monitor_share=arguments.monitor_share,
        log=LogOptions(arguments.log_json, arguments.log_level, arguments.log_slow / 1e3),
        traces=traces,
    )


def _access_options(arguments: Any) -> AccessOptions:
    for origin in arguments.cors_origin:
        if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):
            raise UsageError(f"--cors-origin {origin!r} is not an origin", "for instance --cors-origin https://app.example.com")
    return AccessOptions(
        api_keys=None if arguments.api_key_file is None else ApiKeys.read(arguments.api_key_file),
        allow_admin=arguments.allow_admin,
        allowed_hosts=tuple(arguments.allowed_host),
        cors_origins=tuple(arguments.cors_origin),
    )


def _tls_options(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsOptions | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--tls-cert and --tls-key belong together", "give both")
    return TlsOptions(certificate, key, client_ca)


def _trace_options(endpoint: str | None, share: float | None) -> TraceOptions | None:
    if endpoint is None:
        if share is not None:
            raise UsageError("--trace-share needs --traces", "for instance --traces http://localhost:4318")
        return None
    options = TraceOptions(endpoint) if share is None else TraceOptions(endpoint, share)
    if not 0 <= options.share <= 1:
        raise UsageError(f"--trace-share must be from 0 to 1, not {options.share:g}", "for instance --trace-share 0.01")
    _ = options.url  # raises for an invalid endpoint
    return options
