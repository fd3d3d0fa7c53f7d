"""What existing clients do over HTTP beside the plain case, without those clients: benchmarks/conformance.py has them."""

import gzip
import json
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
from grpc_running import same_onnx, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    paths = [same_onnx(folder / f"same_{dtype}.onnx", dtype) for dtype in ("float32", "uint64", "object")]
    with serving(folder, *paths, "--max-body", "1") as running:
        yield running


def infer(server, model, body, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{server.http}/v2/models/{model}/infer", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def payload(datatype, data, **more):
    tensor = {"name": "x", "datatype": datatype, "shape": [1, 3], "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)])
def test_compressed_bodies_are_taken(server, encoding, pack):
    status, answer = infer(server, "same_float32", pack(payload("FP32", [1, 2, 3])), **{"Content-Encoding": encoding})
    assert (status, answer["outputs"][0]["data"]) == (200, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("body", "encoding", "status", "answer"),
    [
        (gzip.compress(bytes(50_000_000)), "gzip", 413, "the decompressed body exceeds the limit of 1048576 bytes"),
        (b"no gzip at all", "gzip", 400, "the body does not fit its content encoding"),
        (gzip.compress(payload("FP32", [1, 2, 3]), mtime=0)[:-4], "gzip", 400, "ends too early or too late"),
        (gzip.compress(payload("FP32", [1, 2, 3]), mtime=0) + b"more", "gzip", 400, "ends too early or too late"),
        (payload("FP32", [1, 2, 3]), "br", 400, "content encoding 'br' is not supported"),
    ],
)
def test_bodies_that_do_not_unpack_within_the_limit_are_refused(server, body, encoding, status, answer):
    found = infer(server, "same_float32", body, **{"Content-Encoding": encoding})
    assert found[0] == status
    assert answer in found[1]


@pytest.mark.parametrize("data", [[0, 2**64 - 1, 2**63], [[0, 2**53 + 1, 2**64 - 1]]])
def test_large_integers_in_json_keep_every_digit(server, data):
    status, answer = infer(server, "same_uint64", payload("UINT64", data))
    assert status == 200
    assert answer["outputs"][0]["data"] == list(np.ravel(np.array(data, object)))


@pytest.mark.parametrize("data", [[-1, 2**64 - 1, 1], [1.5, 2, 3], [True, 2**64 - 1, 0]])
def test_what_is_no_uint64_is_refused(server, data):
    status, answer = infer(server, "same_uint64", payload("UINT64", data))
    assert status == 400
    assert "has data that is not" in answer


def test_strings_are_served(server):
    status, answer = infer(server, "same_object", payload("BYTES", ["", "ä", "three"]))
    assert (status, answer["outputs"][0]["data"], answer["outputs"][0]["datatype"]) == (200, ["", "ä", "three"], "BYTES")


@pytest.mark.parametrize("wish", ["classification", "shared_memory_region"])
def test_a_wish_of_an_extension_that_there_is_not_is_refused_and_not_ignored(server, wish):
    outputs = [{"name": "y", "parameters": {wish: 3}}]
    status, answer = infer(server, "same_float32", payload("FP32", [1, 2, 3], outputs=outputs))
    assert status == 400
    assert f"leave {wish!r} out" in answer
