"""`bench --compare`: a row is slower when the whole confidence interval of its time over the old time is above the limit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from relu_deploy.benchmark.compare import compare_with, load_report
from relu_deploy.errors import InputError

ENVIRONMENT = {"cpu": {"model": "a CPU", "usable_cpus": 2}, "threads": 2, "gpus": []}


def report(mean, half=0.0, *, interval=True, batch=1, error=""):
    latency = None if error else {"mean": mean, "ci95": [mean - half, mean + half] if interval else None}
    run = {"model": "m", "backend": "b", "variant": "", "batch": batch, "latency_ms": latency, "error": error}
    return {"schema": "relu-deploy/bench/1", "environment": ENVIRONMENT, "runs": [run]}


@pytest.fixture
def compared(tmp_path):
    def compare(old, new, max_slower=0.05):
        file = tmp_path / "old.json"
        file.write_text(json.dumps(old))
        return compare_with(file, new, max_slower)

    return compare


@pytest.mark.parametrize(
    ("old", "new", "limit", "slower"),
    [
        # 2% noise on both: the ratio 1.2 has an interval of exp(±0.0283), [1.166, 1.234]
        ((10, 0.2), (12, 0.24), 0.05, True),
        ((10, 0.2), (12, 0.24), 0.16, True),
        ((10, 0.2), (12, 0.24), 0.17, False),
        # noise that the change hides in
        ((10, 2.0), (12, 2.4), 0.05, False),
        ((10, 0.0), (10.4, 0.0), 0.05, False),
        ((10, 0.0), (10.6, 0.0), 0.05, True),
        ((10, 0.0), (8, 0.0), 0.0, False),
    ],
)
def test_a_row_is_slower_when_its_whole_interval_is_above_the_limit(compared, old, new, limit, slower):
    made = compared(report(*old), report(*new), limit)
    assert [row.slower for row in made.rows] == [slower]
    assert made.passed is not slower


def test_the_interval_adds_both_relative_errors_in_squares(compared):
    (row,) = compared(report(10, 0.3), report(20, 0.8)).rows
    # half-widths of 3% and 4% make 5%: 2 * exp(±0.05)
    assert row.ratio == 2
    assert row.ci95 == pytest.approx((1.9025, 2.1025), abs=1e-4)


def test_without_an_interval_nothing_is_decided_and_a_row_that_fails_now_is_slower(compared):
    (row,) = compared(report(10, interval=False), report(20, 0.1)).rows
    assert (row.slower, row.ci95) == (False, None)
    assert "--seconds" in row.reason
    (row,) = compared(report(10, 0.1), report(0, error="out of memory")).rows
    assert row.slower
    assert "out of memory" in row.reason
    (row,) = compared(report(0, error="not built"), report(10, 0.1)).rows
    assert not row.slower


def test_rows_that_are_gone_and_another_machine_are_reported(compared):
    old = report(10, 0.1)
    old["runs"] += report(20, 0.1, batch=8)["runs"]
    new = copy.deepcopy(report(10, 0.1))
    new["environment"]["cpu"]["model"] = "another CPU"
    made = compared(old, new)
    assert made.missing == ("m b 8",)
    assert made.other_machine == "CPU: a CPU → another CPU"
    assert compared(old, report(10, 0.1)).other_machine == ""


def test_a_report_without_any_of_the_rows_is_refused(compared):
    with pytest.raises(InputError, match="none of the rows"):
        compared(report(10, batch=2), report(10, batch=4))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"schema": "relu-deploy/verify/1"}',
        '{"schema": "relu-deploy/bench/1", "runs": [{}]}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_another_file_is_refused_before_anything_is_measured(command, digits_bundle, content):
    Path("old.json").write_text(content)
    made = command("bench", digits_bundle.path, "--compare", "old.json")
    assert made.code == 2
    assert "old.json is not a report of bench" in made.stderr
    assert "\nhint: " in made.stderr


@pytest.mark.parametrize(
    ("text", "accepted"),
    [("5%", True), ("0.05", True), ("150%", True), ("5", False), ("-1%", False), ("x", False), ("nan", False)],
)
def test_the_limit_is_a_percentage(command, digits_bundle, text, accepted):
    made = command("bench", digits_bundle.path, f"--max-slower={text}", "--compare", "missing.json")
    assert made.code == 2
    assert ("--max-slower" in made.stderr) is not accepted
    assert ("missing.json" in made.stderr) is accepted


def test_bench_fails_for_a_row_that_was_much_faster_before(command, digits_copy, forked_workers):
    arguments = ("bench", digits_copy.path, "--backend", "onnxruntime-cpu", "--seconds", "0.1", "--quiet")
    assert command(*arguments, "--json", "old.json").code == 0
    old = json.loads(Path("old.json").read_text())
    same = command(*arguments, "--compare", "old.json", "--max-slower", "100000%", "--json", "-")
    assert same.code == 0
    assert same.json["comparison"]["passed"] is True
    for run in old["runs"]:
        mean = run["latency_ms"]["mean"] / 1000
        run["latency_ms"] |= {"mean": mean, "ci95": [mean, mean]}
    Path("old.json").write_text(json.dumps(old))
    made = command(*arguments, "--compare", "old.json")
    assert made.code == 1
    assert "slower: digits onnxruntime-cpu, batch 1" in made.stdout


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ["m"]),
        ("batch", [1]),
        ("batch", "8"),
        ("latency_ms", 3),
        ("latency_ms", {"mean": "1.5", "ci95": None}),
        ("latency_ms", {"mean": 0, "ci95": None}),
        ("latency_ms", {"mean": 10**400, "ci95": None}),
        ("latency_ms", {"mean": 1.0}),
        ("latency_ms", {"mean": 1.0, "ci95": [1.0]}),
        ("latency_ms", {"mean": 1.0, "ci95": ["a", "b"]}),
    ],
    ids=str,
)
def test_a_row_of_the_earlier_report_with_another_type_is_refused_before_anything_is_measured(tmp_path, field, value):
    old = report(1.0)
    old["runs"][0][field] = value
    file = tmp_path / "old.json"
    file.write_text(json.dumps(old))
    with pytest.raises(InputError, match=rf"old\.json is not a report of bench: runs/0/{field}"):
        load_report(file)


@pytest.mark.parametrize("environment", [[], {"cpu": "x"}, {"gpus": [3]}], ids=str)
def test_an_environment_with_another_type_is_refused(tmp_path, environment):
    file = tmp_path / "old.json"
    file.write_text(json.dumps({**report(1.0), "environment": environment}))
    with pytest.raises(InputError, match="is not a report of bench: environment"):
        load_report(file)
