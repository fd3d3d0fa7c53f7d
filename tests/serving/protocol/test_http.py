"""The HTTP server as a client meets it: the protocol, and everything that is not the protocol."""

import concurrent.futures
import contextlib
import json
import shutil
import signal
import socket
import struct
import time

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from running import Running, answer_on, hammer, until

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def server(digits_bundle):
    with Running(digits_bundle.path, "--max-body", "1", "--allow-admin") as running:
        yield running


@pytest.fixture(scope="module")
def session(digits_bundle):
    return digits_bundle.session("onnxruntime-cpu")


def pictures(rows=1, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 1, 28, 28)).astype(np.float32)


def binary(x, **fields):
    """Return the body and headers of a request whose input and output are bytes."""
    one = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}, **fields}).encode()
    return head + x.tobytes(), {"Inference_Header_Content_Length": str(len(head)), "Content_Type": "application/octet-stream"}


def output_of(content, headers):
    length = int(headers["inference-header-content-length"])
    reply = json.loads(content[:length])["outputs"][0]
    return np.frombuffer(content[length:], np.float32).reshape(reply["shape"])


def as_http(body, **headers):
    lines = [f"POST {INFER} HTTP/1.1", "Host: h", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_health_metadata_and_statistics_are_the_protocols(server):
    assert server.ask("GET", "/v2/health/live")[0] == 200
    assert server.ask("GET", "/v2/health/ready")[:2] == (200, {"live": True, "ready": True})
    assert "binary_tensor_data" in server.ask("GET", "/v2")[1]["extensions"]
    about = server.ask("GET", "/v2/models/digits")[1]
    assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert server.ask("GET", "/v2/models/digits/versions/1")[1] == about
    assert server.ask("GET", "/v2/models/digits/ready")[0] == 200
    assert server.ask("GET", "/v2/models/digits/config")[1]["input"][0]["dims"] == [1, 28, 28]
    before = server.ask("GET", "/v2/models/digits/stats")[1]["model_stats"][0]
    server.ask("POST", INFER, *([binary(pictures(3))[0]]), **binary(pictures(3))[1])
    after = server.ask("GET", "/v2/models/stats")[1]["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["inference_stats"]["queue"]["count"] - before["inference_stats"]["queue"]["count"] == 1


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_answers_equal_the_sessions_own_bit_for_bit(server, session, rows):
    x = pictures(rows, rows)
    body, headers = binary(x, id="mine")
    status, content, reply = server.ask("POST", INFER, body, **headers)
    assert status == 200
    expected = session.run({"x": x})["y"]
    np.testing.assert_array_equal(output_of(content, reply), expected)
    status, answer, _ = server.ask(
        "POST", INFER, {"id": "7", "inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}]}
    )
    assert (status, answer["id"], answer["model_name"]) == (200, "7", "digits")
    np.testing.assert_array_equal(np.float32(answer["outputs"][0]["data"]).reshape(rows, 10), expected)


def test_many_clients_at_once_each_get_their_own_answer(server, session):
    def one(seed):
        x = pictures(1 + seed % 3, seed)
        body, headers = binary(x)
        status, content, reply = server.ask("POST", INFER, body, **headers)
        return status, output_of(content, reply), x

    def shared_runs():
        stats = server.ask("GET", "/v2/models/digits/stats")[1]["model_stats"][0]
        return stats["inference_stats"]["success"]["count"] - stats["execution_count"]

    before = shared_runs()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        # On a busy machine the requests of one wave may arrive one by one.
        for wave in range(20):
            for status, got, x in pool.map(one, range(80 * wave, 80 * (wave + 1))):
                assert status == 200
                np.testing.assert_allclose(got, session.run({"x": x})["y"], rtol=1e-4, atol=1e-5)
            if shared_runs() > before:
                break
    assert shared_runs() > before


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v2/models/other", None, 404, "no model called 'other'"),
        ("POST", "/v2/models/other/infer", "{}", 404, "no model called 'other'"),
        ("GET", "/v2/models/digits/versions/2", None, 404, "no version '2'"),
        ("GET", "/v3", None, 404, "nothing at"),
        ("DELETE", "/v2/models/digits", None, 404, "nothing at"),
        ("POST", INFER, "{", 400, "not JSON"),
        ("POST", INFER, "", 400, "'inputs'"),
        (
            "POST",
            INFER,
            {"inputs": [{"name": "x", "shape": [1, 1, 28, 27], "datatype": "FP32", "data": [0] * 756}]},
            400,
            "shape",
        ),
        (
            "POST",
            INFER,
            {"inputs": [{"name": "x", "shape": [9, 1, 28, 28], "datatype": "FP32", "data": [0] * 7056}]},
            400,
            "a batch of 9",
        ),
        ("POST", INFER, {"inputs": [], "parameters": {"timeout": "soon"}}, 400, "no tensor"),
        ("POST", "/v2/repository/models/nope/load", "{}", 404, "no model called"),
        (
            "POST",
            "/v2/repository/models/digits/load",
            {"parameters": {"config": "{}"}},
            400,
            "the path that the server was started with",
        ),
    ],
)
def test_what_is_wrong_gets_its_status_and_one_line(server, method, path, body, status, words):
    got, answer, _ = server.ask(method, path, body)
    assert got == status
    assert words in answer["error"]
    assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_a_timeout_that_is_no_number_is_refused(server):
    body, headers = binary(pictures(), parameters={"timeout": "soon"})
    assert server.ask("POST", INFER, body, **headers)[0] == 400


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    received = server.raw(as_http(b"", Content_Length=10**9))
    assert received.startswith(b"HTTP/1.1 413")
    assert b"exceeds the limit of 1048576" in received
    chunk = b"%x\r\n%b\r\n" % (2**16, bytes(2**16))
    received = server.raw(as_http(chunk * 40, Transfer_Encoding="chunked"))
    assert received.startswith(b"HTTP/1.1 413")


def test_a_packed_body_is_refused(server):
    assert server.ask("POST", INFER, b"\x1f\x8b", Content_Encoding="gzip")[0] == 400


@pytest.mark.parametrize("length", ["x", "-1", "99999999999999999999", "1e3", ""])
def test_a_header_length_that_is_no_number_is_refused(server, length):
    assert server.ask("POST", INFER, b"{}", Inference_Header_Content_Length=length)[0] == 400


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_so_and_the_server_goes_on(server, sent):
    received = server.raw(sent)
    assert received.startswith(b"HTTP/1.1 400")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    assert server.ask("GET", "/v2/health/live")[0] == 200


def test_headers_without_end_are_cut_off(server):
    received = server.raw(b"GET /v2 HTTP/1.1\r\n" + b"a: " + b"x" * 200_000)
    assert received.startswith(b"HTTP/1.1 431") or received == b""
    assert server.ask("GET", "/v2/health/live")[0] == 200


def test_a_client_that_has_shut_down_its_sending_side_still_gets_its_answer(server, session):
    x = pictures()
    body, headers = binary(x)
    received = server.raw(as_http(body, Content_Length=len(body), **headers), half_close=True)
    final = received[received.index(b"HTTP/1.1 200") :]
    head, _, content = final.partition(b"\r\n\r\n")
    length = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"inference-header"))
    np.testing.assert_array_equal(output_of(content, {"inference-header-content-length": length}), session.run({"x": x})["y"])


