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

    def __init__(self, told: dict[str, Any], protocol: str, binary: bool = True) -> None:
        self.model, self.types, self.protocol, self.binary = told["model"], told["types"], protocol, binary
        self.module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
        self.address = f"127.0.0.1:{told[protocol]}"
        arrays = np.load(told["arrays"])
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

    def wanted(self, name: str = "", **more: Any) -> Any:
        return self.module.InferRequestedOutput(name or self.output, **self._binary(), **more)

    def infer(self, array: np.ndarray, **more: Any) -> Any:
        more.setdefault("outputs", [self.wanted()])
        return self.client.infer(self.model, [self.tensor(array)], **more)

    def _binary(self) -> dict[str, bool]:
        return {"binary_data": self.binary} if self.protocol == "http" else {}


def refused(call: Callable[[], Any], *words: str) -> str:
    try:
        call()
    except InferenceServerException as error:
        told = f"{error.status()}: {error.message()}"
        assert all(word in told for word in words), told
        return told
    raise AssertionError("it was not refused")


def health(told: Told) -> None:
    client = told.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(told.model)
    assert client.is_model_ready(told.model, "1")
    assert not client.is_model_ready(told.model, "2")
    assert not client.is_model_ready("nosuch")


def metadata(told: Told) -> str:
    server = told.client.get_server_metadata(**told.as_json)
    assert {"statistics", "model_configuration", "model_repository"} <= set(server["extensions"])
    model = told.client.get_model_metadata(told.model, "1", **told.as_json)
    assert [int(size) for size in model["inputs"][0]["shape"]] == [-1, *told.x.shape[1:]]
    assert model["inputs"][0]["datatype"] == "FP32"
    return f"{server['name']} {server['version']}, {model['platform']}"


def configuration(told: Told) -> None:
    config = told.client.get_model_config(told.model, **told.as_json)
    config = config.get("config", config)
    assert config["max_batch_size"] >= len(told.x)
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert [int(size) for size in config["input"][0]["dims"]] == list(told.x.shape[1:])


def statistics(told: Told) -> None:
    def counted() -> tuple[int, int]:
        (one,) = told.client.get_inference_statistics(told.model, **told.as_json)["model_stats"]
        return int(one.get("inference_count", 0)), int(one["inference_stats"]["queue"].get("count", 0))

    before = counted()
    told.infer(told.x)
    after = counted()
    assert after == (before[0] + len(told.x), before[1] + 1), (before, after)
    every = told.client.get_inference_statistics(**told.as_json)["model_stats"]
    assert {told.model, *told.types.values()} == {one["name"] for one in every}


def repository(told: Told) -> None:
    def states() -> dict[str, str]:
        index = told.client.get_model_repository_index(**told.as_json)
        return {one["name"]: one["state"] for one in (index if isinstance(index, list) else index["models"])}

    name = told.types["INT8"]
    assert set(states().values()) == {"READY"}
    told.client.unload_model(name)
    assert not told.client.is_model_ready(name)
    assert states()[name] == "UNAVAILABLE"
    refused(lambda: told.client.infer(name, [told.tensor(TYPES["INT8"], "x")]), "is not loaded")
    told.client.load_model(name)
    assert told.client.is_model_ready(name)
    refused(lambda: told.client.load_model(name, config="{}"), "leave the parameters out")
    refused(lambda: told.client.load_model("nosuch"), "no model called 'nosuch'")


def answers_alone(told: Told) -> None:
    for index, expected in enumerate(told.alone):
        answer = told.infer(told.x[index : index + 1]).as_numpy(told.output)
        assert answer.tobytes() == expected.tobytes(), f"row {index}"


def answers_together(told: Told) -> None:
    assert told.infer(told.x).as_numpy(told.output).tobytes() == told.together.tobytes()


def no_outputs_named(told: Told) -> None:
    assert told.infer(told.x, outputs=None).as_numpy(told.output).tobytes() == told.together.tobytes()


def identity(told: Told) -> None:
    response = told.infer(told.x[:1], request_id="seven").get_response(**told.as_json)
    assert response["id"] == "seven"
    assert response["model_name"] == told.model
    assert response["outputs"][0]["datatype"] == "FP32"


def parameters(told: Told) -> None:
    told.infer(told.x[:1], priority=1, timeout=5_000_000, model_version="1", headers={"x-trace": "a"})
    told.infer(told.x[:1], parameters={"mine": "value", "number": 3, "yes": True})


def types(told: Told) -> str:
    named = [one for one in TYPES if told.binary or one != "FP16"]
    for datatype in named:
        array, model = TYPES[datatype], told.types[datatype]
        answer = told.client.infer(model, [told.tensor(array, "x")], outputs=[told.wanted("y")]).as_numpy("y")
        if datatype == "BYTES":
            answer = np.array([one.decode() if isinstance(one, bytes) else one for one in answer.ravel()]).reshape(answer.shape)
        assert (answer == array).all(), datatype
    return " ".join(named)


