"""What /metrics says is true, has Triton's names exactly, and any Prometheus parser reads it."""

import asyncio
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from processes import python

from relu_deploy.errors import ReluDeployError
from relu_deploy.serving.batcher import Limits
from relu_deploy.serving.models import ModelOptions, Models
from relu_deploy.serving.protocol.tensors import InferRequest
from relu_deploy.serving.telemetry.drift_monitor import MonitorFactory

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
parser = pytest.importorskip(
    "prometheus_client.parser", reason="prometheus_client is not installed (pip install 'relu-deploy[serve]')"
)

from relu_deploy.serving.telemetry.metrics import CONTENT_TYPE, Metrics, MetricsApp  # noqa: E402
from relu_deploy.serving.transport.access import AccessPolicy  # noqa: E402

#: of the Triton user guide's metrics.md: what a server without GPUs, caches and summaries has
COUNTERS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
}
GAUGES = {"nv_inference_pending_request_count", "nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes"}


def digit(rows=1):
    return InferRequest({"x": np.zeros((rows, 1, 28, 28), np.float32)})


def scraped(bundle, doing, settings=ModelOptions(threads=1), share=0):  # noqa: B008
    """Return the text at /metrics after `doing(models)`."""

    async def run():
        models = Models(settings, MonitorFactory(share))
        metrics = Metrics(models)
        await models.add(bundle.path)
        await doing(models)
        text = metrics.text().decode()
        await models.close()
        return text

    return asyncio.run(run())


def values(text):
    """Return every sample of `text` by its name and labels, as prometheus_client's own parser reads it.

    The parser lets every counter's name end in _total, whether it did or not.
    """
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name
            found[(name, frozenset(sample.labels.items()))] = sample.value
    return found


def of(found, name, **labels):
    return found[(name, frozenset({"model": "digits", "version": "1", **labels}.items()))]


async def nothing(models):
    pass


def test_the_names_types_and_labels_are_tritons(digits_bundle):
    text = scraped(digits_bundle, nothing)
    typed = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE nv_"))
    expected = dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(GAUGES, "gauge")
    if not sys.platform.startswith("linux"):
        expected = {name: kind for name, kind in expected.items() if not name.startswith("nv_cpu")}
    assert typed == expected
    helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP nv_")}
    assert helped == set(expected)
    sampled = {line.split("{")[0].split()[0] for line in text.splitlines() if line.startswith("nv_")}
    assert sampled == set(expected)
    for name, labels in values(text):
        keys = {key for key, _ in labels}
        if name.startswith("nv_inference"):
            assert keys == {"model", "version"} | ({"reason"} if name == "nv_inference_request_failure" else set())
        elif name.startswith("nv_"):
            assert keys == set()


def test_all_of_tritons_reasons_are_there_from_the_start(digits_bundle):
    found = values(scraped(digits_bundle, nothing))
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        assert of(found, "nv_inference_request_failure", reason=reason) == 0


def test_requests_rows_and_runs_are_counted_and_the_times_add_up(digits_bundle):
    async def doing(models):
        for rows in (1, 3, 3, 8):
            await models.get("digits").infer(digit(rows))

    found = values(scraped(digits_bundle, doing))
    assert of(found, "nv_inference_request_success") == 4
    assert of(found, "nv_inference_count") == 15
    assert of(found, "nv_inference_exec_count") == 4
    assert of(found, "nv_inference_pending_request_count") == 0
    parts = [
        of(found, f"nv_inference_{part}_duration_us") for part in ("queue", "compute_input", "compute_infer", "compute_output")
    ]
    assert of(found, "nv_inference_compute_infer_duration_us") > 0
    assert sum(parts) <= of(found, "nv_inference_request_duration_us") + len(parts)
    assert of(found, "relu_deploy_request_duration_seconds_count") == 4
    assert of(found, "relu_deploy_request_duration_seconds_bucket", le="+Inf") == 4
    assert of(found, "relu_deploy_request_duration_seconds_sum") * 1e6 == pytest.approx(
        of(found, "nv_inference_request_duration_us"), abs=1
    )
    sizes = {bound: of(found, "relu_deploy_batch_rows_bucket", le=bound) for bound in ("1.0", "2.0", "4.0", "8.0", "+Inf")}
    assert sizes == {"1.0": 1, "2.0": 1, "4.0": 3, "8.0": 4, "+Inf": 4}
    assert of(found, "relu_deploy_batch_rows_sum") == 15


