"""Generated hostile requests over HTTP and gRPC: each is answered or dropped, none is an error of the server.

The generator is seeded; RELU_DEPLOY_FUZZ_SEED and RELU_DEPLOY_FUZZ_COUNT choose another seed and more requests.
"""

import contextlib
import json
import os
import random
import re
import socket

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")

from pictures import encoded, gradient  # noqa: E402
from request_cases import GRPC_ALLOWED, flipped, grpc_request, http_request, mutate  # noqa: E402
from running import Running  # noqa: E402

from relu_deploy.errors import ReluDeployError  # noqa: E402
from relu_deploy.serving.errors import ServeError  # noqa: E402
from relu_deploy.serving.prediction.predict import PredictOptions  # noqa: E402
from relu_deploy.serving.protocol.json_codec import decode  # noqa: E402
from relu_deploy.serving.protocol.proto import messages  # noqa: E402
from relu_deploy.tensors import TensorSpec  # noqa: E402

SEED = int(os.environ.get("RELU_DEPLOY_FUZZ_SEED", "1"))
COUNT = int(os.environ.get("RELU_DEPLOY_FUZZ_COUNT", "500"))
SPECS = (
    (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("n", "int8", ("batch",))),
    (TensorSpec("s", "object", ("batch", 1)),),
    (TensorSpec("u", "uint64", ("batch", "k")), TensorSpec("flag", "bool", ())),
    (TensorSpec("h", "float16", ("batch", 2)),),
)
BASES = (
    {
        "inputs": [
            {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]},
            {"name": "n", "shape": [1], "datatype": "INT8", "data": [1]},
        ]
    },
    {"inputs": [{"name": "s", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]},
    {
        "inputs": [
            {"name": "u", "shape": [1, 1], "datatype": "UINT64", "data": [1]},
            {"name": "flag", "shape": [], "datatype": "BOOL", "data": [True]},
        ]
    },
    {"inputs": [{"name": "h", "shape": [1, 2], "datatype": "FP16", "parameters": {"binary_data_size": 4}}]},
)


def test_a_mutated_json_request_is_decoded_or_refused_in_words():
    generator = random.Random(SEED)
    decoded = 0
    for _ in range(40 * COUNT):
        which = generator.randrange(len(SPECS))
        tree = json.loads(json.dumps(BASES[which]))
        for _ in range(generator.randrange(1, 4)):
            mutate(tree, generator)
        body = json.dumps(tree).encode()
        if generator.random() < 0.1:
            body = flipped(body, generator, 3)
        length = generator.choice((None, None, 0, len(body), len(body) - 1, 5))
        with contextlib.suppress(ServeError):
            decode(body + bytes(generator.choice((0, 0, 4))), length, SPECS[which]).select((TensorSpec("y", "float32", (1,)),))
            decoded += 1
    assert decoded > COUNT / 10


def test_a_mutated_query_is_parsed_or_refused():
    generator = random.Random(SEED)
    for _ in range(4 * COUNT):
        with contextlib.suppress(ReluDeployError):
            PredictOptions.parse("".join(generator.choice("top=threshold=mask=&%1e5nanif-.0png\x00ä") for _ in range(12)))


def answer_to(port, sent):
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one, contextlib.suppress(OSError):
        one.sendall(sent)
        one.shutdown(socket.SHUT_WR)
        while part := one.recv(2**16):
            received += part
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 ([2-5]\d\d) ", received, re.MULTILINE)]


def test_a_server_answers_hostile_requests_without_an_error_of_its_own(digits_bundle):
    generator = random.Random(SEED)
    pictures = [encoded(gradient(40, 30), "PNG"), encoded(gradient(40, 30), "JPEG")]
    kinds = messages()
    whole = kinds.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784 * 4)])
    whole.inputs.add(name="x", datatype="FP32", shape=[1, 1, 28, 28])
    message = whole.SerializeToString()
    with Running(digits_bundle.path, "--threads", "1", "--allow-admin", "--grpc-port", "0") as server:
        for _ in range(COUNT):
            sent = http_request(generator, pictures)
            assert 500 not in answer_to(server.port, sent), sent[:500]
        with grpc.insecure_channel(f"127.0.0.1:{server.reported['grpc']}") as channel:
            for _ in range(COUNT // 2):
                call, garbled = grpc_request(generator, message)
                future = channel.unary_unary(f"/inference.GRPCInferenceService/{call}").future(garbled, timeout=10)
                assert future.code().name in GRPC_ALLOWED, (call, garbled[:80])
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        assert server.stop() == 0
        server.errors.seek(0)
        assert "Traceback" not in server.errors.read()
