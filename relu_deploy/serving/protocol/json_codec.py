"""Requests and responses of the Open Inference Protocol v2, in JSON and with Triton's binary tensors.

A body is JSON, or JSON followed by tensors' bytes in the order in which the JSON lists them (little-endian, row-major;
BYTES elements each behind their length as uint32). How long the JSON is stands in the header
`Inference-Header-Content-Length`; 0 there means that the whole body is the one input's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from relu_deploy.serving.errors import InvalidArgument
from relu_deploy.tensors import Array, TensorSpec

__all__ = [
    "DATATYPES",
    "InferRequest",
    "RequestedOutput",
    "check_complete",
    "check_load",
    "check_wish",
    "datatype_of",
    "datatype_of_array",
    "decode",
    "dump",
    "encode",
    "from_numbers",
    "from_raw",
    "from_strings",
    "metadata_of",
    "parse",
    "spec_of",
    "to_raw",
]

#: NumPy's names of dtypes → the protocol's; strings are objects there
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
_NUMPY = {theirs: ours for ours, theirs in DATATYPES.items()}
#: which kinds of numbers in JSON make which kind of tensor; an integer that was written as 1.5 is a mistake
_FITTING = {"b": "b", "u": "ui", "i": "ui", "f": "fui"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class RequestedOutput:
    """One output that was asked for. binary: as bytes behind the JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """One inference that was asked for. outputs: None for all of the model's, in JSON unless `binary`."""

    inputs: Mapping[str, Array]
    id: str = ""
    outputs: tuple[RequestedOutput, ...] | None = None
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def wanted(self, specs: Sequence[TensorSpec]) -> tuple[RequestedOutput, ...]:
        """Return the outputs to answer with. Raises Invalid for one that the model does not have."""
        if self.outputs is None:
            return tuple(RequestedOutput(spec.name, self.binary) for spec in specs)
        known = [spec.name for spec in specs]
        for wanted in self.outputs:
            if wanted.name not in known:
                raise InvalidArgument(f"there is no output {wanted.name!r}", f"the model's outputs are {', '.join(known)}")
        return self.outputs


def datatype_of(spec: TensorSpec) -> str:
    """Return the protocol's name for the type of `spec`."""
    return DATATYPES[spec.dtype]


def datatype_of_array(array: Array) -> str:
    """Return the protocol's name for the type of `array`."""
    return DATATYPES[_dtype_name(array)]


def metadata_of(spec: TensorSpec) -> dict[str, Any]:
    """Return how the protocol describes `spec`; -1 where a dimension may vary."""
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": datatype_of(spec), "shape": shape}


def decode(body: bytes, json_length: int | None, specs: Sequence[TensorSpec], allow_nan: bool = False) -> InferRequest:
    """Return the request in `body`, every input checked against `specs`.

    json_length: the value of the header, None without one. allow_nan: take NaN and infinities. Arrays share the memory of `body` where they came as bytes.
    Raises Invalid that names what is wrong.
    """
    if json_length == 0:
        return InferRequest({specs[0].name: _raw_body(body, specs, allow_nan)}, binary=True)
    if json_length is not None and not 0 < json_length <= len(body):
        raise InvalidArgument(f"Inference-Header-Content-Length is {json_length}, and the body has {len(body)} bytes")
    told = parse(body if json_length is None else body[:json_length])
    behind = memoryview(b"" if json_length is None else body)[json_length or 0 :]
    listed = told.get("inputs")
    if not isinstance(listed, list):
        raise InvalidArgument("'inputs' must be a list of tensors", "each with name, shape, datatype and data")
    expected = {spec.name: spec for spec in specs}
    inputs: dict[str, Array] = {}
    for one in listed:
        spec = spec_of(one, expected, inputs)
        size = _parameters(one).get("binary_data_size")
        if size is None:
            inputs[spec.name] = _from_json(one, spec)
            continue
        if "data" in one:
            raise InvalidArgument(f"input {spec.name!r} has both data and binary_data_size", "give one of them")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(behind):
            raise InvalidArgument(
                f"input {spec.name!r} has binary_data_size {size!r}, and {len(behind)} bytes are left in the body"
            )
        inputs[spec.name] = from_raw(behind[:size], one["shape"], spec)
        behind = behind[size:]
    if len(behind):
        raise InvalidArgument(
            f"{len(behind)} bytes are left in the body that belong to no input", "binary_data_size says how many each has"
        )
    check_complete(inputs, specs, allow_nan)
    return _request(told, inputs)


def parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text`, {} for an empty one. Raises Invalid when it is none."""
    import orjson

    if not text:
        return {}
    try:
        told = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from None
    if not isinstance(told, dict):
        raise InvalidArgument("the body must be a JSON object")
    return told


def dump(told: Mapping[str, Any]) -> bytes:
    """Return `told` as JSON; arrays are written as flat lists."""
    import orjson

    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


def encode(
    told: Mapping[str, Any], results: Mapping[str, Array], wanted: Sequence[RequestedOutput]
) -> tuple[list[bytes], int | None]:
    """Return the response's body in parts, and how long its JSON is where bytes follow, else None.

    told: the response's own fields (model_name, id, …). Raises Invalid for an output that JSON cannot say.
    """
    outputs, behind = [], []
    for each in wanted:
        array = results[each.name]
        told_of: dict[str, Any] = {"name": each.name, "datatype": datatype_of_array(array), "shape": list(array.shape)}
        if each.binary:
            raw = to_raw(array)
            behind.append(raw)
            told_of["parameters"] = {"binary_data_size": len(raw)}
        else:
            told_of["data"] = _json_data(each.name, array)
        outputs.append(told_of)
    text = dump({**told, "outputs": outputs})
    return [text, *behind], len(text) if behind else None


def spec_of(one: Any, expected: Mapping[str, TensorSpec], seen: Mapping[str, Array]) -> TensorSpec:
    """Return what the model says of the input that `one` is for, its fields checked."""
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        raise InvalidArgument("an input has no name")
    name = one["name"]
    if name not in expected:
        raise InvalidArgument(f"there is no input {name!r}", f"the model's inputs are {', '.join(map(str, expected.values()))}")
    if name in seen:
        raise InvalidArgument(f"input {name!r} is given twice")
    wanted, shape = datatype_of(expected[name]), one.get("shape")
    if one.get("datatype") not in _NUMPY:
        raise InvalidArgument(f"input {name!r} has datatype {one.get('datatype')!r}", f"known are {', '.join(_NUMPY)}")
    if one["datatype"] != wanted:
        raise InvalidArgument(f"input {name!r} has datatype {one['datatype']}, and the model takes {wanted}")
    if not _is_shape(shape):
        raise InvalidArgument(f"input {name!r} has shape {str(shape)[:80]}", "a shape is a list of sizes")
    return expected[name]


def from_raw(raw: Any, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor in the bytes `raw`, without a copy. Raises Invalid when they are not as many as its shape needs."""
    if spec.dtype == "object":
        return _strings(raw, shape, spec)
    dtype = _numpy_dtype(spec.dtype)
    needed = prod(shape) * dtype.itemsize
    if len(raw) != needed:
        raise InvalidArgument(f"input {spec.name!r} of shape {list(shape)} needs {needed} bytes, and has {len(raw)}")
    if dtype == np.bool_ and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
        raise InvalidArgument(f"input {spec.name!r} has bytes that are neither 0 nor 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def from_numbers(array: Array, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor whose flat or nested numbers are `array`. Raises Invalid for numbers that its type does not hold."""
    dtype = _numpy_dtype(spec.dtype)
    if array.size and array.dtype.kind not in _FITTING[dtype.kind]:
        raise InvalidArgument(f"input {spec.name!r} has data that is not {datatype_of(spec)}")
    if array.size and dtype.kind in "ui" and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max:
        raise InvalidArgument(f"input {spec.name!r} has numbers beyond {datatype_of(spec)}")
    if array.size != prod(shape):
        raise InvalidArgument(f"input {spec.name!r} of shape {list(shape)} needs {prod(shape)} numbers, and has {array.size}")
    with np.errstate(over="ignore"):  # the infinity is refused like any other
        return array.astype(dtype, copy=False).reshape(shape)


def from_strings(found: Sequence[str | bytes], shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor of strings. Raises Invalid when they are not as many as its shape needs, or not UTF-8."""
    if len(found) != prod(shape):
        raise InvalidArgument(f"input {spec.name!r} of shape {list(shape)} needs {prod(shape)} strings, and has {len(found)}")
    try:
        texts = [one.decode() if isinstance(one, bytes) else one for one in found]
    except UnicodeDecodeError:
        raise InvalidArgument(f"input {spec.name!r} has strings that are not UTF-8") from None
    return np.array(texts, object).reshape(shape)


def to_raw(array: Array) -> bytes:
    """Return the bytes of `array`, row-major and little-endian."""
    if array.dtype.kind in "OSU":
        encoded = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel()]
        return b"".join(_LENGTH.pack(len(one)) + one for one in encoded)
    return np.ascontiguousarray(array).tobytes()


def check_complete(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], allow_nan: bool) -> None:
    """Raise Invalid for an input that is missing, and what `check_sizes` raises."""
    if missing := [spec.name for spec in specs if spec.name not in inputs]:
        raise InvalidArgument(
            f"there is no tensor for input {missing[0]!r}", f"the model's inputs are {', '.join(map(str, specs))}"
        )
    check_sizes(inputs, specs, allow_nan)


def check_wish(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise Invalid for an output that is wanted in a form of an extension that there is not here."""
    for extension, parameter in (("classification", "classification"), ("shared memory", "shared_memory_region")):
        if parameters.get(parameter):
            raise InvalidArgument(f"output {name!r} is wanted by {extension}, which is not done here", f"leave {parameter!r} out")


def check_load(parameters: Mapping[str, Any]) -> None:
    """Raise Invalid for a model that is to be loaded in another way than the server was started with."""
    if parameters:
        raise InvalidArgument("a model is loaded from where the server was told it is", "leave the parameters out")


def check_sizes(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], allow_nan: bool) -> None:
    """Raise Invalid for a shape that does not fit, or one name that has two sizes, or a number that is none."""
    bound: dict[str, int] = {}
    for spec in specs:
        array = inputs[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            size == dim if isinstance(dim, int) else size > 0 and bound.setdefault(dim, size) == size
            for size, dim in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            known = [bound.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape]
            raise InvalidArgument(f"input {spec.name!r} has shape {list(array.shape)}, and the model takes {known}")
        if not allow_nan and _is_float(array) and not np.isfinite(array).all():
            raise InvalidArgument(f"input {spec.name!r} holds NaN or an infinity", "the server takes them with --allow-nan")


def _request(told: Mapping[str, Any], inputs: Mapping[str, Array]) -> InferRequest:
    parameters = _parameters(told)
    binary = bool(parameters.get("binary_data_output", False))
    identity = told.get("id", "")
    if not isinstance(identity, str):
        raise InvalidArgument("'id' must be a string")
    asked = told.get("outputs")
    if asked is None or asked == []:
        return InferRequest(inputs, identity, None, binary, parameters)
    if not isinstance(asked, list) or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in asked):
        raise InvalidArgument("'outputs' must be a list of objects with a name")
    for one in asked:
        check_wish(one["name"], _parameters(one))
    # An output's own wish goes before the request's.
    outputs = tuple(RequestedOutput(one["name"], bool(_parameters(one).get("binary_data", binary))) for one in asked)
    return InferRequest(inputs, identity, outputs, binary, parameters)


def _parameters(one: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = one.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidArgument("'parameters' must be an object")
    return parameters


def _is_shape(shape: Any) -> bool:
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**31 for size in shape)
    return sizes and prod(shape) < 2**40


def _from_json(one: Mapping[str, Any], spec: TensorSpec) -> Array:
    """Return the tensor whose `data` is nested or flat. Raises Invalid for what is not of the tensor's type and size."""
    name, data, shape = spec.name, one.get("data"), one["shape"]
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
    array = np.array(data)
    if spec.dtype != "uint64" or array.dtype.kind != "f":
        return array
    # Small and very large integers together: NumPy makes floats of them, which do not hold the large ones.
    exact = np.array(data, object)
    return exact.astype(np.uint64) if all(type(one) is int for one in exact.ravel()) else array


def _raw_body(body: bytes, specs: Sequence[TensorSpec], allow_nan: bool) -> Array:
    """Return the one input that a body without JSON is: batch 1, and a dimension beside that may follow from the length."""
    if len(specs) != 1 or specs[0].dtype == "object":
        raise InvalidArgument("a body without JSON is for models with one input of numbers")
    spec = specs[0]
    shape = [size if isinstance(size, int) else 1 if axis == 0 else -1 for axis, size in enumerate(spec.shape)]
    known = prod(size for size in shape if size >= 0) * _numpy_dtype(spec.dtype).itemsize
    if shape.count(-1) > 1 or not known or len(body) % known:
        raise InvalidArgument(f"a body of {len(body)} bytes does not make input {spec}")
    array = from_raw(body, [len(body) // known if size < 0 else size for size in shape], spec)
    check_sizes({spec.name: array}, specs, allow_nan)
    return array


def _strings(raw: Any, shape: Sequence[int], spec: TensorSpec) -> Array:
    found, view = [], memoryview(raw)
    while view:
        length = _LENGTH.unpack(view[:4])[0] if len(view) >= 4 else -1
        if not 0 <= length <= len(view) - 4:
            raise InvalidArgument(f"input {spec.name!r} has strings whose lengths do not fit its bytes")
        found.append(bytes(view[4 : 4 + length]))
        view = view[4 + length :]
    return from_strings(found, shape, spec)


def _json_strings(data: list[Any], shape: Sequence[int], spec: TensorSpec) -> Array:
    flat = np.array(data, object).ravel()
    if not all(isinstance(one, str) for one in flat):
        raise InvalidArgument(f"input {spec.name!r} has data that is not strings")
    return from_strings(list(flat), shape, spec)


def _json_data(name: str, array: Array) -> Any:
    kind = _dtype_name(array)
    if kind in ("float16", "bfloat16"):
        raise InvalidArgument(f"output {name!r} is {DATATYPES[kind]}, which JSON cannot hold", "ask for binary data")
    if kind == "object":
        return [one.decode() if isinstance(one, bytes) else str(one) for one in array.ravel()]
    if _is_float(array) and not np.isfinite(array).all():
        raise InvalidArgument(f"output {name!r} holds NaN or an infinity, which JSON cannot say", "ask for binary data")
    return np.ascontiguousarray(array).ravel()


def _is_float(array: Array) -> bool:
    # NumPy does not count bfloat16 among its floats.
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _dtype_name(array: Array) -> str:
    return "object" if array.dtype.kind in "OSU" else array.dtype.name


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