def test_a_refused_and_a_late_request_are_rejected_ones(digits_bundle):
    async def doing(models):
        model = models.get("digits")
        # The loop does not give way between these: the queue fills before anything can be taken from it for long.
        answers = await asyncio.gather(*(model.infer(digit()) for _ in range(200)), return_exceptions=True)
        assert any(isinstance(answer, ReluDeployError) for answer in answers)
        with pytest.raises(ReluDeployError):
            await model.infer(InferRequest(digit().inputs, parameters={"timeout": 0.001}))

    found = values(scraped(digits_bundle, doing, ModelOptions(threads=1, limits=Limits(queue=2))))
    refused, late = (of(found, "relu_deploy_requests_failed_total", reason=reason) for reason in ("refused", "late"))
    assert refused > 0
    assert late == 1
    assert of(found, "nv_inference_request_failure", reason="REJECTED") == refused + late
    assert of(found, "nv_inference_request_success") == 200 - refused
    assert of(found, "relu_deploy_queue_limit") == 2


def test_loads_are_counted_by_how_they_ended_and_counts_outlive_a_reload(digits_copy):
    async def doing(models):
        await models.get("digits").infer(digit())
        await models.load("digits")
        await models.get("digits").infer(digit())
        kept = digits_copy.onnx.read_bytes()
        digits_copy.onnx.write_bytes(b"broken")
        with pytest.raises(ReluDeployError):
            await models.load("digits")
        digits_copy.onnx.write_bytes(kept)

    found = values(scraped(digits_copy, doing))
    assert of(found, "relu_deploy_model_loads_total", result="loaded") == 2
    assert of(found, "relu_deploy_model_loads_total", result="failed") == 1
    assert of(found, "nv_inference_request_success") == 2


def test_the_graph_that_is_served_can_be_told_by_its_hash(digits_bundle):
    found = values(scraped(digits_bundle, nothing))
    sha = digits_bundle.manifest["files"]["model.onnx"]["sha256"]
    assert of(found, "relu_deploy_model_info", backend="onnxruntime-cpu", variant="", sha256=sha) == 1


def test_an_unloaded_model_keeps_its_counts_and_has_no_gauges(digits_bundle):
    async def doing(models):
        await models.get("digits").infer(digit())
        await models.unload("digits")

    found = values(scraped(digits_bundle, doing))
    assert of(found, "nv_inference_request_success") == 1
    assert not [name for name, _ in found if name in ("relu_deploy_queue_limit", "relu_deploy_model_info")]


def test_the_monitor_has_its_metrics_where_there_is_a_census_and_says_off_where_not(digits_bundle, digits_copy):
    from relu_deploy.activations.census import census

    digits_copy = digits_copy.add(
        "reports/baseline.npz", census(digits_copy, "digits", samples=200, threads=1).baseline.to_bytes()
    )

    async def doing(models):
        watch = models.get("digits").monitor
        await asyncio.to_thread(watch.wait, 30)
        for _ in range(20):
            await models.get("digits").infer(digit())
        await asyncio.to_thread(watch.settle, 30)

    found = values(scraped(digits_copy, doing, share=1.0))
    assert of(found, "relu_deploy_monitor_on") == 1
    assert of(found, "relu_deploy_monitor_samples_total") + of(found, "relu_deploy_monitor_dropped_total") == 20
    # Twenty times the very same grey square is like no digit.
    assert of(found, "relu_deploy_monitor_drift_alarm") == 1
    assert of(found, "relu_deploy_monitor_drift_score") > of(found, "relu_deploy_monitor_drift_threshold")
    relus = [dict(labels)["relu"] for name, labels in found if name == "relu_deploy_monitor_sparsity"]
    assert len(set(relus)) == 6
    for relu in relus:
        rates = of(found, "relu_deploy_monitor_firing_rate", relu=relu), of(found, "relu_deploy_monitor_sparsity", relu=relu)
        assert sum(rates) == pytest.approx(1)
    off = values(scraped(digits_bundle, doing, share=None))
    assert of(off, "relu_deploy_monitor_on") == 0
    assert not [name for name, _ in off if name == "relu_deploy_monitor_samples_total"]


