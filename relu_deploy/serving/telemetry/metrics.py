"""The metrics that a Prometheus server scrapes at /metrics, computed at each scrape from the models' statistics.

Metrics that begin with nv_ have the names, labels and units of Triton's user guide (metrics.md), so that dashboards and
autoscalers made for Triton work. Those without a counterpart there begin with relu_deploy_.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from relu_deploy.bundle import sha256
from relu_deploy.serving.errors import ServeError
from relu_deploy.serving.models import VERSION, Model, Models
from relu_deploy.serving.protocol.routes import RequestContext, Route
from relu_deploy.serving.telemetry.statistics import BUCKETS, StatisticsSnapshot
from relu_deploy.serving.transport.access import AccessPolicy

__all__ = ["CONTENT_TYPE", "Metrics", "MetricsApp"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTS = {
    "nv_inference_request_success": ("success", "Number of successful inference requests, all batch sizes"),
    "nv_inference_count": ("inferences", "Number of inferences performed"),
    "nv_inference_exec_count": ("executions", "Number of model executions performed"),
}
DURATIONS = {
    "request": "end to end, from arrival to answer",
    "queue": "waiting in the queue",
    "compute_input": "until the input was ready",
    "compute_infer": "in the model",
    "compute_output": "until the output was ready",
}
#: Triton's reasons, and the reasons in `Statistics` that they cover
REASONS = {"REJECTED": ("refused", "busy", "late"), "CANCELED": ("cancelled",), "BACKEND": ("failed",), "OTHER": ()}


class Metrics:
    """The registry of one server. For the event loop's thread."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._machine = _MachineMetrics()
        self._shas: dict[tuple[str, Any], str] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)  # type: ignore[arg-type]  # it has the one method that is called

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        text = generate_latest(self._registry).decode()
        # prometheus_client appends _total to every counter; Triton's names do not have it.
        return re.sub(r"^(# (?:HELP|TYPE) nv_\w+)_total ", r"\1 ", text, flags=re.MULTILINE).encode()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, for the registry."""
        snapshots = {name: each.snapshot() for name, each in self._models.statistics().items()}
        models = self._models.loaded()
        yield from _triton_metrics(snapshots, models)
        yield from self._machine.collect()
        yield from _own_metrics(snapshots, models)
        yield self._info(models)
        yield from _monitors(models)

    def _info(self, models: Iterable[Model]) -> Metric:
        info = GaugeMetricFamily(
            "relu_deploy_model_info",
            "The loaded models; always 1",
            labels=("model", "version", "backend", "variant", "sha256"),
        )
        for model in models:
            key = (model.name, model.stamp)
            if key not in self._shas:
                self._shas = {known: sha for known, sha in self._shas.items() if known[0] != model.name}
                self._shas[key] = _sha_of(model)
            info.add_metric([model.name, VERSION, model.backend, model.bundle.variant, self._shas[key]], 1)
        return info


def _sha_of(model: Model) -> str:
    """Return the sha256 of the graph that is served: from the manifest, which was checked when it was loaded."""
    bundle = model.bundle
    if bundle.is_folder:
        return str(bundle.manifest["files"].get(bundle.onnx.relative_to(bundle.path).as_posix(), {}).get("sha256", ""))
    try:
        return sha256(bundle.onnx)
    except OSError:
        return ""


def _triton_metrics(snapshots: Mapping[str, StatisticsSnapshot], models: Iterable[Model]) -> Iterator[Metric]:
    for metric, (field, help_text) in COUNTS.items():
        yield _counter(metric, help_text, (({"model": name}, getattr(each, field)) for name, each in snapshots.items()))
    yield _counter(
        "nv_inference_request_failure",
        "Number of failed inference requests, all batch sizes",
        (
            ({"model": name, "reason": reason}, count)
            for name, each in snapshots.items()
            for reason, count in _by_reason(each.failures).items()
        ),
    )
    for part, description in DURATIONS.items():
        yield _counter(
            f"nv_inference_{part}_duration_us",
            f"Cumulative inference duration in microseconds, {description}",
            (({"model": name}, int(each.durations[part] * 1e6)) for name, each in snapshots.items()),
        )
    pending = GaugeMetricFamily(
        "nv_inference_pending_request_count", "Number of requests awaiting execution", labels=("model", "version")
    )
    for model in models:
        pending.add_metric([model.name, VERSION], model.waiting)
    yield pending


def _counter(name: str, help_text: str, values: Iterable[tuple[dict[str, str], float]]) -> Metric:
    metric = Metric(name, help_text, "counter")
    for labels, value in values:
        metric.add_sample(name, {**labels, "version": VERSION}, value)
    return metric


def _by_reason(failures: Mapping[str, int]) -> dict[str, int]:
    counts = {reason: sum(failures.get(own, 0) for own in many) for reason, many in REASONS.items()}
    counts["OTHER"] = sum(failures.values()) - sum(counts.values())
    return counts


def _own_metrics(snapshots: Mapping[str, StatisticsSnapshot], models: Iterable[Model]) -> Iterator[Metric]:
    labels = ("model", "version")
    latency = HistogramMetricFamily(
        "relu_deploy_request_duration_seconds", "From a request's arrival to its answer, where it succeeded", labels=labels
    )
    sizes = HistogramMetricFamily("relu_deploy_batch_rows", "Rows of one run of the model", labels=labels)
    failed = CounterMetricFamily(
        "relu_deploy_requests_failed", "Requests without an answer, by reason", labels=("model", "version", "reason")
    )
    loads = CounterMetricFamily(
        "relu_deploy_model_loads", "Loads and reloads of the model, by result", labels=("model", "version", "result")
    )
    limits = {model.name: model.limits.max_batch for model in models}
    for name, each in snapshots.items():
        latency.add_metric([name, VERSION], _cumulative(BUCKETS, each.buckets), each.durations["request"])
        # Up to the largest batch, so that the buckets stay the same from scrape to scrape.
        greatest = max(limits.get(name, 1), *each.batches, 1)
        bounds = [2**power for power in range((greatest - 1).bit_length() + 1)]
        counts = [sum(count for rows, count in each.batches.items() if _bucket(bounds, rows) == at) for at in range(len(bounds))]
        sizes.add_metric([name, VERSION], _cumulative(bounds, [*counts, 0]), sum(r * count for r, count in each.batches.items()))
        for reason in sorted({"refused", "late", "failed", "cancelled", *each.failures}):
            failed.add_metric([name, VERSION, reason], each.failures.get(reason, 0))
        for result in ("loaded", "failed"):
            loads.add_metric([name, VERSION, result], each.loads.get(result, 0))
    limit = GaugeMetricFamily("relu_deploy_queue_limit", "Requests that may wait; further ones are refused", labels=labels)
    most = GaugeMetricFamily("relu_deploy_max_batch", "Most rows of one run", labels=labels)
    for model in models:
        limit.add_metric([model.name, VERSION], model.limits.queue)
        most.add_metric([model.name, VERSION], model.limits.max_batch)
    yield from (latency, sizes, failed, loads, limit, most)


def _bucket(bounds: Iterable[float], value: float) -> int:
    return next(index for index, bound in enumerate(bounds) if value <= bound)


def _cumulative(bounds: Iterable[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip([*map(float, bounds), float("inf")], counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return buckets


#: metrics of one monitor: name → (kind, help, path in its JSON)
MONITOR = {
    "samples": ("counter", "Samples that the Relu monitor ran again", ("samples",)),
    "dropped": ("counter", "Samples that it dropped because it was behind", ("dropped",)),
    "failed": ("counter", "Samples that it could not run", ("failed",)),
    "unusual": ("counter", "Samples whose firing pattern is rarer than 1 in 100 in the census", ("unusual",)),
    "alarms": ("counter", "How often the drift alarm was raised", ("drift", "alarms")),
    "drift_score": ("gauge", "Rank-sum statistic of the last samples' firing patterns against the census", ("drift", "score")),
    "drift_threshold": ("gauge", "Score above which the alarm is raised", ("drift", "threshold")),
    "drift_false_alarm_rate": ("gauge", "Share of windows that raise it when nothing drifted", ("drift", "false_alarm_rate")),
    "drift_alarm": ("gauge", "1 while the alarm is raised", ("drift", "alarm")),
}
MONITOR_RELU = {
    "firing_rate": ("gauge", "Share of the Relu's numbers above zero, over the last samples", "firing_rate"),
    "sparsity": ("gauge", "Share of the Relu's numbers that are zero, over the last samples", "sparsity"),
    "census_sparsity": ("gauge", "The same on the census", "census_sparsity"),
    "relu_drift_score": ("gauge", "As drift_score, of one Relu", "drift_score"),
    "excursions": ("counter", "Samples on which the Relu went above all of the census", "excursions"),
}


def _monitors(models: Iterable[Model]) -> Iterator[Metric]:
    states = {model.name: model.monitor.to_json() for model in models if model.monitor is not None}
    on = {name: each for name, each in states.items() if each["on"]}
    state = GaugeMetricFamily("relu_deploy_monitor_on", "1 where the Relu monitor is on", labels=("model", "version"))
    for name, each in states.items():
        state.add_metric([name, VERSION], float(each["on"]))
    yield state
    for metric, (kind, help_text, path) in MONITOR.items():
        family = _family(kind, f"relu_deploy_monitor_{metric}", help_text, ("model", "version"))
        for name, each in on.items():
            value = each
            for key in path:
                value = value[key]
            if value is not None:
                family.add_metric([name, VERSION], float(value))  # type: ignore[arg-type]
        yield family
    for metric, (kind, help_text, key) in MONITOR_RELU.items():
        family = _family(kind, f"relu_deploy_monitor_{metric}", help_text, ("model", "version", "relu"))
        for name, each in on.items():
            for relu in each["relus"]:
                if relu[key] is not None:
                    family.add_metric([name, VERSION, relu["node"]], float(relu[key]))
        yield family


def _family(kind: str, name: str, help_text: str, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    return (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, help_text, labels=labels)


class _MachineMetrics:
    """The machine's processors and memory, from /proc on Linux. Utilization: since the last scrape."""

    def __init__(self) -> None:
        self._last = self._times()

    def collect(self) -> Iterator[Metric]:
        if not sys.platform.startswith("linux"):
            return
        before, self._last = self._last, self._times()
        idle, total = (now - then for now, then in zip(self._last, before, strict=True))
        values = {"nv_cpu_utilization": ("CPU utilization rate [0.0 - 1.0]", 1 - idle / total if total > 0 else 0.0)}
        memory = {
            name: 1024 * int(rest.split()[0])
            for name, rest in (line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        }
        free = memory.get("MemAvailable", memory["MemFree"])
        values["nv_cpu_memory_total_bytes"] = ("CPU total memory (RAM), in bytes", memory["MemTotal"])
        values["nv_cpu_memory_used_bytes"] = ("CPU used memory (RAM), in bytes", memory["MemTotal"] - free)
        for name, (help_text, value) in values.items():
            yield GaugeMetricFamily(name, help_text, value)

    @staticmethod
    def _times() -> tuple[int, int]:
        """Return the jiffies that all processors were idle, and all jiffies."""
        try:
            times = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        return times[3] + times[4], sum(times)


class MetricsApp:
    """The ASGI application of the metrics port, which serves /metrics only."""

    def __init__(self, metrics: Metrics, access: AccessPolicy) -> None:
        self._metrics, self._access = metrics, access

    async def __call__(self, scope: Mapping[str, Any], _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        client = scope.get("client")
        context = RequestContext(scope["method"], scope["path"], client[0] if client else "", scope["headers"], Route("metrics"))
        context.http_version = scope.get("http_version", "1.0")
        status, body = 404, b"only GET /metrics is served here\n"
        try:
            self._access.check(context)
            if context.path == "/metrics" and context.method in ("GET", "HEAD"):
                status, body = 200, self._metrics.text()
        except ServeError as error:
            status, body = error.http, f"{error.text}\n".encode()
        headers = [
            (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            *self._access.response_headers(context),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if context.method == "HEAD" else body})
