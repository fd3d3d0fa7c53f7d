"""Requests and responses of the protocol as gRPC messages: typed lists or raw bytes, to and from arrays.

The checks are those of `tensors`, so a mistake is reported alike over HTTP and gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relu_deploy.serving.errors import InvalidArgument
from relu_deploy.serving.protocol.tensors import (
    InferRequest,
    RequestedOutput,
    check_inputs,
    check_output_parameters,
    datatype_of,
    datatype_of_array,
    from_numbers,
    from_raw,
    from_strings,
    input_spec,
    to_raw,
)
from relu_deploy.tensors import Array, TensorSpec

__all__ = ["decode", "fill", "parameters_of"]

#: datatypes → the list of InferTensorContents that holds their elements, and the dtype of that list
_LISTS = {
    "BOOL": ("bool_contents", np.bool_),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}


def decode(message: Any, specs: Sequence[TensorSpec], allow_nan: bool = False) -> InferRequest:
    """Return the request in a ModelInferRequest, every input checked. Its outputs are raw bytes when its inputs are.

    Args:
        message: The ModelInferRequest.
        specs: The model's inputs.
        allow_nan: Accept NaN and infinities.

    Raises:
        InvalidArgument: With what is wrong.
    """
    raws = list(message.raw_input_contents)
    if raws and len(raws) != len(message.inputs):
        raise InvalidArgument(
            f"there are {len(message.inputs)} inputs and {len(raws)} raw_input_contents", "give one for each input, or none"
        )
    expected = {spec.name: spec for spec in specs}
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(message.inputs):
        shape = list(tensor.shape)
        spec = input_spec(tensor.name, tensor.datatype, shape, expected, inputs)
        if not raws:
            inputs[spec.name] = _from_lists(tensor, shape, spec)
        elif tensor.HasField("contents"):
            raise InvalidArgument(f"input {spec.name!r} has both contents and raw_input_contents", "give one of them")
        else:
            inputs[spec.name] = from_raw(raws[index], shape, spec)
    check_inputs(inputs, specs, allow_nan)
    for output in message.outputs:
        check_output_parameters(output.name, parameters_of(output))
    outputs = tuple(RequestedOutput(output.name, bool(raws)) for output in message.outputs) or None
    return InferRequest(inputs, message.id, outputs, bool(raws), parameters_of(message))


def fill(message: Any, results: Mapping[str, Array], outputs: Sequence[RequestedOutput]) -> None:
    """Put `outputs` into a ModelInferResponse, all as raw bytes when one of them has to be.

    The protocol has all outputs as bytes or none, and FP16 and BF16 have no list.
    """
    described = [(each, results[each.name], datatype_of_array(results[each.name])) for each in outputs]
    raw = any(each.binary or datatype not in _LISTS for each, _, datatype in described)
    for each, array, datatype in described:
        output = message.outputs.add(name=each.name, datatype=datatype, shape=array.shape)
        if raw:
            message.raw_output_contents.append(to_raw(array))
            continue
        values = array.ravel().tolist()
        if datatype == "BYTES":
            values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
        getattr(output.contents, _LISTS[datatype][0]).extend(values)


def parameters_of(message: Any) -> dict[str, Any]:
    """Return the parameters of a message by name; those without a value are left out."""
    kinds = {name: each.WhichOneof("parameter_choice") for name, each in message.parameters.items()}
    return {name: getattr(message.parameters[name], kind) for name, kind in kinds.items() if kind is not None}


def _from_lists(tensor: Any, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor in `contents`.

    Raises:
        InvalidArgument: If the numbers are in another datatype's list, or not as many as `shape` needs.
    """
    datatype = datatype_of(spec)
    if datatype not in _LISTS:
        raise InvalidArgument(
            f"input {spec.name!r} is {datatype}, which has no list in contents", "send it in raw_input_contents"
        )
    if not tensor.HasField("contents"):
        raise InvalidArgument(f"input {spec.name!r} has no data", "give contents, or raw_input_contents for all inputs")
    field, dtype = _LISTS[datatype]
    if others := [descriptor.name for descriptor, _ in tensor.contents.ListFields() if descriptor.name != field]:
        raise InvalidArgument(f"input {spec.name!r} has data in {others[0]}, and {datatype} belongs in {field}")
    values = getattr(tensor.contents, field)
    if datatype == "BYTES":
        return from_strings(values, shape, spec)
    return from_numbers(np.fromiter(values, dtype, len(values)), shape, spec)