def test_two_servers_in_one_process_have_nothing_in_common(digits_bundle):
    async def run():
        first, second = Models(ModelOptions(threads=1)), Models(ModelOptions(threads=1))
        reply = Metrics(first), Metrics(second)
        for models in (first, second):
            await models.add(digits_bundle.path)
        await first.get("digits").infer(digit())
        texts = [values(each.text().decode()) for each in reply]
        await first.close()
        await second.close()
        return texts

    first, second = asyncio.run(run())
    assert of(first, "nv_inference_request_success") == 1
    assert of(second, "nv_inference_request_success") == 0


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/metrics", 200), ("POST", "/metrics", 404), ("GET", "/", 404)])
def test_the_port_has_metrics_and_nothing_else(method, path, status):
    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        await MetricsApp(Metrics(Models(ModelOptions())), AccessPolicy())(
            {"type": "http", "method": method, "path": path, "headers": []}, None, send
        )

    asyncio.run(run())
    assert sent[0]["status"] == status
    assert dict(sent[0]["headers"])[b"content-type"].decode() == CONTENT_TYPE


# ---------------------------------------------------------------- the process


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read().decode()


def test_the_process_has_metrics_on_a_port_of_their_own_and_logs_json(digits_bundle, tmp_path):
    words = ["serve", digits_bundle.path, "--http-port", 0, "--grpc-port", -1, "--metrics-port", 0, "--threads", 1]
    words += ["--log-json", "--log-slow", 0, "--json", "-"]
    command = [python(), "-m", "relu_deploy", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read()
            where = json.loads("".join(lines))
            assert where["metrics"] != where["http"]
            body = {"id": "one", "inputs": [{"name": "x", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}]}
            url = f"http://127.0.0.1:{where['http']}/v2/models/digits/infer"
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=20).close()
            with pytest.raises(urllib.error.HTTPError) as missing:
                get(where["http"], "/metrics")
            missing.value.close()
            assert missing.value.code == 404
            assert of(values(get(where["metrics"], "/metrics")), "nv_inference_request_success") == 1
        finally:
            process.terminate()
            reply = process.communicate(timeout=30)[1]
    assert process.returncode == 0
    events = [json.loads(line) for line in reply.splitlines()]
    one = next(event for event in events if event.get("id") == "one")
    assert (one["event"], one["status"], one["model"]) == ("slow", 200, "digits")
    assert one["ms"] >= one["queue_ms"] + one["compute_infer_ms"]
    assert next(event for event in events if event.get("path") == "/metrics")["status"] == 404


def test_a_metrics_port_that_is_taken_is_an_error_that_names_the_option(command, digits_bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = command("serve", digits_bundle.path, "--http-port", 0, "--grpc-port", -1, "--metrics-port", port)
    assert answer.code == 2
    assert "--metrics-port" in answer.stderr
    assert str(port) in answer.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metrics-port", 8000], "two of --http-port"),
        (["--monitor-share", 2], "--monitor-share"),
        (["--monitor-share", -0.1], "--monitor-share"),
        (["--log-slow", -1], "--log-slow"),
        (["--metrics-port", 70000], "--metrics-port"),
        (["--log-level", "loud"], "loud"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_loaded(command, options, says):
    answer = command("serve", "nowhere.rdb", *options)
    assert answer.code == 2
    assert says in answer.stderr
