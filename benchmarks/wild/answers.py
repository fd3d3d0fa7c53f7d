"""One inference over HTTP, and how its answer differs from ONNX Runtime's.

JSON holds neither FP16 nor BF16, and no NaN or infinity: such tensors travel as raw bytes behind the JSON, as the binary tensor
data extension of the Open Inference Protocol v2 describes.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model
from relu_deploy.graph.shapes.input_ranges import integer_ranges
from relu_deploy.serving.protocol.tensors import DATATYPES, datatype_of, is_float, numpy_dtype, to_raw
from relu_deploy.tensors import Array, TensorSpec, random_feeds

#: difference of a served number from ONNX Runtime's, as a share of the output's largest: the thread count may differ
TOLERANCE = 1e-3
#: datatypes that JSON cannot hold
BINARY_ONLY = ("FP16", "BF16")
HEADER = "Inference-Header-Content-Length"


def wrong_answer(address: str, bundle: Bundle) -> str:
    """Return how the answer to one inference differs from ONNX Runtime's, "" when it does not.

    Args:
        address: Of a server that has one model, up to and with "/v2".
        bundle: What is run by ONNX Runtime.
    """
    feeds = random_feeds(bundle.inputs, 1, 0, ranges=integer_ranges(load_model(bundle.onnx)))
    session = bundle.session("onnxruntime-cpu")
    expected = session.run(feeds)
    session.close()
    with urllib.request.urlopen(f"{address}/repository/index", data=b"{}", timeout=30) as answer:
        name = json.load(answer)[0]["name"]
    binary = [output for output, array in expected.items() if not _is_json(array)]
    body, json_length = encode(bundle.inputs, feeds, expected, binary)
    request = urllib.request.Request(f"{address}/models/{name}/infer", body, {HEADER: str(json_length)})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            given = decode(answer.read(), answer.headers.get(HEADER))
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}: {error.read().decode(errors='replace')[:200]}"
    return next((wrong for output, array in expected.items() if (wrong := difference(output, array, given.get(output)))), "")


def encode(
    specs: Sequence[TensorSpec], feeds: Mapping[str, Array], outputs: Collection[str], binary: Collection[str]
) -> tuple[bytes, int]:
    """Return the body of an inference request, and how many of its bytes are JSON.

    Args:
        specs: The model's inputs.
        feeds: Their tensors by name.
        outputs: Names of the outputs to request.
        binary: Those of them to request as raw bytes.
    """
    inputs, raws = [], []
    for spec in specs:
        array = feeds[spec.name]
        entry: dict[str, Any] = {"name": spec.name, "shape": array.shape, "datatype": datatype_of(spec)}
        if _is_json(array):
            entry["data"] = array.ravel().tolist()
        else:
            raws.append(to_raw(array))
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        inputs.append(entry)
    requested = [{"name": name, "parameters": {"binary_data": name in binary}} for name in outputs]
    text = json.dumps({"inputs": inputs, "outputs": requested}).encode()
    return b"".join([text, *raws]), len(text)


def decode(body: bytes, json_length: str | None) -> dict[str, Array]:
    """Return the outputs of a response by name. json_length: the value of the header, None where all of it is JSON."""
    length = len(body) if json_length is None else int(json_length)
    dtypes = {datatype: name for name, datatype in DATATYPES.items()}
    outputs, at = {}, length
    for entry in json.loads(body[:length])["outputs"]:
        dtype = numpy_dtype(dtypes[entry["datatype"]])
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(entry["data"], dtype)
        else:
            array = np.frombuffer(body[at : at + size], dtype)
            at += size
        outputs[entry["name"]] = array.reshape(entry["shape"])
    return outputs


def difference(name: str, expected: Array, given: Array | None) -> str:
    """Return how the output `name` differs, "" when it does not. given: None where it is missing."""
    if given is None:
        return f"no output {name!r}"
    if given.shape != expected.shape:
        return f"output {name!r} has shape {list(given.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind not in "fiub" and not is_float(expected):
        return (
            "" if [str(value) for value in given.ravel()] == [str(value) for value in expected.ravel()] else f"{name!r} differs"
        )
    ours, theirs = given.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return f"output {name!r} differs in NaN or infinities"
    off = float(np.abs(ours - theirs)[finite].max(initial=0))
    largest = float(np.abs(theirs[finite]).max(initial=0))
    return f"output {name!r} differs by {off:.3g}" if not off <= TOLERANCE * max(largest, 1e-6) else ""


def _is_json(array: Array) -> bool:
    """Return whether JSON can hold `array`."""
    if not is_float(array):
        return True
    return DATATYPES[array.dtype.name] not in BINARY_ONLY and bool(np.isfinite(array).all())
