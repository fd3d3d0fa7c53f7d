"""Requests and responses of the Open Inference Protocol v2, in JSON and with Triton's binary tensors.

A body is JSON, or JSON followed by the raw bytes of tensors in the order in which the JSON lists them. The header
`Inference-Header-Content-Length` says how long the JSON is; 0 there means that the whole body is the one input's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from relu_deploy.serving.errors import InvalidArgument, TooLarge
from relu_deploy.serving.protocol.tensors import (
    InferRequest,
    RequestedOutput,
    check_inputs,
    check_output_parameters,
    check_shapes,
    datatype_of,
    datatype_of_array,
    from_numbers,
    from_raw,
    from_strings,
    input_spec,
    is_float,
    numpy_dtype,
    to_raw,
)
from relu_deploy.tensors import Array, TensorSpec

__all__ = ["MAX_CONTAINERS", "MAX_VALUES", "decode", "dump", "encode", "memory_of", "parse"]

#: objects and lists of one JSON body, and values altogether; Python takes 64 and 40 bytes for each
MAX_CONTAINERS, MAX_VALUES = 2**20, 2**24
CONTAINER_BYTES, VALUE_BYTES = 64, 40


def decode(body: bytes, json_length: int | None, specs: Sequence[TensorSpec], allow_nan: bool = False) -> InferRequest:
    """Return the request in `body`, every input checked.

    Args:
        body: Arrays that came as bytes share its memory.
        json_length: The value of the header, None without one.
        specs: The model's inputs.
        allow_nan: Accept NaN and infinities.

    Raises:
        InvalidArgument: With what is wrong.
    """
    if json_length == 0:
        return InferRequest({specs[0].name: _raw_body(body, specs, allow_nan)}, binary=True)
    if json_length is not None and not 0 < json_length <= len(body):
        raise InvalidArgument(f"Inference-Header-Content-Length is {json_length}, and the body has {len(body)} bytes")
    message = parse(body if json_length is None else body[:json_length])
    rest = memoryview(b"" if json_length is None else body)[json_length or 0 :]
    listed = message.get("inputs")
    if not isinstance(listed, list):
        raise InvalidArgument("'inputs' must be a list of tensors", "each with name, shape, datatype and data")
    expected = {spec.name: spec for spec in specs}
    inputs: dict[str, Array] = {}
    for each in listed:
        if not isinstance(each, dict):
            raise InvalidArgument("an input has no name")
        spec = input_spec(each.get("name"), each.get("datatype"), each.get("shape"), expected, inputs)
        size = _parameters(each).get("binary_data_size")
        if size is None:
            inputs[spec.name] = _from_json(each, spec)
            continue
        if "data" in each:
            raise InvalidArgument(f"input {spec.name!r} has both data and binary_data_size", "give one of them")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise InvalidArgument(
                f"input {spec.name!r} has binary_data_size {size!r}, and {len(rest)} bytes are left in the body"
            )
        inputs[spec.name] = from_raw(rest[:size], each["shape"], spec)
        rest = rest[size:]
    if len(rest):
        raise InvalidArgument(
            f"{len(rest)} bytes are left in the body that belong to no input", "binary_data_size says how many each has"
        )
    check_inputs(inputs, specs, allow_nan)
    return _with_outputs(message, inputs)


def memory_of(body: bytes, json_length: int | None) -> int:
    """Return about how many bytes of memory the JSON in `body` takes once it is parsed.

    Raises:
        TooLarge: If it has too many values.
    """
    end = len(body) if json_length is None else min(json_length, len(body))
    containers = body.count(b"{", 0, end) + body.count(b"[", 0, end)
    values = containers + body.count(b",", 0, end)
    if containers > MAX_CONTAINERS or values > MAX_VALUES:
        raise TooLarge(
            f"the JSON has more than {MAX_CONTAINERS} objects and lists, or {MAX_VALUES} values", "send tensors as binary data"
        )
    return containers * CONTAINER_BYTES + values * VALUE_BYTES


def parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text`, {} for an empty one.

    Raises:
        InvalidArgument: If it is not a JSON object.
        TooLarge: If it has too many values.
    """
    import orjson

    if not text:
        return {}
    memory_of(text, None)
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidArgument("the body must be a JSON object")
    return content


def dump(content: Any) -> bytes:
    """Return `content` as JSON; arrays are written as flat lists."""
    import orjson

    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def encode(
    fields: Mapping[str, Any], results: Mapping[str, Array], outputs: Sequence[RequestedOutput]
) -> tuple[list[bytes], int | None]:
    """Return the response's body in parts, and the length of its JSON where bytes follow, else None.

    Args:
        fields: The response's own (model_name, id, …).
        results: The model's outputs.
        outputs: Those to answer with.

    Raises:
        InvalidArgument: If JSON cannot represent an output.
    """
    described, raws = [], []
    for output in outputs:
        array = results[output.name]
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype_of_array(array), "shape": list(array.shape)}
        if output.binary:
            raw = to_raw(array)
            raws.append(raw)
            entry["parameters"] = {"binary_data_size": len(raw)}
        else:
            entry["data"] = _json_data(output.name, array)
        described.append(entry)
    text = dump({**fields, "outputs": described})
    return [text, *raws], len(text) if raws else None


