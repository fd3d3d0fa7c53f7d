"""Requests and responses of the protocol as gRPC messages: typed lists or raw bytes, to and from arrays.

The checks and their words are those of `codec`, so a mistake reads the same over HTTP and gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relu_deploy.serving.errors import InvalidArgument
from relu_deploy.serving.protocol.json_codec import (
    InferRequest,
    RequestedOutput,
    check_complete,
    check_wish,
    datatype_of,
    datatype_of_array,
    from_numbers,
    from_raw,
    from_strings,
    spec_of,
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
    """Return the request in a ModelInferRequest, every input checked against `specs`.

    allow_nan: take NaN and infinities. Its outputs are wanted as bytes when its inputs came as bytes. Raises Invalid that names what is wrong.
    """
    raws = list(message.raw_input_contents)
    if raws and len(raws) != len(message.inputs):
        raise InvalidArgument(
            f"there are {len(message.inputs)} inputs and {len(raws)} raw_input_contents", "give one for each input, or none"
        )
    expected = {spec.name: spec for spec in specs}
    inputs: dict[str, Array] = {}
    for index, one in enumerate(message.inputs):
        shape = list(one.shape)
        spec = spec_of({"name": one.name, "datatype": one.datatype, "shape": shape}, expected, inputs)
        if not raws:
            inputs[spec.name] = _from_lists(one, shape, spec)
        elif one.HasField("contents"):
            raise InvalidArgument(f"input {spec.name!r} has both contents and raw_input_contents", "give one of them")
        else:
            inputs[spec.name] = from_raw(raws[index], shape, spec)
    check_complete(inputs, specs, allow_nan)
    for one in message.outputs:
        check_wish(one.name, parameters_of(one))
    outputs = tuple(RequestedOutput(one.name, bool(raws)) for one in message.outputs) or None
    return InferRequest(inputs, message.id, outputs, bool(raws), parameters_of(message))


def fill(message: Any, results: Mapping[str, Array], wanted: Sequence[RequestedOutput]) -> None:
    """Put the outputs `wanted` into a ModelInferResponse, as bytes when one of them has to be.

    The protocol wants all outputs as bytes or none, and FP16 and BF16 have no list.
    """
    told = [(each, results[each.name], datatype_of_array(results[each.name])) for each in wanted]
    raw = any(each.binary or datatype not in _LISTS for each, _, datatype in told)
    for each, array, datatype in told:
        output = message.outputs.add(name=each.name, datatype=datatype, shape=array.shape)
        if raw:
            message.raw_output_contents.append(to_raw(array))
            continue
        values = array.ravel().tolist()
        if datatype == "BYTES":
            values = [one if isinstance(one, bytes) else str(one).encode() for one in values]
        getattr(output.contents, _LISTS[datatype][0]).extend(values)


def parameters_of(message: Any) -> dict[str, Any]:
    """Return the parameters of a message by name; those whose value is of no kind are left out."""
    kinds = {name: one.WhichOneof("parameter_choice") for name, one in message.parameters.items()}
    return {name: getattr(message.parameters[name], kind) for name, kind in kinds.items() if kind is not None}


def _from_lists(one: Any, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the tensor in `contents`. Raises Invalid for a list that is not its datatype's, or not of its size."""
    datatype = datatype_of(spec)
    if datatype not in _LISTS:
        raise InvalidArgument(
            f"input {spec.name!r} is {datatype}, which has no list in contents", "send it in raw_input_contents"
        )
    if not one.HasField("contents"):
        raise InvalidArgument(f"input {spec.name!r} has no data", "give contents, or raw_input_contents for all inputs")
    field, dtype = _LISTS[datatype]
    if strange := [told.name for told, _ in one.contents.ListFields() if told.name != field]:
        raise InvalidArgument(f"input {spec.name!r} has data in {strange[0]}, and {datatype} stands in {field}")
    values = getattr(one.contents, field)
    if datatype == "BYTES":
        return from_strings(values, shape, spec)
    return from_numbers(np.fromiter(values, dtype, len(values)), shape, spec)
