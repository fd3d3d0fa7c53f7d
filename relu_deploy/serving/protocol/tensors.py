"""Tensors of the protocol: datatypes, raw bytes, and the checks that a request's inputs and outputs pass in JSON and in gRPC.

Raw bytes are little-endian and row-major; each BYTES element stands behind its length as uint32.
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
    "THREADED_PARSE_BYTES",
    "InferRequest",
    "RequestedOutput",
    "check_inputs",
    "check_load_parameters",
    "check_output_parameters",
    "check_ranges",
    "check_shapes",
    "datatype_of",
    "datatype_of_array",
    "from_numbers",
    "from_raw",
    "from_strings",
    "input_spec",
    "is_float",
    "metadata_of",
    "numpy_dtype",
    "to_raw",
    "why_no_datatype",
]

#: a JSON or protobuf message above this many bytes is parsed in a thread, so that other requests go on meanwhile
THREADED_PARSE_BYTES = 2**20
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
#: dimensions of a tensor, NumPy's limit
MAX_RANK = 64
#: strings of one tensor in raw bytes; Python takes about 100 bytes for each
MAX_STRINGS = 2**20
_KNOWN = frozenset(DATATYPES.values())
#: kinds of values that are no tensors (see `graph.model.io_specs`), in words
_NO_TENSORS = {"sequence": "a sequence", "optional": "an optional value", "unknown": "a map or a sequence of maps"}
#: dtype kind of a tensor → the kinds of numbers that it may be given; an integer that was written as 1.5 is a mistake
_ACCEPTED_KINDS = {"b": "b", "u": "ui", "i": "ui", "f": "fui"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class RequestedOutput:
    """One output that a request names. binary: as raw bytes instead of numbers."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """One inference request.

    Attributes:
        inputs: The tensors by name, checked against the model's inputs.
        id: The client's identifier.
        outputs: The outputs to answer with, None for all of the model's.
        binary: Whether outputs that are not named are raw bytes.
        parameters: The request's own parameters.
    """

    inputs: Mapping[str, Array]
    id: str = ""
    outputs: tuple[RequestedOutput, ...] | None = None
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def select(self, specs: Sequence[TensorSpec]) -> tuple[RequestedOutput, ...]:
        """Return the outputs to answer with, of a model whose outputs are `specs`.

        Raises:
            InvalidArgument: If the request names an output that the model does not have, or one twice: a small request could
                have an answer of any size.
        """
        if self.outputs is None:
            return tuple(RequestedOutput(spec.name, self.binary) for spec in specs)
        known = {spec.name: False for spec in specs}
        for output in self.outputs:
            if output.name not in known:
                raise InvalidArgument(f"there is no output {output.name!r}", f"the model's outputs are {', '.join(known)}")
            if known[output.name]:
                raise InvalidArgument(f"output {output.name!r} is requested twice")
            known[output.name] = True
        return self.outputs


def datatype_of(spec: TensorSpec) -> str:
    """Return the protocol's name for the type of `spec`."""
    return DATATYPES[spec.dtype]


def why_no_datatype(spec: TensorSpec) -> tuple[str, str] | None:
    """Return why the protocol has no type for `spec` and what to do about it, None if it has one."""
    if spec.dtype in DATATYPES:
        return None
    if spec.dtype == "unknown":
        remedy = "convert a classifier with zipmap=False (skl2onnx, onnxmltools): then its probabilities are a tensor"
    else:
        remedy = "make it a tensor of another type in the graph, or leave it out"
    what = _NO_TENSORS.get(spec.dtype, f"of type {spec.dtype}")
    return f"{spec.name} is {what}, which the Open Inference Protocol has no type for", remedy


def datatype_of_array(array: Array) -> str:
    """Return the protocol's name for the type of `array`."""
    return DATATYPES["object" if array.dtype.kind in "OSU" else array.dtype.name]


def metadata_of(spec: TensorSpec) -> dict[str, Any]:
    """Return how the protocol describes `spec`; -1 where a dimension varies."""
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": datatype_of(spec), "shape": shape}


