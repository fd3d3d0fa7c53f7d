"""Reading JSON that somebody else may have written: strictly, and stored reports against a schema of what is read of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from relu_deploy.errors import InputError
from relu_deploy.storage.files import read_regular

__all__ = ["first_fault", "parse_json", "read_report"]

#: most values of one document: checking a million of them against a schema takes seconds
MOST_VALUES = 1_000_000
#: bytes of the largest report
MAX_REPORT = 256 * 2**20
TEXT, POSITIVE = {"type": "string"}, {"type": "number", "minimum": 0, "maximum": 1e12}
#: what other verbs read of stored reports: a bundle's author may have written anything into them
REPORTS: dict[str, dict[str, Any]] = {
    "bench": {
        "type": "object",
        "required": ["runs"],
        "properties": {
            "runs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["model", "variant", "backend", "batch", "error", "verified"],
                    "properties": {
                        "model": TEXT,
                        "variant": TEXT,
                        "backend": TEXT,
                        "batch": {"type": "integer", "minimum": 1, "maximum": 2**20},
                        "throughput": {"anyOf": [POSITIVE, {"type": "null"}]},
                        "latency_ms": {
                            "type": ["object", "null"],
                            "required": ["p50"],
                            "properties": {"p50": POSITIVE},
                        },
                        "verified": {"type": ["boolean", "null"]},
                    },
                },
            },
            "environment": {
                "type": "object",
                "properties": {
                    "cpu": {"type": "object", "properties": {"model": {"type": ["string", "null"]}}},
                    "gpus": {"type": "array", "items": {"type": "object", "properties": {"name": TEXT}}},
                    "time": TEXT,
                },
            },
        },
    },
    "verify": {
        "type": "object",
        "required": ["against", "backends"],
        "properties": {
            "model": TEXT,
            "against": TEXT,
            "precision": TEXT,
            "passed": {"type": "boolean"},
            "backends": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "passed"],
                    "properties": {"name": TEXT, "passed": {"type": "boolean"}},
                },
            },
        },
    },
}
#: faults of which the most telling one is chosen
MOST_FAULTS = 50


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON document.

    Raises:
        ValueError: If it is not JSON as RFC 8259 defines it (numbers must be finite), is not UTF-8, holds a key twice in one
            object or half of a surrogate pair, is nested too deeply, or has more than `MOST_VALUES` values.
    """
    # Every value but the first of its list or object comes behind a comma.
    if content.count(b",") + content.count(b"[") + content.count(b"{") > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    try:
        value = json.loads(
            content.decode("utf-8-sig"), parse_constant=_refused, parse_float=_finite, object_pairs_hook=_object_of
        )
        # Half of a surrogate pair is JSON but no text: it could not be printed or stored again.
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _refused(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is out of range")
    return number


def _object_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {twice[:100]!r} twice")
    return made


def first_fault(value: Any, schema: dict[str, Any]) -> str:
    """Return where a value breaks a schema and how, "" if it does not. A document with a million faults has one as well."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    fault = best_match(islice(Draft202012Validator(schema).iter_errors(value), MOST_FAULTS))
    if fault is None:
        return ""
    place = "/".join(map(str, fault.absolute_path)) or "the top level"
    return f"{place[:200]}: {fault.message[:300]}"


def read_report(file: Path, verb: str) -> dict[str, Any]:
    """Return a report that `bench` or `verify` has stored in a bundle, with the fields of `REPORTS` checked.

    Raises:
        InputError: If the file cannot be read or is no such report.
    """
    content = read_regular(file, MAX_REPORT)
    try:
        value = parse_json(content)
        fault = first_fault(value, REPORTS[verb])
    except ValueError as error:
        fault = str(error)
    if fault:
        raise InputError(f"{file} is not a report of {verb}: {fault}", f"run relu-deploy {verb} again")
    return dict(value)
