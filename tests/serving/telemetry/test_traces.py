"""What a collector gets: true times, the client's trace, no content, as many as were payload for; and what it costs when it is away."""

import json
import logging
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="OpenTelemetry is not installed (pip install 'relu-deploy[otel]')"
)

import numpy as np
from collector import Collector
from running import Running, answer_on

from relu_deploy.errors import UsageError
from relu_deploy.serving.protocol.routes import RequestContext, parse_route
from relu_deploy.serving.telemetry.span_exporter import ExporterLogFilter
from relu_deploy.serving.telemetry.statistics import PARTS, Timings
from relu_deploy.serving.telemetry.traces import TraceOptions, tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
INFER = "/v2/models/digits/infer"


def post(path=INFER, method="POST", **fields):
    return RequestContext(method, path, route=parse_route(method, path), **fields)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Batches leave at once, and an absent collector is given up after a second."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")


@pytest.fixture
def collector():
    with Collector() as one:
        yield one


def input_of(bundle):
    spec = bundle.inputs[0]
    shape = [1, *spec.shape[1:]]
    data = np.zeros(int(np.prod(shape))).tolist()
    return {"inputs": [{"name": spec.name, "shape": shape, "datatype": "FP32", "data": data}], "id": "seven"}


class Observed(list):
    def on_complete(self, context, status, seconds):
        self.append((context, status, seconds))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# ---------------------------------------------------------------- what a span says


def test_a_request_is_a_span_with_a_child_for_each_part_of_its_time(digits_bundle, collector):
    before = time.time_ns()
    with Running(digits_bundle.path, "--traces", collector.url, "--trace-share", 1) as server:
        assert server.ask("POST", INFER, input_of(digits_bundle))[0] == 200
        (span,) = collector.wait_for(1)
        server.stop()
    after = time.time_ns()
    assert collector.paths[0] == "/v1/traces"
    assert (span.name, span.parent, span.failed) == ("POST /v2/models/{model}/infer", "", False)
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": INFER,
        "client.address": "127.0.0.1",
        "relu_deploy.model": "digits",
        "relu_deploy.request_id": "seven",
        "relu_deploy.batch_rows": 1,
    }
    assert before < span.start < span.end < after
    parts = collector.parts_of(span)
    assert [part.name for part in parts] == list(PARTS)
    assert {part.trace for part in parts} == {span.trace}
    assert span.start <= parts[0].start
    assert parts[-1].end <= span.end
    assert [part.end for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert parts[2].end > parts[2].start


def test_the_parts_are_as_long_as_the_request_says_and_lie_where_they_were(collector):
    with tracing(TraceOptions(collector.url, 1.0), Observed()) as traces:
        timings = Timings(0.010, 0.002, 0.030, 0.001, time.perf_counter() - 0.050, 4)
        traces.on_complete(post(timings=timings), 200, 0.060)
    (span,) = collector.roots()
    parts = collector.parts_of(span)
    assert [round((part.end - part.start) / 1e6, 2) for part in parts] == [10, 2, 30, 1]
    assert round((span.end - span.start) / 1e6, 2) == 60
    assert 9 <= (parts[0].start - span.start) / 1e6 <= 10
    assert span.attributes["relu_deploy.batch_rows"] == 4


def test_a_part_never_begins_before_the_whole(collector):
    with tracing(TraceOptions(collector.url, 1.0), Observed()) as traces:
        traces.on_complete(post(timings=Timings(0.01, 0, 0, 0, time.perf_counter() - 0.011, 1)), 200, 0.001)
    (span,) = collector.roots()
    assert collector.parts_of(span)[0].start == span.start


@pytest.mark.parametrize(
    ("status", "failed", "kind"),
    [(200, False, None), (404, False, None), (500, True, "500"), (503, True, "503"), (0, False, "client_left")],
)
def test_only_what_the_server_failed_on_is_an_error(collector, status, failed, kind):
    with tracing(TraceOptions(collector.url, 1.0), Observed()) as traces:
        traces.on_complete(post(), status, 0.001)
    (span,) = collector.roots()
    assert (span.failed, span.attributes.get("error.type")) == (failed, kind)
    assert span.attributes.get("http.response.status_code", 0) == status


@pytest.mark.parametrize(
    ("status", "code", "failed"),
    [
        (200, "OK", False),
        (0, "CANCELLED", False),
        (400, "INVALID_ARGUMENT", False),
        (413, "RESOURCE_EXHAUSTED", False),
        (500, "INTERNAL", True),
        (503, "UNAVAILABLE", True),
        (504, "DEADLINE_EXCEEDED", True),
    ],
)
def test_a_call_over_grpc_has_the_code_that_its_client_gets(collector, status, code, failed):
    with tracing(TraceOptions(collector.url, 1.0), Observed()) as traces:
        traces.on_complete(RequestContext("gRPC", "ModelInfer", model="digits"), status, 0.001)
    (span,) = collector.roots()
    assert (span.attributes["rpc.response.status_code"], span.failed) == (code, failed)
    assert span.attributes.get("error.type") == (code if failed or status == 0 else None)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/models/m/versions/1/infer", "/v2/models/{model}/versions/{version}/infer"),
        ("/v2/models/m/predict", "/v2/models/{model}/predict"),
        ("/v2/models/m/relus", "/v2/models/{model}/relus"),
        ("/v2/health/live", None),
        ("/v2/models/m/ready", None),
        ("/v2/models/m", None),
        ("/v2/repository/models/m/load", None),
        ("/", None),
    ],
)
def test_what_runs_a_model_is_traced_and_nothing_else(collector, path, route):
    observed = Observed()
    with tracing(TraceOptions(collector.url, 1.0), observed) as traces:
        traces.on_complete(post(path, headers=[(b"traceparent", SAMPLED.encode())]), 200, 0.001)
        traces.on_complete(post(path, "GET"), 200, 0.001)
    assert [span.attributes["http.route"] for span in collector.roots()] == ([route] if route else [])
    assert [bool(context.trace_id) for context, *_ in observed] == [bool(route), False]


