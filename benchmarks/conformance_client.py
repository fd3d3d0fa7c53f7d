"""What `conformance.py` has tritonclient do, in a Python that has it and knows nothing of relu_deploy.

    python conformance_client.py TOLD.json      prints a list of {client, check, passed, detail}

TOLD.json: ports http and grpc; model, arrays (.npz: x, alone: the answers row by row, together: the answer to all rows), types (datatype
→ model whose output is its input), proto (our compiled .proto file). Nothing of the clients is changed or configured.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TYPES = {
    "BOOL": np.array([[True, False, True]]),
    "BYTES": np.array([["", "ä", "x" * 300]], object),
    "FP16": np.array([[0, -1.5, 65504]], np.float16),
    "FP32": np.array([[0, -1.5, 3e38]], np.float32),
    "FP64": np.array([[0, -1.5, 1e300]]),
    **{
        f"{kind}{bits}": np.array([[0, np.iinfo(name).max, np.iinfo(name).min]], name)
        for kind in ("INT", "UINT")
        for bits in (8, 16, 32, 64)
        for name in [f"{kind.lower()}{bits}"]
    },
}


class Told:
    """What the server was started with, and one client of it. binary: how tensors travel over HTTP; gRPC has no JSON."""

    def __init__(self, reported: dict[str, Any], protocol: str, binary: bool = True) -> None:
        self.model, self.types, self.protocol, self.binary = reported["model"], reported["types"], protocol, binary
        self.module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
        self.address = f"127.0.0.1:{reported[protocol]}"
        arrays = np.load(reported["arrays"])
        self.x, self.alone, self.together = arrays["x"], arrays["alone"], arrays["together"]
        more = {"concurrency": 4} if protocol == "http" else {}
        self.client = self.module.InferenceServerClient(self.address, **more)
        self.as_json = {} if protocol == "http" else {"as_json": True}
        metadata = self.client.get_model_metadata(self.model, **self.as_json)
        self.input, self.output = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]

    def tensor(self, array: np.ndarray, name: str = "", module: Any = None) -> Any:
        tensor = (module or self.module).InferInput(name or self.input, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, **self._binary())
        return tensor

    def required(self, name: str = "", **more: Any) -> Any:
        return self.module.InferRequestedOutput(name or self.output, **self._binary(), **more)

    def infer(self, array: np.ndarray, **more: Any) -> Any:
        more.setdefault("outputs", [self.required()])
        return self.client.infer(self.model, [self.tensor(array)], **more)

    def _binary(self) -> dict[str, bool]:
        return {"binary_data": self.binary} if self.protocol == "http" else {}


def refused(call: Callable[[], Any], *words: str) -> str:
    try:
        call()
    except InferenceServerException as error:
        reported = f"{error.status()}: {error.message()}"
        assert all(word in reported for word in words), reported
        return reported
    raise AssertionError("it was not refused")


def health(reported: Told) -> None:
    client = reported.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(reported.model)
    assert client.is_model_ready(reported.model, "1")
    assert not client.is_model_ready(reported.model, "2")
    assert not client.is_model_ready("nosuch")


def metadata(reported: Told) -> str:
    server = reported.client.get_server_metadata(**reported.as_json)
    assert {"statistics", "model_configuration", "model_repository"} <= set(server["extensions"])
    model = reported.client.get_model_metadata(reported.model, "1", **reported.as_json)
    assert [int(size) for size in model["inputs"][0]["shape"]] == [-1, *reported.x.shape[1:]]
    assert model["inputs"][0]["datatype"] == "FP32"
    return f"{server['name']} {server['version']}, {model['platform']}"


def configuration(reported: Told) -> None:
    config = reported.client.get_model_config(reported.model, **reported.as_json)
    config = config.get("config", config)
    assert config["max_batch_size"] >= len(reported.x)
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert [int(size) for size in config["input"][0]["dims"]] == list(reported.x.shape[1:])


def statistics(reported: Told) -> None:
    def counted() -> tuple[int, int]:
        (one,) = reported.client.get_inference_statistics(reported.model, **reported.as_json)["model_stats"]
        return int(one.get("inference_count", 0)), int(one["inference_stats"]["queue"].get("count", 0))

    before = counted()
    reported.infer(reported.x)
    after = counted()
    assert after == (before[0] + len(reported.x), before[1] + 1), (before, after)
    every = reported.client.get_inference_statistics(**reported.as_json)["model_stats"]
    assert {reported.model, *reported.types.values()} == {one["name"] for one in every}


def repository(reported: Told) -> None:
    def states() -> dict[str, str]:
        index = reported.client.get_model_repository_index(**reported.as_json)
        return {one["name"]: one["state"] for one in (index if isinstance(index, list) else index["models"])}

    name = reported.types["INT8"]
    assert set(states().values()) == {"READY"}
    reported.client.unload_model(name)
    assert not reported.client.is_model_ready(name)
    assert states()[name] == "UNAVAILABLE"
    refused(lambda: reported.client.infer(name, [reported.tensor(TYPES["INT8"], "x")]), "is not loaded")
    reported.client.load_model(name)
    assert reported.client.is_model_ready(name)
    refused(lambda: reported.client.load_model(name, config="{}"), "leave the parameters out")
    refused(lambda: reported.client.load_model("nosuch"), "no model called 'nosuch'")


def answers_alone(reported: Told) -> None:
    for index, expected in enumerate(reported.alone):
        answer = reported.infer(reported.x[index : index + 1]).as_numpy(reported.output)
        assert answer.tobytes() == expected.tobytes(), f"row {index}"


def answers_together(reported: Told) -> None:
    assert reported.infer(reported.x).as_numpy(reported.output).tobytes() == reported.together.tobytes()


def no_outputs_named(reported: Told) -> None:
    assert reported.infer(reported.x, outputs=None).as_numpy(reported.output).tobytes() == reported.together.tobytes()


def identity(reported: Told) -> None:
    response = reported.infer(reported.x[:1], request_id="seven").get_response(**reported.as_json)
    assert response["id"] == "seven"
    assert response["model_name"] == reported.model
    assert response["outputs"][0]["datatype"] == "FP32"


def parameters(reported: Told) -> None:
    reported.infer(reported.x[:1], priority=1, timeout=5_000_000, model_version="1", headers={"x-trace": "a"})
    reported.infer(reported.x[:1], parameters={"mine": "value", "number": 3, "yes": True})


def types(reported: Told) -> str:
    named = [one for one in TYPES if reported.binary or one != "FP16"]
    for datatype in named:
        array, model = TYPES[datatype], reported.types[datatype]
        answer = reported.client.infer(model, [reported.tensor(array, "x")], outputs=[reported.required("y")]).as_numpy("y")
        if datatype == "BYTES":
            answer = np.array([one.decode() if isinstance(one, bytes) else one for one in answer.ravel()]).reshape(answer.shape)
        assert (answer == array).all(), datatype
    return " ".join(named)


def asynchronous(reported: Told) -> None:
    rows = [reported.x[index : index + 1] for index in range(len(reported.x))] * 4
    expected = [*reported.alone] * 4
    if reported.protocol == "http":
        waiting = [
            reported.client.async_infer(reported.model, [reported.tensor(row)], outputs=[reported.required()]) for row in rows
        ]
        found = {index: each.get_result().as_numpy(reported.output) for index, each in enumerate(waiting)}
    else:
        done: queue.Queue[Any] = queue.Queue()
        for index, row in enumerate(rows):
            reported.client.async_infer(
                reported.model, [reported.tensor(row)], lambda result, error, index=index: done.put((index, result, error))
            )
        answers = [done.get(timeout=30) for _ in rows]
        assert not [error for _, _, error in answers if error is not None], answers
        found = {index: result.as_numpy(reported.output) for index, result, _ in answers}
    # Which rows were run together is the server's own affair, and moves the last bits.
    for index, row in enumerate(expected):
        np.testing.assert_allclose(found[index], row, rtol=1e-5, atol=1e-5)


def asyncio_client(reported: Told) -> None:
    module = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[reported.protocol]

    async def all_rows() -> list[Any]:
        client = module.InferenceServerClient(reported.address)
        try:
            assert await client.is_model_ready(reported.model)
            rows = [reported.x[index : index + 1] for index in range(len(reported.x))]
            return await asyncio.gather(*[client.infer(reported.model, [reported.tensor(row, "", module)]) for row in rows])
        finally:
            await client.close()

    for answer, expected in zip(asyncio.run(all_rows()), reported.alone, strict=True):
        np.testing.assert_allclose(answer.as_numpy(reported.output), expected, rtol=1e-5, atol=1e-5)


def compressed(reported: Told) -> None:
    for kind in ("gzip", "deflate"):
        if reported.protocol == "http":
            answer = reported.infer(reported.x, request_compression_algorithm=kind, response_compression_algorithm=kind)
        else:
            answer = reported.infer(reported.x, compression_algorithm=kind)
        assert answer.as_numpy(reported.output).tobytes() == reported.together.tobytes()


def late(reported: Told) -> str:
    if reported.protocol == "grpc":
        refused(lambda: reported.infer(reported.x, client_timeout=1e-6), "DEADLINE_EXCEEDED")
    return refused(lambda: reported.infer(reported.x, timeout=1), "the deadline passed")


def unknown(reported: Told) -> str:
    tensors = [reported.tensor(reported.x[:1])]
    refused(lambda: reported.client.infer(reported.model, tensors, model_version="2"), "has no version '2'")
    refused(lambda: reported.client.get_model_config("nosuch"), "no model called 'nosuch'")
    refused(lambda: reported.client.get_inference_statistics("nosuch"), "no model called 'nosuch'")
    return refused(lambda: reported.client.infer("nosuch", tensors), "no model called 'nosuch'")


def mistakes(reported: Told) -> str:
    def ask(array: np.ndarray, name: str = "", **more: Any) -> Callable[[], Any]:
        return lambda: reported.client.infer(reported.model, [reported.tensor(array, name)], **more)

    row = reported.x[:1]
    refused(ask(row.astype(np.float64)), "has datatype FP64, and the model takes FP32")
    refused(ask(row[0]), "has shape")
    refused(ask(row, "nosuch"), "there is no input 'nosuch'")
    refused(ask(row, outputs=[reported.required("nosuch")]), "there is no output 'nosuch'")
    refused(ask(np.repeat(row, 1000, 0)), "a batch of 1000 is more than")
    if reported.binary:
        refused(ask(np.full_like(row, np.nan)), "holds NaN")
    return refused(lambda: reported.client.infer(reported.model, []), "there is no tensor for input")


def classes(reported: Told) -> str:
    return refused(lambda: reported.infer(reported.x, outputs=[reported.required(class_count=3)]), "by classification")


def other_extensions(reported: Told) -> str:
    """Shared memory, traces and logs are not offered, and say so."""
    refused(reported.client.get_trace_settings)
    refused(reported.client.get_log_settings)
    refused(reported.client.get_cuda_shared_memory_status)
    return refused(reported.client.get_system_shared_memory_status)


CHECKS: dict[str, Callable[[Told], Any]] = {
    "live, ready, and ready model by model": health,
    "metadata of the server and the model": metadata,
    "configuration": configuration,
    "statistics count what was asked": statistics,
    "index, unload, load": repository,
    "one row: the session's answer bit for bit": answers_alone,
    "a batch: the session's answer bit for bit": answers_together,
    "no outputs named: all of them": no_outputs_named,
    "id, name and datatype come back": identity,
    "priority, timeout, version, headers and parameters of one's own": parameters,
    "every type comes back as it was sent": types,
    "async_infer": asynchronous,
    "the asyncio client": asyncio_client,
    "compressed requests and answers": compressed,
    "timeouts: of the request in microseconds, and of the gRPC client": late,
    "unknown model and version are refused in words": unknown,
    "mistakes are refused in words": mistakes,
    "class_count is refused in words": classes,
    "extensions that are not offered are refused": other_extensions,
}


def same_wire_format(reported: dict[str, Any]) -> str:
    """Hold every message and number of our .proto file against tritonclient's own."""
    (ours,) = descriptor_pb2.FileDescriptorSet.FromString(Path(reported["proto"]).read_bytes()).file
    theirs = [
        descriptor_pb2.FileDescriptorProto.FromString(one.DESCRIPTOR.serialized_pb) for one in (service_pb2, model_config_pb2)
    ]
    their_fields = {key: value for file in theirs for key, value in fields_of(file).items()}
    our_fields = fields_of(ours)
    wrong = [key for key, value in our_fields.items() if their_fields.get(key) != value]
    assert not wrong, wrong
    methods = {(each.name, each.input_type, each.output_type) for each in theirs[0].service[0].method}
    assert {(each.name, each.input_type, each.output_type) for each in ours.service[0].method} <= methods
    return f"{len(our_fields)} fields and enum values, {len(ours.service[0].method)} methods"


