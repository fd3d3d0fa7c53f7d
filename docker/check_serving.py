"""Wait until the server on this machine is ready, and have it answer for each of its models; needs Python alone.

    python check_serving.py PORT [SECONDS]

Each model gets one row of zeros. Its answer has to have the outputs, types and sizes that the server says it has, and no NaN.
"""

from __future__ import annotations

import http.client
import json
import math
import sys
import time
from typing import Any

from ready import why_not


def ask(port: int, method: str, path: str, body: Any = None) -> Any:
    """Return the JSON that the server answers. Raises AssertionError for any status but 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, f"{method} {path}: {answer.status} {text.decode(errors='replace')}"
    return json.loads(text)


def sizes_of(tensor: dict[str, Any]) -> list[int]:
    return [max(size, 1) for size in tensor["shape"]]


def check(port: int, model: str) -> str:
    """Return one line about what `model` answered. Raises AssertionError that says what is wrong with it."""
    metadata = ask(port, "GET", f"/v2/models/{model}")
    inputs = [
        {"name": one["name"], "datatype": one["datatype"], "shape": sizes_of(one), "data": [0] * math.prod(sizes_of(one))}
        for one in metadata["inputs"]
    ]
    answer = ask(port, "POST", f"/v2/models/{model}/infer", {"inputs": inputs})
    promised = {one["name"]: one for one in metadata["outputs"]}
    assert {one["name"] for one in answer["outputs"]} == set(promised), f"{model} answers other outputs than it says"
    for one in answer["outputs"]:
        expected = promised[one["name"]]
        fits = len(one["shape"]) == len(expected["shape"]) and all(
            size in (got, -1) for size, got in zip(expected["shape"], one["shape"], strict=True)
        )
        assert fits, f"{model}: {one['name']} has sizes {one['shape']}, said to be {expected['shape']}"
        assert one["datatype"] == expected["datatype"], f"{model}: {one['name']} is {one['datatype']}"
        assert len(one["data"]) == math.prod(one["shape"]), f"{model}: {one['name']} has {len(one['data'])} numbers"
        assert all(math.isfinite(number) for number in one["data"]), f"{model}: {one['name']} holds NaN or infinity"
    return f"{model}: " + ", ".join(f"{one['name']} {one['datatype']}{one['shape']}" for one in answer["outputs"])


if __name__ == "__main__":
    number = int(sys.argv[1])
    until = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 60)
    while reason := why_not(number):
        if time.monotonic() > until:
            sys.exit(f"error: the server is not ready: {reason}")
        time.sleep(0.2)
    try:
        models = [one["name"] for one in ask(number, "POST", "/v2/repository/index")]
        assert models, "the server has no model"
        for each in models:
            print(check(number, each))
    except AssertionError as error:
        sys.exit(f"error: {error}")