def asynchronous(told: Told) -> None:
    rows = [told.x[index : index + 1] for index in range(len(told.x))] * 4
    expected = [*told.alone] * 4
    if told.protocol == "http":
        waiting = [told.client.async_infer(told.model, [told.tensor(row)], outputs=[told.wanted()]) for row in rows]
        found = {index: each.get_result().as_numpy(told.output) for index, each in enumerate(waiting)}
    else:
        done: queue.Queue[Any] = queue.Queue()
        for index, row in enumerate(rows):
            told.client.async_infer(
                told.model, [told.tensor(row)], lambda result, error, index=index: done.put((index, result, error))
            )
        answers = [done.get(timeout=30) for _ in rows]
        assert not [error for _, _, error in answers if error is not None], answers
        found = {index: result.as_numpy(told.output) for index, result, _ in answers}
    # Which rows were run together is the server's own affair, and moves the last bits.
    for index, row in enumerate(expected):
        np.testing.assert_allclose(found[index], row, rtol=1e-5, atol=1e-5)


def asyncio_client(told: Told) -> None:
    module = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[told.protocol]

    async def all_rows() -> list[Any]:
        client = module.InferenceServerClient(told.address)
        try:
            assert await client.is_model_ready(told.model)
            rows = [told.x[index : index + 1] for index in range(len(told.x))]
            return await asyncio.gather(*[client.infer(told.model, [told.tensor(row, "", module)]) for row in rows])
        finally:
            await client.close()

    for answer, expected in zip(asyncio.run(all_rows()), told.alone, strict=True):
        np.testing.assert_allclose(answer.as_numpy(told.output), expected, rtol=1e-5, atol=1e-5)


def compressed(told: Told) -> None:
    for kind in ("gzip", "deflate"):
        if told.protocol == "http":
            answer = told.infer(told.x, request_compression_algorithm=kind, response_compression_algorithm=kind)
        else:
            answer = told.infer(told.x, compression_algorithm=kind)
        assert answer.as_numpy(told.output).tobytes() == told.together.tobytes()


def late(told: Told) -> str:
    if told.protocol == "grpc":
        refused(lambda: told.infer(told.x, client_timeout=1e-6), "DEADLINE_EXCEEDED")
    return refused(lambda: told.infer(told.x, timeout=1), "the deadline passed")


def unknown(told: Told) -> str:
    tensors = [told.tensor(told.x[:1])]
    refused(lambda: told.client.infer(told.model, tensors, model_version="2"), "has no version '2'")
    refused(lambda: told.client.get_model_config("nosuch"), "no model called 'nosuch'")
    refused(lambda: told.client.get_inference_statistics("nosuch"), "no model called 'nosuch'")
    return refused(lambda: told.client.infer("nosuch", tensors), "no model called 'nosuch'")


def mistakes(told: Told) -> str:
    def ask(array: np.ndarray, name: str = "", **more: Any) -> Callable[[], Any]:
        return lambda: told.client.infer(told.model, [told.tensor(array, name)], **more)

    row = told.x[:1]
    refused(ask(row.astype(np.float64)), "has datatype FP64, and the model takes FP32")
    refused(ask(row[0]), "has shape")
    refused(ask(row, "nosuch"), "there is no input 'nosuch'")
    refused(ask(row, outputs=[told.wanted("nosuch")]), "there is no output 'nosuch'")
    refused(ask(np.repeat(row, 1000, 0)), "a batch of 1000 is more than")
    if told.binary:
        refused(ask(np.full_like(row, np.nan)), "holds NaN")
    return refused(lambda: told.client.infer(told.model, []), "there is no tensor for input")


def classes(told: Told) -> str:
    return refused(lambda: told.infer(told.x, outputs=[told.wanted(class_count=3)]), "by classification")


def other_extensions(told: Told) -> str:
    """Shared memory, traces and logs are not offered, and say so."""
    refused(told.client.get_trace_settings)
    refused(told.client.get_log_settings)
    refused(told.client.get_cuda_shared_memory_status)
    return refused(told.client.get_system_shared_memory_status)


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


def same_wire_format(told: dict[str, Any]) -> str:
    """Hold every message and number of our .proto file against tritonclient's own."""
    (ours,) = descriptor_pb2.FileDescriptorSet.FromString(Path(told["proto"]).read_bytes()).file
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
    told = json.loads(Path(sys.argv[1]).read_text())
    results = [
        checked("tritonclient.grpc", "the .proto file has tritonclient's names and numbers", lambda: same_wire_format(told))
    ]
    for protocol, binary in (("http", True), ("http", False), ("grpc", True)):
        one = Told(told, protocol, binary)
        name = f"tritonclient.{protocol}" + ("" if protocol == "grpc" else ", binary" if binary else ", JSON")
        results += [checked(name, check, lambda call=call, one=one: call(one)) for check, call in CHECKS.items()]
        one.client.close()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
