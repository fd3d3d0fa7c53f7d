"""The protocol over gRPC, with grpcio's own client against a server in a process of its own."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc
import ml_dtypes
import numpy as np
import pytest
from grpc_running import same_onnx, serving, stub_of
from onnx import TensorProto, helper, numpy_helper, save
from processes import python

from relu_deploy.bundle import Bundle
from relu_deploy.serving.protocol.proto import messages
from relu_deploy.serving.protocol.tensors import DATATYPES

MESSAGES, MESSAGES_OF_HEALTH = messages(), messages("health")
LISTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
#: more than numbers alone: the ends of each type, and strings of every length
VALUES = {
    "bool": [[True, False, True]],
    "object": [["", "ä", "x" * 300]],
    **{name: [[0, np.iinfo(name).max, np.iinfo(name).min]] for name in DATATYPES if "int" in name},
    **{name: [[0.0, -1.5, 65504.0]] for name in ("float16", "float32", "float64")},
    "bfloat16": [[0.0, -1.5, 65280.0]],
}


def array_of(dtype):
    return np.array(VALUES[dtype], ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def net_onnx(path):
    """Write Conv, Relu, Gemm with random weights: x (n, 1, 12, 12) → y (n, 10) and the features f (n, 800)."""
    generator = np.random.default_rng(0)
    weights = {"w": (8, 1, 3, 3), "v": (10, 800), "b": (10,)}
    tensors = [numpy_helper.from_array(generator.normal(size=size).astype(np.float32), name) for name, size in weights.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], transB=1),
    ]
    x, y, f = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", ["n", 1, 12, 12]), ("y", ["n", 10]), ("f", ["n", 800]))
    )
    graph = helper.make_graph(nodes, "net", [x], [y, f], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpc")
    net_onnx(folder / "net.onnx")
    for dtype in VALUES:
        same_onnx(folder / f"same_{dtype}.onnx", dtype)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    names = [f"same_{dtype}.onnx" for dtype in VALUES if dtype != "bfloat16"]  # ONNX Runtime takes no bfloat16 from NumPy
    with serving(folder, folder / "net.onnx", *[folder / name for name in names], "--max-body", "1", "--allow-admin") as running:
        yield running


@pytest.fixture(scope="module")
def patient(folder):
    """A server that waits 0.4 s for company before it runs anything."""
    options = ("--max-delay", "400", "--max-batch", "64", "--queue", "40")
    with serving(folder, folder / "same_float32.onnx", *options) as running:
        yield running


def request_of(model, array, *, raw=True, **fields):
    datatype = DATATYPES[array.dtype.name]
    request = MESSAGES.ModelInferRequest(model_name=model, **fields)
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if raw:
        request.raw_input_contents.append(bytes_of(array))
    else:
        values = array.ravel().tolist()
        getattr(tensor.contents, LISTS[datatype]).extend([one.encode() for one in values] if datatype == "BYTES" else values)
    return request


def bytes_of(array):
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(one.encode()).to_bytes(4, "little") + one.encode() for one in array.ravel())


def array_in(response, index=0):
    """Return an output that came raw, as an array."""
    dtypes = {theirs: ours for ours, theirs in DATATYPES.items()}
    output, raw = response.outputs[index], response.raw_output_contents[index]
    dtype = dtypes[output.datatype]
    return np.frombuffer(raw, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).reshape(output.shape)


def pictures(rows, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, 1, 12, 12)).astype(np.float32)


def refused(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=options.pop("timeout", 20), **options)
    return caught.value


def counts(server, model):
    (found,) = server.stub.ModelStatistics(MESSAGES.ModelStatisticsRequest(name=model)).model_stats
    return found


def test_health_metadata_configuration_and_repository_say_what_is_served(server):
    stub = server.stub
    assert stub.ServerLive(MESSAGES.ServerLiveRequest()).live
    assert stub.ServerReady(MESSAGES.ServerReadyRequest()).ready
    ready = {
        (name, version): stub.ModelReady(MESSAGES.ModelReadyRequest(name=name, version=version)).ready
        for name, version in (("net", ""), ("net", "1"), ("net", "2"), ("nosuch", ""))
    }
    assert ready == {("net", ""): True, ("net", "1"): True, ("net", "2"): False, ("nosuch", ""): False}
    reply = stub.ServerMetadata(MESSAGES.ServerMetadataRequest())
    assert (reply.name, list(reply.extensions)) == ("relu_deploy", ["model_repository", "model_configuration", "statistics"])
    net = stub.ModelMetadata(MESSAGES.ModelMetadataRequest(name="net"))
    assert (net.name, list(net.versions), net.platform) == ("net", ["1"], "onnxruntime_onnx")
    assert [(one.name, one.datatype, list(one.shape)) for one in (*net.inputs, *net.outputs)] == [
        ("x", "FP32", [-1, 1, 12, 12]),
        ("y", "FP32", [-1, 10]),
        ("f", "FP32", [-1, 800]),
    ]
    config = stub.ModelConfig(MESSAGES.ModelConfigRequest(name="net")).config
    assert (config.max_batch_size, config.WhichOneof("scheduling_choice")) == (8, "dynamic_batching")
    assert config.input[0].data_type == MESSAGES.TYPE_FP32
    assert list(config.input[0].dims) == [1, 12, 12]
    index = stub.RepositoryIndex(MESSAGES.RepositoryIndexRequest(ready=True)).models
    assert ("net", "1", "READY") in [(one.name, one.version, one.state) for one in index]
    assert {one.name for one in stub.ModelStatistics(MESSAGES.ModelStatisticsRequest()).model_stats} == {
        one.name for one in index
    }


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "lists"])
@pytest.mark.parametrize("dtype", [dtype for dtype in VALUES if dtype != "bfloat16"])
def test_every_type_comes_back_as_it_was_sent(server, dtype, raw):
    array = array_of(dtype)
    request = request_of(f"same_{dtype}", array, raw=raw or dtype == "float16")
    response = server.stub.ModelInfer(request)
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", DATATYPES[dtype], [1, 3])
    if raw or dtype == "float16":
        assert list(response.raw_output_contents) == [bytes_of(array)]
        assert not output.HasField("contents")
    else:
        assert len(response.raw_output_contents) == 0
        assert output.contents == request.inputs[0].contents


def test_bfloat16_travels_raw(folder):
    with serving(folder, folder / "same_bfloat16.onnx", "--backend", "reference") as running:
        array = array_of("bfloat16")
        assert array_in(running.stub.ModelInfer(request_of("same_bfloat16", array))).tobytes() == array.tobytes()
        array[0, 0] = np.nan
        assert "holds NaN" in refused(running.stub.ModelInfer, request_of("same_bfloat16", array)).details()


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "lists"])
def test_nan_and_infinities_pass_where_the_server_was_told_to_take_them(folder, raw):
    array = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    with serving(folder, folder / "same_float32.onnx", "--allow-nan") as running:
        response = running.stub.ModelInfer(request_of("same_float32", array, raw=raw))
        answered = array_in(response).ravel() if raw else response.outputs[0].contents.fp32_contents
        assert np.array_equal(answered, array.ravel(), equal_nan=True)


def test_what_has_no_list_is_sent_raw_or_refused(server):
    request = request_of("same_float16", array_of("float16"))
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3])
    del request.raw_input_contents[:]
    error = refused(server.stub.ModelInfer, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "input 'x' is FP16, which has no list in contents; send it in raw_input_contents"


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_answers_are_the_sessions_own_bit_for_bit(server, folder, rows):
    session = Bundle.open(folder / "net.onnx").session("onnxruntime-cpu", threads=1)
    for seed in range(4):
        x = pictures(rows, seed)
        expected = session.run({"x": x})
        response = server.stub.ModelInfer(request_of("net", x))
        assert [output.name for output in response.outputs] == ["y", "f"]
        for index, name in enumerate(("y", "f")):
            assert array_in(response, index).tobytes() == expected[name].tobytes()


def test_identity_version_and_wanted_outputs_are_respected(server):
    request = request_of("net", pictures(2), id="seven", model_version="1")
    for name in ("f", "y"):
        request.outputs.add(name=name)
    response = server.stub.ModelInfer(request)
    assert (response.model_name, response.model_version, response.id) == ("net", "1", "seven")
    assert [(output.name, list(output.shape)) for output in response.outputs] == [("f", [2, 800]), ("y", [2, 10])]
    del request.outputs[0]
    assert [output.name for output in server.stub.ModelInfer(request).outputs] == ["y"]


def one_change(change):
    request = request_of("net", pictures(1))
    change(request)
    return request


def set_raw(request, raw):
    request.raw_input_contents[:] = raw


def wants(request, name, **parameters):
    output = request.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].int64_param = value


INVALID = {
    "has datatype FP64, and the model takes FP32": lambda r: setattr(r.inputs[0], "datatype", "FP64"),
    "has datatype 'FP31'; known are": lambda r: setattr(r.inputs[0], "datatype", "FP31"),
    "has shape [1, 12, 12], and the model takes": lambda r: r.inputs[0].shape.remove(1),
    "has shape [-1, 1, 12, 12]; a shape is a list of sizes": lambda r: r.inputs[0].shape.__setitem__(0, -1),
    "of shape [2, 1, 12, 12] needs 1152 bytes, and has 576": lambda r: r.inputs[0].shape.__setitem__(0, 2),
    "needs 576 bytes, and has 3": lambda r: set_raw(r, [b"abc"]),
    "there are 1 inputs and 2 raw_input_contents": lambda r: set_raw(r, [b"", b""]),
    "input 'x' has no data; give contents": lambda r: set_raw(r, []),
    "holds NaN or an infinity; start the server with --allow-nan": lambda r: set_raw(
        r, [np.full(144, np.nan, np.float32).tobytes()]
    ),
    "there is no input 'z'": lambda r: setattr(r.inputs[0], "name", "z"),
    "there is no tensor for input 'x'": lambda r: (r.inputs.pop(), set_raw(r, [])),
    "is given twice": lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(r.raw_input_contents[0])),
    "has both contents and raw_input_contents": lambda r: r.inputs[0].contents.fp32_contents.append(1),
    "has data in int_contents, and FP32 belongs in fp32_contents": lambda r: (
        set_raw(r, []),
        r.inputs[0].contents.int_contents.append(1),
    ),
    "needs 144 numbers, and has 1": lambda r: (set_raw(r, []), r.inputs[0].contents.fp32_contents.append(1)),
    "there is no output 'w'; the model's outputs are y, f": lambda r: wants(r, "w"),
    "output 'y' is requested by classification": lambda r: wants(r, "y", classification=3),
    "a batch of 9 exceeds the maximum of 8": lambda r: r.CopyFrom(request_of("net", pictures(9))),
    "'timeout' is -5": lambda r: setattr(r.parameters["timeout"], "int64_param", -5),
    "'timeout' is 'soon'": lambda r: setattr(r.parameters["timeout"], "string_param", "soon"),
}


@pytest.mark.parametrize("reply", INVALID)
def test_what_the_model_does_not_take_is_refused_in_words(server, reply):
    before = counts(server, "net")
    error = refused(server.stub.ModelInfer, one_change(INVALID[reply]))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reply in error.details()
    assert counts(server, "net").execution_count == before.execution_count


@pytest.mark.parametrize(
    ("datatype", "values", "reply"),
    [("int8", [0, 1, 128], "numbers beyond INT8"), ("uint16", [0, 1, 70000], "numbers beyond UINT16")],
)
def test_numbers_that_the_type_does_not_hold_are_refused_and_never_wrapped(server, datatype, values, reply):
    request = request_of(f"same_{datatype}", array_of(datatype), raw=False)
    field = getattr(request.inputs[0].contents, LISTS[DATATYPES[datatype]])
    field[:] = values
    assert reply in refused(server.stub.ModelInfer, request).details()


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xff", b"\x01\x00", b"\x01\x00\x00\x00\xff" * 3])
def test_strings_that_are_none_are_refused(server, raw):
    request = request_of("same_object", array_of("object"))
    request.raw_input_contents[:] = [raw]
    error = refused(server.stub.ModelInfer, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "has strings" in error.details()


@pytest.mark.parametrize(
    ("model", "version", "reply"),
    [
        ("nosuch", "", "there is no model called 'nosuch'"),
        ("", "", "there is no model called ''"),
        ("net", "2", "model 'net' has no version '2'"),
        ("x" * 500_000, "", "there is no model called 'xxx"),
        ("ä" * 100_000, "", "there is no model called 'ääää"),
    ],
)
def test_an_unknown_model_or_version_is_not_found_by_any_call(server, model, version, reply):
    payload = {"name": model, "version": version}
    requests = [
        (server.stub.ModelInfer, MESSAGES.ModelInferRequest(model_name=model, model_version=version)),
        (server.stub.ModelMetadata, MESSAGES.ModelMetadataRequest(**payload)),
        (server.stub.ModelConfig, MESSAGES.ModelConfigRequest(**payload)),
    ]
    for call, request in requests:
        error = refused(call, request)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details().startswith(reply)


@pytest.mark.parametrize(
    "change",
    [
        {"datatype": "FP64"},
        {"datatype": "FP31"},
        {"shape": [1, 12, 12]},
        {"shape": [1, 1, 12, 13]},
        {"name": "z"},
    ],
)
def test_a_mistake_reads_the_same_over_http(server, change):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1, 12, 12], **change}
    size = int(np.prod(tensor["shape"]))
    request = MESSAGES.ModelInferRequest(model_name="net")
    request.inputs.add(**tensor).contents.fp32_contents.extend([0.0] * size)
    body = json.dumps({"inputs": [{**tensor, "data": [0.0] * size}]}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{server.http}/v2/models/net/infer", body), timeout=20)
    assert caught.value.code == 400
    assert refused(server.stub.ModelInfer, request).details() == json.loads(caught.value.read())["error"]


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_beyond_the_limit_is_refused_compressed_or_not(server, compression):
    request = MESSAGES.ModelInferRequest(model_name="net", raw_input_contents=[bytes(30_000_000)])
    error = refused(server.stub.ModelInfer, request, compression=compression)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert array_in(server.stub.ModelInfer(request_of("net", pictures(1)), compression=compression)).shape == (1, 10)


def test_bytes_that_are_no_message_are_refused_and_the_server_goes_on(server):
    generator = np.random.default_rng(3)
    call = server.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=bytes, response_deserializer=bytes
    )
    whole = request_of("net", pictures(1)).SerializeToString()
    for garbage in [generator.bytes(size) for size in (1, 7, 500, 100_000)] + [whole[: len(whole) // 2]]:
        error = refused(call, garbage)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the message is not a ModelInferRequest"
    for garbage in (
        generator.bytes(10_000),
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + generator.bytes(5000),
    ):
        with socket.create_connection(("127.0.0.1", server.grpc), timeout=10) as raw, contextlib.suppress(OSError):
            raw.sendall(garbage)
            raw.settimeout(0.5)
            raw.recv(1000)
    assert server.stub.ServerReady(MESSAGES.ServerReadyRequest(), timeout=10).ready


@pytest.mark.parametrize("name", ["Check", "Watch"])
def test_a_health_check_that_is_no_message_is_refused_in_words(server, name):
    method = f"/grpc.health.v1.Health/{name}"
    check, watch = server.channel.unary_unary(method), server.channel.unary_stream(method)
    ends = check if name == "Check" else watch
    for garbage in (b"\xff" * 100, b"\x0a\x02\xff\xfe", b"\x1f\x8bdamaged"):
        error = refused(lambda one, **options: [*ends(one, **options)], garbage)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_that_watches_the_health_does_not_keep_the_server_from_its_end(folder):
    with serving(folder, folder / "same_bool.onnx") as running:
        watch = running.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
        seen = [next(watch)]
        running.process.terminate()
        assert running.process.wait(timeout=30) == 0
        seen += list(watch)
    status = MESSAGES_OF_HEALTH.HealthCheckResponse
    assert [status.FromString(each).status for each in seen] == [1, 2]  # SERVING, NOT_SERVING


def test_a_method_of_another_extension_is_unimplemented(server):
    call = server.channel.unary_unary("/inference.GRPCInferenceService/TraceSetting", bytes, bytes)
    assert refused(call, b"").code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_clients_deadline_is_the_requests_and_what_is_late_is_not_run(patient):
    before = counts(patient, "same_float32")
    started = time.monotonic()
    error = refused(patient.stub.ModelInfer, request_of("same_float32", array_of("float32")), timeout=0.1)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 0.35
    request = request_of("same_float32", array_of("float32"))
    request.parameters["timeout"].int64_param = 100_000
    error = refused(patient.stub.ModelInfer, request)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details().startswith("the deadline passed after 0.")
    after = counts(patient, "same_float32")
    assert after.execution_count == before.execution_count
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 2


def test_what_a_client_cancels_is_not_run(patient):
    before = counts(patient, "same_float32")
    calls = [patient.stub.ModelInfer.future(request_of("same_float32", array_of("float32"))) for _ in range(5)]
    time.sleep(0.1)
    for call in calls[1:]:
        call.cancel()
    assert array_in(calls[0].result(timeout=20)).tobytes() == array_of("float32").tobytes()
    after = counts(patient, "same_float32")
    assert after.inference_count == before.inference_count + 1
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 4


def test_calls_of_many_clients_are_run_together_and_each_gets_its_own_answer(patient):
    before = counts(patient, "same_float32")
    arrays = [np.full((1 + index % 3, 3), index, np.float32) for index in range(30)]
    calls = [patient.stub.ModelInfer.future(request_of("same_float32", array)) for array in arrays]
    for array, call in zip(arrays, calls, strict=True):
        assert array_in(call.result(timeout=20)).tobytes() == array.tobytes()
    after = counts(patient, "same_float32")
    assert after.inference_count == before.inference_count + sum(map(len, arrays))
    assert after.execution_count - before.execution_count < 8


def test_a_full_queue_says_come_back_later(patient):
    calls = [patient.stub.ModelInfer.future(request_of("same_float32", array_of("float32"))) for _ in range(60)]
    failures = [error for error in (call.exception(timeout=20) for call in calls) if error is not None]
    assert len(failures) == 20
    assert {error.code() for error in failures} == {grpc.StatusCode.UNAVAILABLE}
    assert "the queue is full: 40 requests wait" in failures[0].details()
    assert int(dict(failures[0].trailing_metadata())["grpc-retry-pushback-ms"]) > 0


def test_a_model_is_unloaded_and_loaded_while_the_server_runs(folder):
    with serving(folder, folder / "net.onnx", folder / "same_bool.onnx", "--allow-admin") as running:
        stub = running.stub
        stub.RepositoryModelUnload(MESSAGES.RepositoryModelUnloadRequest(model_name="net"))
        assert not stub.ModelReady(MESSAGES.ModelReadyRequest(name="net")).ready
        error = refused(stub.ModelInfer, request_of("net", pictures(1)))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "model 'net' is not loaded: unloaded")
        index = {one.name: (one.state, one.reason) for one in stub.RepositoryIndex(MESSAGES.RepositoryIndexRequest()).models}
        assert index == {"net": ("UNAVAILABLE", "unloaded"), "same_bool": ("READY", "")}
        ready = stub.RepositoryIndex(MESSAGES.RepositoryIndexRequest(ready=True)).models
        assert [one.name for one in ready] == ["same_bool"]
        load = MESSAGES.RepositoryModelLoadRequest(model_name="net")
        load.parameters["config"].string_param = "{}"
        assert refused(stub.RepositoryModelLoad, load).code() is grpc.StatusCode.INVALID_ARGUMENT
        stub.RepositoryModelLoad(MESSAGES.RepositoryModelLoadRequest(model_name="net"))
        assert array_in(stub.ModelInfer(request_of("net", pictures(1)))).shape == (1, 10)
        unknown = MESSAGES.RepositoryModelLoadRequest(model_name="nosuch")
        assert refused(stub.RepositoryModelLoad, unknown).code() is grpc.StatusCode.NOT_FOUND


def test_on_sigterm_what_was_taken_is_answered_and_nothing_else_is_taken(folder):
    with serving(folder, folder / "same_float32.onnx", "--max-delay", "600", "--max-batch", "64") as running:
        calls = [running.stub.ModelInfer.future(request_of("same_float32", array_of("float32"))) for _ in range(20)]
        while running.stub.ModelStatistics(MESSAGES.ModelStatisticsRequest()).model_stats[0].inference_count:
            raise AssertionError("the calls were answered before the signal")
        time.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        assert [array_in(call.result(timeout=20)).tolist() for call in calls] == [array_of("float32").tolist()] * 20
        error = refused(running.stub.ModelInfer, request_of("same_float32", array_of("float32")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_under_load_every_call_is_answered_or_refused_as_unavailable_on_sigterm(folder):
    outcomes, stop = [], threading.Event()

    def client(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = stub_of(channel)
            while not stop.is_set():
                try:
                    response = stub.ModelInfer(request_of("same_float32", array_of("float32")), timeout=20)
                    outcomes.append(array_in(response).tobytes() == array_of("float32").tobytes())
                except grpc.RpcError as error:
                    outcomes.append(error.code())
                    return

    with serving(folder, folder / "same_float32.onnx", "--queue", "1000") as running:
        clients = [threading.Thread(target=client, args=(running.grpc,)) for _ in range(8)]
        for each in clients:
            each.start()
        time.sleep(1.0)
        running.process.terminate()
        running.process.wait(timeout=30)
        time.sleep(0.2)
        stop.set()
        for each in clients:
            each.join(timeout=30)
    assert outcomes.count(True) > 100
    assert set(outcomes) <= {True, grpc.StatusCode.UNAVAILABLE}


def run_serve(*arguments):
    command = [python(), "-m", "relu_deploy", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_that_is_taken_is_named(server, folder):
    answer = run_serve(folder / "net.onnx", "--http-port", "0", "--grpc-port", server.grpc)
    assert answer.returncode == 2
    assert f"cannot listen on 127.0.0.1:{server.grpc}" in answer.stderr
    assert "--grpc-port" in answer.stderr


def test_a_server_without_grpc_says_so_and_answers_over_http(folder):
    with serving(folder, folder / "net.onnx", "--grpc-port", "-1") as running:
        assert running.grpc is None
        with urllib.request.urlopen(f"http://127.0.0.1:{running.http}/v2/health/ready", timeout=10) as response:
            assert response.status == 200


def test_the_server_starts_beside_another_package_with_the_protocols_names():
    """protobuf's default pool takes each name once, and other packages bring the same, for instance tritonclient.grpc."""
    code = """
import sys
from google.protobuf import descriptor_pb2, descriptor_pool
other = descriptor_pb2.FileDescriptorProto(name="other.proto", package="inference", syntax="proto3")
other.message_type.add(name="ServerLiveRequest")
descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
from relu_deploy.__main__ import main
sys.exit(main())
"""
    command = [sys.executable, "-c", code, "serve", "nosuch.onnx", "--http-port", "0", "--grpc-port", "0"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert "nosuch.onnx does not exist" in answer.stderr


def test_the_messages_register_no_name_with_the_default_pool():
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.Default()
    assert MESSAGES.DESCRIPTOR.pool is not pool
    with pytest.raises(KeyError):
        pool.FindFileByName(MESSAGES.DESCRIPTOR.name)


def test_the_compiled_messages_are_those_of_the_proto_file(tmp_path):
    """`make proto` compiles them; here the file is compiled once more, and the messages in use have to be the same."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed (pip install 'relu-deploy[dev]')")
    from google.protobuf import descriptor_pb2

    import relu_deploy

    root = relu_deploy.__path__[0].removesuffix("relu_deploy")
    name = "relu_deploy/serving/protocol/proto/inference.proto"
    assert protoc.main(["", f"-I{root}", f"--descriptor_set_out={tmp_path / 'set'}", f"{root}/{name}"]) == 0
    (compiled,) = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    used = descriptor_pb2.FileDescriptorProto()
    MESSAGES.DESCRIPTOR.CopyToProto(used)
    compiled.ClearField("source_code_info")
    for file in (compiled, used):  # protoc writes them out, the pool computes them
        for message in file.message_type:
            clear_json_names(message)
    assert used == compiled


def clear_json_names(message):
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        clear_json_names(nested)