def input_spec(
    name: Any, datatype: Any, shape: Any, expected: Mapping[str, TensorSpec], given: Mapping[str, Array]
) -> TensorSpec:
    """Return the model's description of one input of a request.

    Args:
        name: As the request has it, of any type; so are datatype and shape.
        datatype: The protocol's name.
        shape: A list of sizes.
        expected: The model's inputs.
        given: The inputs that the request has given before.

    Raises:
        InvalidArgument: If there is no such input, it is given twice, or its datatype or shape is wrong.
    """
    if not isinstance(name, str):
        raise InvalidArgument("an input has no name")
    if name not in expected:
        raise InvalidArgument(f"there is no input {name!r}", f"the model's inputs are {', '.join(map(str, expected.values()))}")
    if name in given:
        raise InvalidArgument(f"input {name!r} is given twice")
    if not isinstance(datatype, str) or datatype not in _KNOWN:
        raise InvalidArgument(f"input {name!r} has datatype {repr(datatype)[:40]}", f"known are {', '.join(DATATYPES.values())}")
    if datatype != datatype_of(expected[name]):
        raise InvalidArgument(f"input {name!r} has datatype {datatype}, and the model takes {datatype_of(expected[name])}")
    if not _is_shape(shape):
        raise InvalidArgument(f"input {name!r} has shape {str(shape)[:80]}", "a shape is a list of sizes")
    return expected[name]