def _with_outputs(message: Mapping[str, Any], inputs: Mapping[str, Array]) -> InferRequest:
    parameters = _parameters(message)
    binary = bool(parameters.get("binary_data_output", False))
    identifier = message.get("id", "")
    if not isinstance(identifier, str):
        raise InvalidArgument("'id' must be a string")
    listed = message.get("outputs")
    if listed is None or listed == []:
        return InferRequest(inputs, identifier, None, binary, parameters)
    if not isinstance(listed, list) or not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in listed):
        raise InvalidArgument("'outputs' must be a list of objects with a name")
    for each in listed:
        check_output_parameters(each["name"], _parameters(each))
    # An output's own binary_data overrides the request's binary_data_output.
    outputs = tuple(RequestedOutput(each["name"], bool(_parameters(each).get("binary_data", binary))) for each in listed)
    return InferRequest(inputs, identifier, outputs, binary, parameters)


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidArgument("'parameters' must be an object")
    return parameters


def _from_json(entry: Mapping[str, Any], spec: TensorSpec) -> Array:
    """Return the tensor whose `data` is nested or flat.

    Raises:
        InvalidArgument: If the data is not of the tensor's type and size.
    """
    name, data, shape = spec.name, entry.get("data"), entry["shape"]
    if shape == [] and data is not None and not isinstance(data, list | dict):
        data = [data]
    if not isinstance(data, list):
        raise InvalidArgument(f"input {name!r} has no data", "give a list in data, or bytes and binary_data_size")
    if spec.dtype in ("float16", "bfloat16"):
        raise InvalidArgument(f"input {name!r} is {datatype_of(spec)}, which JSON cannot hold", "send it as binary data")
    if spec.dtype == "object":
        return _json_strings(data, shape, spec)
    try:
        return from_numbers(_array_of(data, spec), shape, spec)
    except (ValueError, OverflowError, TypeError):
        raise InvalidArgument(f"input {name!r} has data that is not one array of numbers") from None


def _array_of(data: list[Any], spec: TensorSpec) -> Array:
    """Return the numbers in nested lists of equal lengths, flat. Raises ValueError for anything else."""
    # NumPy would make room for the longest text once for each number beside it.
    while (kinds := set(map(type, data))) == {list}:
        if len(set(map(len, data))) > 1:
            raise ValueError("the lists have different lengths")
        data = list(chain.from_iterable(data))
    if not kinds <= {int, float, bool}:
        raise ValueError("there is more than numbers")
    array = np.array(data)
    if spec.dtype != "uint64" or array.dtype.kind != "f":
        return array
    # Of small and very large integers together NumPy makes floats, which do not hold the large ones.
    exact = np.array(data, object)
    return exact.astype(np.uint64) if kinds == {int} else array


def _raw_body(body: bytes, specs: Sequence[TensorSpec], allow_nan: bool) -> Array:
    """Return the one input that a body without JSON is: of batch 1; one other dimension may follow from the body's length."""
    if len(specs) != 1 or specs[0].dtype == "object":
        raise InvalidArgument("a body without JSON is for models with one input of numbers")
    spec = specs[0]
    shape = [size if isinstance(size, int) else 1 if axis == 0 else -1 for axis, size in enumerate(spec.shape)]
    known = prod(size for size in shape if size >= 0) * numpy_dtype(spec.dtype).itemsize
    if shape.count(-1) > 1 or not known or len(body) % known:
        raise InvalidArgument(f"a body of {len(body)} bytes does not make input {spec}")
    array = from_raw(body, [len(body) // known if size < 0 else size for size in shape], spec)
    check_shapes({spec.name: array}, specs, allow_nan)
    return array


def _json_strings(data: list[Any], shape: Sequence[int], spec: TensorSpec) -> Array:
    flat = np.array(data, object).ravel()
    if not all(isinstance(each, str) for each in flat):
        raise InvalidArgument(f"input {spec.name!r} has data that is not strings")
    return from_strings(list(flat), shape, spec)


def _json_data(name: str, array: Array) -> Any:
    datatype = datatype_of_array(array)
    if datatype in ("FP16", "BF16"):
        raise InvalidArgument(f"output {name!r} is {datatype}, which JSON cannot hold", "request it as binary data")
    if datatype == "BYTES":
        return [each.decode() if isinstance(each, bytes) else str(each) for each in array.ravel()]
    if is_float(array) and not np.isfinite(array).all():
        raise InvalidArgument(f"output {name!r} holds NaN or an infinity, which JSON cannot hold", "request it as binary data")
    return np.ascontiguousarray(array).ravel()
