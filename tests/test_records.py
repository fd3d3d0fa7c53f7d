"""A record's JSON is its fields, all the way down."""

import json
from dataclasses import dataclass
from pathlib import Path

from relu_deploy.records import JsonRecord


@dataclass(frozen=True)
class Inner(JsonRecord):
    value: float


@dataclass(frozen=True)
class Outer(JsonRecord):
    name: str
    inner: Inner | None
    many: tuple[Inner, ...]
    by_name: dict[str, Inner]
    file: Path


def test_nested_records_and_paths_become_plain_json_in_the_order_of_the_fields():
    record = Outer("a", Inner(1.5), (Inner(2.0),), {"x": Inner(3.0)}, Path("f") / "g")
    expected = {"name": "a", "inner": {"value": 1.5}, "many": [{"value": 2.0}], "by_name": {"x": {"value": 3.0}}, "file": "f/g"}
    assert record.to_json() == expected
    assert list(record.to_json()) == ["name", "inner", "many", "by_name", "file"]
    assert json.loads(json.dumps(record.to_json())) == expected