def from_raw(raw: Any, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor in the bytes `raw`, without a copy.

    Raises:
        InvalidArgument: If the number of bytes does not fit `shape`.
    """
    if spec.dtype == "object":
        return _split_strings(raw, shape, spec)
    dtype = numpy_dtype(spec.dtype)
    needed = prod(shape) * dtype.itemsize
    if len(raw) != needed:
        raise InvalidArgument(f"input {spec.name!r} of shape {list(shape)} needs {needed} bytes, and has {len(raw)}")
    if dtype == np.bool_ and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
        raise InvalidArgument(f"input {spec.name!r} has bytes that are neither 0 nor 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def from_numbers(array: Array, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor whose flat or nested numbers are `array`.

    Raises:
        InvalidArgument: If they are of another kind than the tensor, out of its range, or not as many as `shape` needs.
    """
    dtype = numpy_dtype(spec.dtype)
    if array.dtype.kind == "f" and dtype.kind in "ui":
        array = _integral(array)
    if array.size and array.dtype.kind not in _ACCEPTED_KINDS[dtype.kind]:
        raise InvalidArgument(f"input {spec.name!r} has data that is not {datatype_of(spec)}")
    if array.size and dtype.kind in "ui" and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max:
        raise InvalidArgument(f"input {spec.name!r} has numbers beyond {datatype_of(spec)}")
    if array.size != prod(shape):
        raise InvalidArgument(f"input {spec.name!r} of shape {list(shape)} needs {prod(shape)} numbers, and has {array.size}")
    with np.errstate(over="ignore"):  # an infinity is refused by `check_inputs`
        return array.astype(dtype, copy=False).reshape(shape)


def from_strings(strings: Sequence[str | bytes], shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor of strings.

    Raises:
        InvalidArgument: If they are not as many as `shape` needs, or not UTF-8.
    """
    if len(strings) != prod(shape):
        raise InvalidArgument(f"input {spec.name!r} of shape {list(shape)} needs {prod(shape)} strings, and has {len(strings)}")
    try:
        texts = [each.decode() if isinstance(each, bytes) else each for each in strings]
    except UnicodeDecodeError:
        raise InvalidArgument(f"input {spec.name!r} has strings that are not UTF-8") from None
    return np.array(texts, object).reshape(shape)


def to_raw(array: Array) -> bytes:
    """Return the bytes of `array`."""
    if array.dtype.kind in "OSU":
        encoded = [each if isinstance(each, bytes) else str(each).encode() for each in array.ravel()]
        return b"".join(_LENGTH.pack(len(each)) + each for each in encoded)
    return np.ascontiguousarray(array).tobytes()


def check_inputs(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], allow_nan: bool) -> None:
    """Check that `inputs` are all of the model's inputs, of its shapes.

    Raises:
        InvalidArgument: If an input is missing, or `check_shapes` refuses one.
    """
    if missing := [spec.name for spec in specs if spec.name not in inputs]:
        raise InvalidArgument(
            f"there is no tensor for input {missing[0]!r}", f"the model's inputs are {', '.join(map(str, specs))}"
        )
    check_shapes(inputs, specs, allow_nan)


def check_shapes(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], allow_nan: bool) -> None:
    """Check shapes and values.

    Raises:
        InvalidArgument: If a shape does not fit, one symbolic dimension has two sizes, or a number is not finite and
            `allow_nan` is not set.
    """
    bound: dict[str, int] = {}
    for spec in specs:
        array = inputs[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            size == dim if isinstance(dim, int) else bound.setdefault(dim, size) == size
            for size, dim in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            known = [bound.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape]
            raise InvalidArgument(f"input {spec.name!r} has shape {list(array.shape)}, and the model takes {known}")
        if not allow_nan and is_float(array) and not np.isfinite(array).all():
            raise InvalidArgument(f"input {spec.name!r} holds NaN or an infinity", "start the server with --allow-nan")


def check_ranges(feeds: Mapping[str, Array], ranges: Mapping[str, tuple[int, int]]) -> None:
    """Check the values of integer inputs, for instance indices into a table.

    Args:
        feeds: All inputs.
        ranges: By name, the smallest and the largest value that the graph accepts.

    Raises:
        InvalidArgument: If a value is out of its range.
    """
    for name, (low, high) in ranges.items():
        array = feeds.get(name)
        if array is None or not array.size:
            continue
        least, most = int(array.min()), int(array.max())
        # Many operators count negative indices from the end.
        if least < min(low, -(high + 1)) or most > high:
            wrong = most if most > high else least
            raise InvalidArgument(f"input {name!r} holds {wrong}, and the model accepts {low} to {high}")


def check_output_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Check the parameters of a requested output.

    Raises:
        InvalidArgument: If they need an extension of the protocol that is not implemented.
    """
    for extension, parameter in (("classification", "classification"), ("shared memory", "shared_memory_region")):
        if parameters.get(parameter):
            raise InvalidArgument(
                f"output {name!r} is requested by {extension}, which is not supported", f"leave {parameter!r} out"
            )


def check_load_parameters(parameters: Any) -> None:
    """Check the parameters of a request to load a model.

    Raises:
        InvalidArgument: If there are any: a model is loaded as the server was started with it.
    """
    if parameters:
        raise InvalidArgument("a model is loaded from the path that the server was started with", "leave the parameters out")


def is_float(array: Array) -> bool:
    """Return whether `array` holds floating-point numbers; NumPy does not count bfloat16 among its floats."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype called `name`, also for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _integral(array: Array) -> Array:
    """Return `array` as integers if each number is one: JavaScript and pandas write 1 as 1.0."""
    exact = np.isfinite(array).all() and (np.abs(array) <= 2**53).all() and (array == np.trunc(array)).all()
    return array.astype(np.int64) if exact else array


def _is_shape(shape: Any) -> bool:
    sizes = isinstance(shape, list) and len(shape) <= MAX_RANK and all(type(size) is int and 0 <= size < 2**31 for size in shape)
    return sizes and prod(shape) < 2**40


def _split_strings(raw: Any, shape: Sequence[int], spec: TensorSpec) -> Array:
    found: list[str | bytes] = []
    view = memoryview(raw)
    if prod(shape) > MAX_STRINGS:
        raise InvalidArgument(f"input {spec.name!r} has more than {MAX_STRINGS} strings", "send fewer rows")
    while view and len(found) <= prod(shape):
        length = _LENGTH.unpack(view[:4])[0] if len(view) >= 4 else -1
        if not 0 <= length <= len(view) - 4:
            raise InvalidArgument(f"input {spec.name!r} has strings whose lengths do not fit its bytes")
        found.append(bytes(view[4 : 4 + length]))
        view = view[4 + length :]
    return from_strings(found, shape, spec)
