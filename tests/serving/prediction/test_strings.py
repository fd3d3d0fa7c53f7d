"""Strings over every way in: HTTP JSON, HTTP binary, gRPC and /predict give what the session gives for their bytes."""

import concurrent.futures
import json
import struct

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")
pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

import grpc
from grpc_running import serving
from running import answer_on

from relu_deploy.data.texts import to_bytes
from relu_deploy.serving.protocol.proto import messages

INFER, PREDICT, RELUS = (f"/v2/models/language_id/{what}" for what in ("infer", "predict", "relus"))
#: one of them fills the input to its last byte
TEXTS = ["smörgåsbord", "Zaunkönig", "hola", "żółw", "quatre-vingt-dix", "x", "'s nachts", "😀 日本", "a\nb\tc", "y" * 64]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from bundles import exported

    return exported("language_id")


@pytest.fixture(scope="module")
def expected(bundle):
    return bundle.session("onnxruntime-cpu", threads=1).run({"text": to_bytes(TEXTS, bundle.inputs[0])})["y"]


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served"), bundle.path, "--max-batch", "16") as running:
        yield running


def ask(server, path, body, **headers):
    import http.client
    from contextlib import closing

    with closing(http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)) as connection:
        return answer_on(connection, "POST" if body is not None else "GET", path, body, **headers)[:2]


def payload(texts):
    return {"inputs": [{"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}]}


def as_binary(raws):
    behind = b"".join(struct.pack("<I", len(raw)) + raw for raw in raws)
    tensor = {"name": "text", "shape": [len(raws), 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(behind)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + behind, {"Inference_Header_Content_Length": str(len(head))}


def by_grpc(server, raws, raw=True):
    request = messages().ModelInferRequest(model_name="language_id")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(raws), 1])
    if raw:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in raws))
    else:
        tensor.contents.bytes_contents.extend(raws)
    answer = server.stub.ModelInfer(request)
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)
    return np.array(answer.outputs[0].contents.fp32_contents, np.float32).reshape(answer.outputs[0].shape)


def test_the_model_is_described_as_one_that_takes_strings(server):
    status, reply = ask(server, "/v2/models/language_id", None)
    assert (status, reply["inputs"]) == (200, [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}])
    config = ask(server, "/v2/models/language_id/config", None)[1]
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}]
    message = server.stub.ModelMetadata(messages().ModelMetadataRequest(name="language_id"))
    assert (message.inputs[0].datatype, list(message.inputs[0].shape)) == ("BYTES", [-1, 1])


def test_strings_over_every_way_in_give_the_sessions_answers(server, expected):
    status, reply = ask(server, INFER, payload(TEXTS))
    assert status == 200, reply
    np.testing.assert_allclose(np.reshape(reply["outputs"][0]["data"], expected.shape), expected, rtol=1e-5, atol=1e-5)
    raws = [text.encode() for text in TEXTS]
    body, headers = as_binary(raws)
    status, reply = ask(server, INFER, body, **headers)
    assert status == 200, reply
    np.testing.assert_allclose(np.reshape(reply["outputs"][0]["data"], expected.shape), expected, rtol=1e-5, atol=1e-5)
    for raw in (True, False):
        np.testing.assert_allclose(by_grpc(server, raws, raw), expected, rtol=1e-5, atol=1e-5)


def test_a_string_is_answered_alike_alone_and_among_longer_ones(server):
    answers = {text: ask(server, INFER, payload([text]))[1]["outputs"][0]["data"] for text in TEXTS}
    with concurrent.futures.ThreadPoolExecutor(len(TEXTS)) as pool:
        for _ in range(5):
            # At the same time: the server puts them into one batch.
            together = list(pool.map(lambda text: ask(server, INFER, payload([text]))[1]["outputs"][0]["data"], TEXTS))
            for text, found in zip(TEXTS, together, strict=True):
                np.testing.assert_allclose(found, answers[text], rtol=1e-5, atol=1e-5)


def test_predict_answers_labels_and_probabilities_for_a_plain_text(server, bundle, expected):
    for kind in ("text/plain; charset=utf-8", "text/plain", "application/octet-stream"):
        status, reply = ask(server, f"{PREDICT}?top=10", TEXTS[0].encode() + b"\n", Content_Type=kind)
        assert status == 200, reply
        powers = np.exp(expected[0].astype(np.float64) - expected[0].max())
        for one in reply["predictions"]:
            assert one["probability"] == pytest.approx(powers[one["index"]] / powers.sum(), rel=1e-4)
            assert one["label"] == bundle.manifest["labels"][one["index"]]
        assert reply["predictions"][0]["label"] == "Swedish"
        assert reply["text"] == {"characters": 11, "bytes": 13}
        assert "picture" not in reply


def test_the_relus_of_a_text_are_told_by_channel(server, bundle):
    status, reply = ask(server, RELUS, b"Zaunk\xc3\xb6nig", Content_Type="text/plain")
    assert status == 200, reply
    assert [one["channels"] for one in reply["relus"]] == [128, 128, 128, 128, 256]
    assert all(0 < one["fired"] <= 1 for one in reply["relus"])


BAD = [
    (b"", "is empty"),
    (b"ab\xff", "is not UTF-8: byte 2 is 0xff"),
    (b"a\0b", "holds a NUL character at byte 1"),
    (b"z" * 65, "has 65 bytes of UTF-8, and 'text' takes 64"),
]


@pytest.mark.parametrize(("raw", "words"), BAD)
def test_predict_refuses_what_is_no_text_for_the_model(server, raw, words):
    for path in (PREDICT, RELUS):
        status, reply = ask(server, path, raw, Content_Type="text/plain")
        assert status == 400
        assert words in reply["error"]


@pytest.mark.parametrize(("raw", "words"), BAD)
def test_infer_refuses_the_whole_request_that_holds_such_a_text(server, raw, words):
    words = "strings that are not UTF-8" if b"\xff" in raw else f"text 2 of 3 {words}"
    body, headers = as_binary([b"fine", raw, b"fine"])
    status, reply = ask(server, INFER, body, **headers)
    assert status == 400
    assert words in reply["error"]
    for as_raw in (True, False):
        with pytest.raises(grpc.RpcError) as refused:
            by_grpc(server, [b"fine", raw, b"fine"], as_raw)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert words in refused.value.details()
    assert ask(server, PREDICT, b"fine", Content_Type="text/plain")[0] == 200


@pytest.mark.parametrize(
    ("kind", "words"),
    [("image/png", "content type 'image/png' is not supported"), ("text/plain; charset=latin-1", "character set 'latin-1'")],
)
def test_a_body_of_another_kind_is_refused(server, kind, words):
    status, reply = ask(server, PREDICT, "smörgås".encode("latin-1"), Content_Type=kind)
    assert status == 400
    assert words in reply["error"]


@pytest.mark.parametrize("shape", [[2], [1, 2], [2, 2]])
def test_a_shape_that_is_not_one_string_a_row_is_refused(server, shape):
    body = {"inputs": [{"name": "text", "shape": shape, "datatype": "BYTES", "data": ["a"] * int(np.prod(shape))}]}
    status, reply = ask(server, INFER, body)
    assert status == 400
    assert f"has shape {shape}, and the model takes [" in reply["error"]
    assert reply["error"].endswith(", 1]")


def test_bytes_instead_of_strings_are_refused_with_what_is_wanted(server):
    body = {"inputs": [{"name": "text", "shape": [1, 64], "datatype": "UINT8", "data": [97] * 64}]}
    status, reply = ask(server, INFER, body)
    assert status == 400
    assert "datatype UINT8, and the model takes BYTES" in reply["error"]