def test_clients_that_leave_half_way_do_not_harm_others(server):
    body, headers = binary(pictures())
    whole = as_http(body, Content_Length=len(body), **headers)
    for cut in (10, 150, len(whole) - 100, len(whole)):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as one:
                # Closed with a reset: the harshest way to leave.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.sendall(whole[:cut])
    assert server.ask("POST", INFER, body, **headers)[0] == 200
    stats = lambda: server.ask("GET", "/v2/models/digits/stats")[1]  # noqa: E731
    assert stats()["model_stats"][0]["inference_count"] > 0


def test_several_requests_on_one_connection_and_in_one_packet(server):
    body, headers = binary(pictures())
    connection = server.connect()
    with contextlib.closing(connection):
        for _ in range(20):
            assert answer_on(connection, "POST", INFER, body, **headers)[0] == 200
        # A refusal before the body was read ends the connection, as it must.
        assert answer_on(connection, "POST", "/v2/models/other/infer", body, **headers)[2]["connection"] == "close"
    two = as_http(body, Content_Length=len(body), **headers) * 2
    assert server.raw(two, timeout=2).count(b"HTTP/1.1 200") == 2


def test_slow_headers_and_slow_bodies_are_given_up_on(digits_bundle, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys\n"
        "from relu_deploy.serving.run import HttpLimits, Ports, ServeOptions, serve\n"
        "options = ServeOptions(ports=Ports(0, None, None), limits=HttpLimits(body_seconds=0.5, header_seconds=0.5))\n"
        "serve([sys.argv[1]], options, started=lambda reply: print(reply['http'], flush=True))\n"
    )
    import subprocess

    from processes import python

    with subprocess.Popen([python(), script, digits_bundle.path], stdout=subprocess.PIPE, text=True) as process:
        slow = Running.__new__(Running)
        slow.port = int(process.stdout.readline())
        try:
            started = time.monotonic()
            assert slow.raw(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost:").startswith(b"HTTP/1.1 408")
            assert b"did not arrive within" in slow.raw(as_http(b"{", Content_Length=100))
            assert slow.raw(b"") == b""
            assert time.monotonic() - started < 8
            assert slow.ask("GET", "/v2/health/live")[0] == 200
        finally:
            process.terminate()


def test_a_model_is_unloaded_and_loaded_while_the_server_runs(digits_bundle):
    body, headers = binary(pictures())
    with Running(digits_bundle.path, "--allow-admin") as server:
        assert server.ask("POST", "/v2/repository/index", "{}")[1] == [
            {"name": "digits", "version": "1", "state": "READY", "reason": ""}
        ]
        assert server.ask("POST", "/v2/repository/models/digits/unload")[0] == 200
        assert server.ask("POST", INFER, body, **headers)[0] == 503
        assert server.ask("GET", "/v2/models/digits/ready")[0] == 503
        assert server.ask("POST", "/v2/repository/index", {"ready": True})[1] == []
        assert server.ask("POST", "/v2/repository/models/digits/load")[0] == 200
        assert server.ask("POST", INFER, body, **headers)[0] == 200


def test_a_changed_bundle_is_taken_up_with_no_failed_request(digits_bundle, tmp_path):
    import onnx
    from onnx import numpy_helper

    from relu_deploy.bundle import Bundle

    path = shutil.copytree(digits_bundle.path, tmp_path / "digits.rdb")
    proto = onnx.load(path / "model.onnx")
    bias = next(one for one in proto.graph.initializer if one.name == "classify.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(100), bias.name))
    x = pictures()
    body, headers = binary(x)
    with Running(path) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        seen = []

        def ask_on():
            connection = server.connect()
            with contextlib.closing(connection):
                while not seen or seen[-1][1] < 50:
                    status, content, reply = answer_on(connection, "POST", INFER, body, **headers)
                    seen.append((status, float(output_of(content, reply).max()) if status == 200 else 0.0))
                    assert len(seen) < 100_000

        clients = [pool.submit(ask_on) for _ in range(4)]
        until(lambda: len(seen) > 20)
        Bundle.open(path).add("model.onnx", proto.SerializeToString())
        for client in clients:
            client.result(30)
        assert {status for status, _ in seen} == {200}
        # A change that cannot be loaded leaves the one that runs.
        (path / "manifest.json").write_text("{")
        time.sleep(3)
        assert server.ask("POST", INFER, body, **headers)[0] == 200


def test_a_bundle_that_is_copied_slowly_is_loaded_once_it_is_whole(digits_bundle, tmp_path):
    import onnx
    from onnx import numpy_helper

    from relu_deploy.bundle import Bundle

    served, other = (shutil.copytree(digits_bundle.path, tmp_path / name / "digits.rdb") for name in ("served", "other"))
    proto = onnx.load(other / "model.onnx")
    bias = next(one for one in proto.graph.initializer if one.name == "classify.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(100), bias.name))
    Bundle.open(other).add("model.onnx", proto.SerializeToString())
    body, headers = binary(pictures())
    with Running(served) as server:

        def largest():
            status, content, reply = server.ask("POST", INFER, body, **headers)
            assert status == 200
            return output_of(content, reply).max()

        shutil.copy(other / "manifest.json", served)
        # Long enough for several attempts to load half of the bundle.
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert largest() < 50
            time.sleep(0.2)
        shutil.copy(other / "model.onnx", served)
        until(lambda: largest() > 50, 30)
        server.stop()
        server.errors.seek(0)
        assert server.errors.read().count("cannot be loaded") == 1


def test_a_full_queue_says_when_to_come_back_and_deadlines_are_kept(digits_bundle):
    body, headers = binary(pictures(8))
    with Running(digits_bundle.path, "--queue", "2", "--threads", "1") as server:

        def one(_):
            connection = server.connect()
            with contextlib.closing(connection):
                return [answer_on(connection, "POST", INFER, body, **headers) for _ in range(20)]

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = [answer for batch in pool.map(one, range(32)) for answer in batch]
        refused = [answer for answer in answers if answer[0] != 200]
        assert {answer[0] for answer in answers} == {200, 503}
        assert all(int(answer[2]["retry-after"]) >= 1 for answer in refused)
        assert all("the queue is full" in answer[1]["error"] for answer in refused)
        late, headers = binary(pictures(), parameters={"timeout": 1, "binary_data_output": True})
        statuses = {server.ask("POST", INFER, late, **headers)[0] for _ in range(30)}
        assert 504 in statuses
        assert statuses <= {200, 504}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP] * 2)
def test_on_a_signal_nothing_that_was_taken_is_lost(digits_bundle, number):
    """Twice each here; benchmarks/serve_kills.py does it two hundred times."""
    done, lost = [], []
    with Running(digits_bundle.path) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(hammer, server, INFER, binary(pictures(4)), done, lost) for _ in range(8)]
        until(lambda: len(done) > 50)
        assert server.stop(number) == 0
        for client in clients:
            client.result(30)
    assert set(done) == {200}
    assert lost == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_sent_again_and_again_until_the_end_does_not_spoil_it(digits_bundle, number):
    # The end of a real interpreter is what is tested.
    with Running(digits_bundle.path, forked=False) as server:
        while server.process.poll() is None:
            server.process.send_signal(number)
            time.sleep(1e-4)
        assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "PATH"),
        (("nothing.rdb",), 2, "does not exist"),
        (("DIGITS", "DIGITS"), 2, "two models are called 'digits'"),
        (("DIGITS", "--max-batch", "0"), 2, "--max-batch"),
        (("DIGITS", "--http-port", "70000"), 2, "--http-port"),
        (("DIGITS", "--http-port", "TAKEN"), 2, "--http-port"),
        (("DIGITS", "--host", "192.0.2.1"), 2, "192.0.2.1"),
        (("DIGITS", "--backend", "onnxruntime-cuda"), 3, "not usable here"),
        (("DIGITS", "--backend", "nonsense"), 2, "no backend called"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(command, digits_bundle, arguments, code, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"DIGITS": digits_bundle.path, "TAKEN": taken.getsockname()[1]}
        done = command("serve", *(places.get(word, word) for word in arguments), "--grpc-port", "0", "--metrics-port", "0")
    assert done.code == code
    assert words in done.stderr
