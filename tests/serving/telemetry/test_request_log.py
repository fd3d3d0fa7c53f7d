"""The log tells failures and slow requests on one line each, and nothing of what was sent."""

import json
import logging

import pytest

from relu_deploy.serving.protocol.routes import RequestContext
from relu_deploy.serving.telemetry.request_log import LINES_PER_SECOND, AccessLog, LogOptions, logging_to_stderr
from relu_deploy.serving.telemetry.statistics import Timings


def logged(capsys, status, options, times=1, seconds=0.0, path="/v2/models/digits/infer", **fields):
    """Return the lines on stderr after `times` requests, the JSON ones parsed."""
    with logging_to_stderr(options):
        observer = AccessLog(options)
        for _ in range(times):
            headers = [(b"authorization", b"SECRET")]
            observer.on_complete(RequestContext("POST", path, "127.0.0.1", headers, **fields), status, seconds)
    lines = capsys.readouterr().err.splitlines()
    return [json.loads(line) for line in lines] if options.as_json else lines


@pytest.mark.parametrize(
    ("status", "level", "event"),
    [(400, "info", "failed"), (404, "info", "failed"), (500, "warning", "failed"), (0, "info", "gone")],
)
def test_a_request_that_failed_is_one_line(capsys, status, level, event):
    answer = logged(capsys, status, LogOptions(as_json=True))
    assert len(answer) == 1
    assert (answer[0]["level"], answer[0]["event"], answer[0]["status"], answer[0]["path"]) == (
        level,
        event,
        status,
        "/v2/models/digits/infer",
    )
    assert answer[0]["time"].endswith("Z")


def test_one_that_succeeded_in_time_is_told_at_debug_only(capsys):
    assert logged(capsys, 200, LogOptions(as_json=True)) == []
    assert logged(capsys, 200, LogOptions(as_json=True, level="debug"))[0]["event"] == "served"


def test_a_slow_one_is_told_with_where_the_time_went(capsys):
    fields = {"model": "digits", "id": "7", "timings": Timings(0.5, 0.001, 0.25, 0.002)}
    answer = logged(capsys, 200, LogOptions(as_json=True, slow=0.01), seconds=0.02, **fields)[0]
    assert (answer["event"], answer["model"], answer["id"]) == ("slow", "digits", "7")
    assert answer["ms"] >= 20
    assert (answer["queue_ms"], answer["compute_infer_ms"]) == (500, 250)


@pytest.mark.parametrize("as_json", [True, False])
def test_what_a_client_chose_is_cut_and_cannot_begin_a_line_of_its_own(capsys, as_json):
    fields = {"id": "a\n2026 error: forged \x1b[31m" + "b" * 500, "model": "digits"}
    answer = logged(capsys, 500, LogOptions(as_json=as_json), path="/v2\nx" + "y" * 500, **fields)
    assert len(answer) == 1
    assert len(json.dumps(answer[0])) < 1000
    assert "\x1b" not in str(answer[0]) or as_json
    assert "SECRET" not in str(answer[0])


def test_people_get_a_line_to_read(capsys):
    line = logged(capsys, 503, LogOptions(), model="digits", id="two words")[0]
    assert "warning: failed" in line
    assert "status=503" in line
    assert 'id="two words"' in line


def test_a_flood_of_failures_is_counted_instead_of_told(capsys):
    answer = logged(capsys, 503, LogOptions(as_json=True), times=1000)
    # It may have crossed a second or two.
    assert LINES_PER_SECOND <= len(answer) <= 3 * LINES_PER_SECOND + 3


def test_the_level_is_kept_and_nothing_stays_behind(capsys):
    logger = logging.getLogger("relu_deploy")
    before = list(logger.handlers), logger.level, logger.propagate
    assert logged(capsys, 400, LogOptions(level="warning")) == []
    assert (list(logger.handlers), logger.level, logger.propagate) == before


def test_an_exception_is_told_with_its_traceback_in_the_same_object(capsys):
    with logging_to_stderr(LogOptions(as_json=True)):
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("relu_deploy.serve").exception("a request failed")
    answer = json.loads(capsys.readouterr().err)
    assert answer["level"] == "error"
    assert "ValueError: broken" in answer["exception"]


def test_a_flood_of_one_kind_of_line_is_cut_with_its_tracebacks_and_spares_the_others(capsys):
    logger = logging.getLogger("relu_deploy.serve")
    with logging_to_stderr(LogOptions(as_json=True)):
        for number in range(1000):
            try:
                raise ValueError(f"broken {number}")
            except ValueError:
                logger.exception("a request failed")
        logging.getLogger("uvicorn.error").warning("another library's line")
        logger.info("another kind")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    failed = [line for line in lines if line["event"] == "a request failed"]
    assert LINES_PER_SECOND <= len(failed) <= 3 * LINES_PER_SECOND
    assert sum("exception" in line for line in failed) == 1
    assert {"another library's line", "another kind"} < {line["event"] for line in lines}


def test_a_call_over_grpc_that_fails_is_told_like_a_request_over_http(digits_bundle, tmp_path):
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")
    from grpc_running import serving

    from relu_deploy.serving.protocol.proto import messages

    with serving(tmp_path, digits_bundle.path, "--log-json") as server:
        with pytest.raises(grpc.RpcError) as raised:
            server.stub.ModelInfer(messages().ModelInferRequest(model_name="digits", id="seven"))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        for line in server.process.stderr:
            answer = json.loads(line)
            if answer["event"] == "failed":
                break
    assert (answer["method"], answer["path"], answer["status"]) == ("gRPC", "ModelInfer", 400)
    assert (answer["model"], answer["id"]) == ("digits", "seven")