def test_what_a_client_chose_is_cut_and_cannot_spoil_the_batch(collector):
    with tracing(TraceOptions(collector.url, 1.0), Observed()) as traces:
        traces.on_complete(post(f"/v2/models/{'m' * 500}/infer", id="\ud800" + "b" * 500), 200, 0.001)
    (span,) = collector.roots()
    assert span.attributes["relu_deploy.request_id"] == "?" + "b" * 127
    assert len(span.attributes["relu_deploy.model"]) == len(span.attributes["url.path"]) == 128


def test_the_environment_names_the_service_and_the_headers(collector, monkeypatch):
    with tracing(TraceOptions(collector.url, 1.0), Observed()) as traces:
        traces.on_complete(post(), 200, 0.001)
    assert collector.spans()[0].resource["service.name"] == "relu-deploy"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reader")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    with tracing(TraceOptions(collector.url + "/v1/traces", 1.0), Observed()) as traces:
        traces.on_complete(post(), 200, 0.001)
    resource = collector.spans()[1].resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("reader", "staging")
    assert collector.headers[1]["api-key"] == "secret"
    assert collector.paths == ["/v1/traces", "/v1/traces"]


# ---------------------------------------------------------------- which requests


def test_a_client_that_traces_is_followed_and_the_log_says_where(digits_bundle, collector):
    words = ("--traces", collector.url, "--trace-share", 0, "--log-json", "--log-level", "debug")
    with Running(digits_bundle.path, *words) as server:
        server.ask("POST", INFER, input_of(digits_bundle), traceparent=UNSAMPLED)
        server.ask("POST", INFER, input_of(digits_bundle))
        server.ask("POST", INFER, input_of(digits_bundle), traceparent=SAMPLED, tracestate="vendor=1,other=2")
        (span,) = collector.wait_for(1)
        server.stop()
        server.errors.seek(0)
        lines = [json.loads(line) for line in server.errors]
    assert (span.trace, span.parent, span.state) == (TRACE, SPAN, "vendor=1,other=2")
    assert len(collector.roots()) == 1
    served = [line for line in lines if line["event"] == "served"]
    assert [line.get("trace_id") for line in served] == [None, None, TRACE]
    assert not any("headers" in line for line in lines)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize(
    "headers",
    [
        [(b"traceparent", b"nonsense")],
        [(b"traceparent", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01")],
        [(b"traceparent", SAMPLED.encode()), (b"traceparent", UNSAMPLED.encode())],
        [(b"tracestate", b"a=1")],
    ],
    ids=["nonsense", "zeros", "two", "state only"],
)
def test_a_parent_that_is_none_counts_for_nothing(collector, capfd, headers, share):
    with tracing(TraceOptions(collector.url, share), Observed()) as traces:
        traces.on_complete(post(headers=headers), 200, 0.001)
    assert [span.parent for span in collector.roots()] == [""] * int(share)
    assert "nonsense" not in capfd.readouterr().err


def test_a_tracestate_that_is_none_is_left_out_and_not_logged(collector, capfd):
    headers = [(b"traceparent", SAMPLED.encode()), (b"tracestate", b"FORGED LINE")]
    with tracing(TraceOptions(collector.url, 0.0), Observed()) as traces:
        traces.on_complete(post(headers=headers), 200, 0.001)
    assert [(span.trace, span.state) for span in collector.roots()] == [(TRACE, "")]
    assert "FORGED" not in capfd.readouterr().err


def test_the_share_is_that_of_the_requests_without_a_parent(collector):
    observed, calls, share = Observed(), 4000, 0.05
    with tracing(TraceOptions(collector.url, share), observed) as traces:
        for _ in range(calls):
            traces.on_complete(post(), 200, 0.001)
    found = sum(bool(context.trace_id) for context, *_ in observed)
    # Five standard deviations of the binomial: 1 run in 2 million is outside by chance.
    assert abs(found - share * calls) < 5 * (calls * share * (1 - share)) ** 0.5
    assert len({span.trace for span in collector.roots()}) == len(collector.roots()) == found


def test_a_request_that_is_turned_away_is_traced_with_its_parent(digits_bundle, collector):
    words = ("--traces", collector.url, "--trace-share", 0, "--queue", 1, "--max-batch", 8, "--max-delay", 3000)
    with Running(digits_bundle.path, *words) as server:
        body = json.dumps(input_of(digits_bundle))
        first = server.connect()
        first.request("POST", INFER, body)  # it waits for company, and the queue is full
        statuses, until = [], time.monotonic() + 10
        while 503 not in statuses and time.monotonic() < until:
            headers = {"traceparent": SAMPLED, "content-type": "application/json"}
            small = json.dumps({"inputs": []})
            statuses.append(answer_on(server.connect(), "POST", INFER, small, **headers)[0])
        assert statuses[-1] == 503
        assert first.getresponse().status == 200
        refused = [span for span in collector.wait_for(len(statuses)) if span.attributes["http.response.status_code"] == 503]
        assert [(span.trace, span.parent, span.failed) for span in refused] == [(TRACE, SPAN, True)]
        assert collector.parts_of(refused[0]) == []
        # Refused before it was a request of the application.
        assert refused[0].start == refused[0].end
        assert server.stop() == 0


def test_a_call_over_grpc_is_traced_like_a_request_over_http(digits_bundle, collector, tmp_path):
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")
    from grpc_running import serving

    from relu_deploy.serving.protocol.proto import messages

    spec = digits_bundle.inputs[0]
    rows = np.zeros((2, *spec.shape[1:]), np.float32)
    tensor = messages().ModelInferRequest.InferInputTensor(name=spec.name, shape=rows.shape, datatype="FP32")
    good = messages().ModelInferRequest(model_name="digits", id="seven", inputs=[tensor], raw_input_contents=[rows.tobytes()])
    metadata = (("traceparent", SAMPLED), ("tracestate", "vendor=1"), ("token-bin", b"\x00\xff"))
    with serving(tmp_path, digits_bundle.path, "--traces", collector.url, "--trace-share", 0) as server:
        server.stub.ModelInfer(good, metadata=metadata)
        server.stub.ModelInfer(good)
        server.stub.ServerLive(messages().ServerLiveRequest(), metadata=metadata)
        with pytest.raises(grpc.RpcError):
            server.stub.ModelInfer(messages().ModelInferRequest(model_name="none"), metadata=metadata)
        found = collector.wait_for(2)
    span, missing = sorted(found, key=lambda each: each.start)
    assert len(collector.roots()) == 2
    assert (span.name, span.trace, span.parent, span.state) == (
        "inference.GRPCInferenceService/ModelInfer",
        TRACE,
        SPAN,
        "vendor=1",
    )
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "client.address": "127.0.0.1",
        "relu_deploy.model": "digits",
        "relu_deploy.request_id": "seven",
        "relu_deploy.batch_rows": 2,
    }
    parts = collector.parts_of(span)
    assert [part.name for part in parts] == list(PARTS)
    assert span.start <= parts[0].start
    assert parts[-1].end <= span.end
    assert (missing.attributes["rpc.response.status_code"], missing.failed) == ("NOT_FOUND", False)


# ---------------------------------------------------------------- when the collector is not there


def test_what_is_left_is_sent_before_the_process_ends(digits_bundle, collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with Running(digits_bundle.path, "--traces", collector.url, "--trace-share", 1) as server:
        for _ in range(20):
            server.ask("POST", INFER, input_of(digits_bundle))
        assert collector.roots() == []
        assert server.stop() == 0
    assert len(collector.roots()) == 20
    assert len(collector.spans()) == 100


@pytest.mark.parametrize("how", ["away", "slow", "refuses"])
def test_a_collector_that_takes_nothing_keeps_nobody_waiting(digits_bundle, monkeypatch, how):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30" if how == "slow" else "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50")
    with Collector(slow=60.0 if how == "slow" else 0.0, status=400) as absent:
        url = f"http://127.0.0.1:{free_port()}" if how == "away" else absent.url
        with Running(digits_bundle.path, "--traces", url, "--trace-share", 1, "--log-json") as server:
            began, took = time.monotonic(), []
            while time.monotonic() - began < 4:
                started = time.monotonic()
                assert server.ask("POST", INFER, input_of(digits_bundle))[0] == 200
                took.append(time.monotonic() - started)
            assert max(took) < 1
            began = time.monotonic()
            assert server.stop() == 0
            # Connections are taken for a while after the signal, and the flush is given two seconds.
            assert time.monotonic() - began < 4
            server.errors.seek(0)
            lines = [json.loads(line) for line in server.errors]
    reply = [line for line in lines if line["event"] == "traces are not delivered"]
    assert len(reply) == 1
    assert reply[0]["collector"] == f"{url}/v1/traces"
    lost = [line for line in lines if line["event"] == "traces were lost"]
    assert [(line["spans"], line["of"]) for line in lost] == [(5 * len(took), 5 * len(took))]
    assert not any("Traceback" in str(line) for line in lines)


def test_failed_exports_are_one_line_a_minute_without_the_password_of_the_collector(caplog):
    log_filter = ExporterLogFilter("http://me:secret@collector:4318/v1/traces")

    def emit(name, level, message):
        log_filter.handle(logging.LogRecord(name, level, "", 0, message, (), None))

    with caplog.at_level(logging.WARNING, "relu_deploy.serve"):
        emit("opentelemetry.exporter.x", logging.WARNING, "Transient\nerror")
        assert caplog.records == []
        for _ in range(100):
            emit("opentelemetry.exporter.x", logging.ERROR, "failed")
        emit("opentelemetry.trace.span", logging.WARNING, "a client's words")
        log_filter._next = 0.0
        emit("opentelemetry.sdk.x", logging.WARNING, "Queue full")
    first, second = (record.fields for record in caplog.records)
    assert first == {"collector": "http://collector:4318/v1/traces", "reason": "failed", "tried": "Transient error"}
    assert (second["reason"], second["left_out"]) == ("Queue full", 99)


def test_nothing_of_it_stays_behind(collector):
    logger = logging.getLogger("opentelemetry")
    before = list(logger.handlers), logger.propagate
    with tracing(TraceOptions(collector.url, 1.0), Observed()) as traces:
        traces.on_complete(post(), 200, 0.001)
    assert (list(logger.handlers), logger.propagate) == before
    assert not [one for one in threading.enumerate() if one.name.startswith(("Otel", "relu-deploy traces"))]


# ---------------------------------------------------------------- asking for it


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://localhost:4317", "http://", "collector"])
def test_an_endpoint_that_is_none_is_named(command, endpoint):
    answer = command("serve", "digits.rdb", "--traces", endpoint)
    assert answer.code == 2
    assert endpoint in answer.stderr
    assert "http://localhost:4318" in answer.stderr


@pytest.mark.parametrize("words", [["--trace-share", "0.5"], ["--traces", "http://localhost:4318", "--trace-share", "2"]])
def test_a_share_that_makes_no_sense_is_named(command, words):
    answer = command("serve", "digits.rdb", *words)
    assert answer.code == 2
    assert "--trace-share" in answer.stderr


def test_an_environment_that_does_not_fit_is_an_error_and_no_traceback(monkeypatch, collector):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    with pytest.raises(UsageError, match="OTEL_"), tracing(TraceOptions(collector.url), Observed()):
        pass


def run_with(code, *words):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )


def test_without_the_package_it_says_what_to_install(digits_bundle):
    code = "import sys\nsys.modules['opentelemetry.exporter'] = None\nfrom relu_deploy.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    ports = ("--http-port", 0, "--grpc-port", -1, "--metrics-port", -1)
    answer = run_with(code, "serve", digits_bundle.path, *ports, "--traces", "http://localhost:4318")
    assert answer.returncode == 3
    assert "hint: pip install 'relu-deploy[otel]'" in answer.stderr


def test_nothing_of_it_is_imported_when_it_is_not_asked_for(digits_bundle):
    code = """
import os, signal, sys
from relu_deploy.serving.run import Ports, ServeOptions, serve
ports = Ports(http=0, grpc=0, metrics=None)
def started(_):
    os.kill(os.getpid(), signal.SIGTERM)
serve([sys.argv[1]], ServeOptions(ports=ports), started=started)
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    answer = run_with(code, digits_bundle.path)
    assert (answer.returncode, "listening" in answer.stderr) == (0, True), answer.stderr