def fields_of(file: Any) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}

    def walk(prefix: str, message: Any) -> None:
        for field in message.field:
            found[f"{prefix}.{field.name}"] = (field.number, field.type, field.label, field.type_name)
        for enum in message.enum_type:
            found.update({f"{prefix}.{enum.name}.{value.name}": (value.number,) for value in enum.value})
        for nested in message.nested_type:
            walk(f"{prefix}.{nested.name}", nested)

    for message in file.message_type:
        walk(message.name, message)
    for enum in file.enum_type:
        found.update({f"{enum.name}.{value.name}": (value.number,) for value in enum.value})
    return found


def checked(client: str, check: str, call: Callable[[], Any]) -> dict[str, Any]:
    try:
        detail, passed = call(), True
    except Exception as error:  # whatever a client does, the others still have their turn
        traceback.print_exc()
        detail, passed = f"{type(error).__name__}: {error}", False
    return {"client": client, "check": check, "passed": passed, "detail": detail or ""}


def main() -> None:
    reported = json.loads(Path(sys.argv[1]).read_text())
    results = [
        checked("tritonclient.grpc", "the .proto file has tritonclient's names and numbers", lambda: same_wire_format(reported))
    ]
    for protocol, binary in (("http", True), ("http", False), ("grpc", True)):
        one = Told(reported, protocol, binary)
        name = f"tritonclient.{protocol}" + ("" if protocol == "grpc" else ", binary" if binary else ", JSON")
        results += [checked(name, check, lambda call=call, one=one: call(one)) for check, call in CHECKS.items()]
        one.client.close()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
