"""JSON that somebody else may have written is read strictly, in bounded time."""

import json
import time

import pytest

from relu_deploy.errors import InputError
from relu_deploy.storage.json_files import first_fault, parse_json, read_report
from relu_deploy.storage.manifest import read_manifest, schema


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not a number in JSON"),
        (b'{"a": 1e999}', "1e999 is out of range"),
        (b'{"a": -1e999}', "-1e999 is out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"[" * 10**5 + b"]" * 10**5, "nested too deeply"),
        (b"[" + b"0," * (2 * 10**6) + b"0]", "has more than 1000000 values"),
        (b"{}x", "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_json_that_others_would_read_in_the_same_way_is_refused(content, said):
    with pytest.raises(ValueError, match=said):
        parse_json(content)


def test_valid_json_is_read_also_behind_a_byte_order_mark():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null, true, "\\u00e9"]}') == {"a": [1, 2.5, None, True, "é"]}


def test_a_document_with_a_fault_in_each_of_many_values_is_refused_soon():
    manifest = {"labels": [0] * 900_000}
    began = time.process_time()
    assert first_fault(manifest, schema())
    assert time.process_time() - began < 30


def test_a_manifest_with_a_key_twice_is_refused(tmp_path):
    file = tmp_path / "manifest.json"
    file.write_text('{"schema": "relu-deploy/bundle/1", "files": {}, "files": {}}')
    with pytest.raises(InputError, match="has the key 'files' twice"):
        read_manifest(file)


RUN = {"model": "m", "variant": "", "backend": "onnxruntime-cpu", "batch": 8, "error": "", "verified": True}


@pytest.mark.parametrize(
    ("verb", "report"),
    [
        ("bench", []),
        ("bench", {"runs": [{}]}),
        ("bench", {"runs": {"a": 1}}),
        ("bench", {"runs": [{**RUN, "batch": 10**30}]}),
        ("bench", {"runs": [{**RUN, "batch": -1}]}),
        ("bench", {"runs": [{**RUN, "latency_ms": {"p50": "1"}}]}),
        ("bench", {"runs": [{**RUN, "throughput": [1]}]}),
        ("bench", {"runs": [RUN], "environment": {"gpus": ["x"]}}),
        ("verify", {"against": "torch"}),
        ("verify", {"against": "torch", "backends": [{"name": "x", "passed": "yes"}]}),
        ("verify", {"against": 1, "backends": []}),
    ],
)
def test_a_stored_report_with_other_fields_than_its_verb_writes_is_refused(tmp_path, verb, report):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    with pytest.raises(InputError, match=f"report.json is not a report of {verb}: "):
        read_report(file, verb)


def test_a_stored_report_is_read(tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"runs": [RUN], "more": 1}))
    assert read_report(file, "bench")["runs"] == [RUN]
