"""The chart and the table of the candidates of `optimize --precision auto`, from the dictionaries that --json writes."""

import re

import pytest

from relu_deploy.reporting.pages.candidates import candidates_section
from relu_deploy.reporting.tables.candidates import print_candidates


def candidate(outcome, mean, ci95, **fields):
    given = {"backend": "onnxruntime-cpu", "precision": "int8", "settings": {}, "outcome": outcome, "reason": "", "level": 1}
    latency = None if mean is None else {"mean": mean, "ci95": ci95}
    given |= {"latency_ms": latency, "throughput": mean and 4e3 / mean, "speedup": mean and 8 / mean, "speedup_ci95": None}
    return given | {"accuracy": None, "relative_error": None, "verified": None, "kernels": None} | fields


FIELD = {
    "minimize": "latency",
    "batch": 4,
    "threads": 2,
    "candidates": [
        candidate("chosen", 2.0, [1.9, 2.1], kernels={"computing": {"float32": 1, "int8": 9}, "converting": 1}),
        candidate("failed", 1.0, [0.9, 50.0], backend="openvino<", reason="a<b: swallows NaN", settings={"spin": False}),
        candidate("eliminated", 8.0, None, precision="bf16", settings={"autocast": "bfloat16", "threads": 1}),
        candidate("unusable", None, None, backend="other", reason="no kernels"),
    ],
    "unusable": {"third<": "is not installed"},
}


def bars_of(page):
    return re.findall(r'<title>([^<]*)</title><text class="name"[^>]*>[^<]*</text><rect [^>]*width="([\d.]+)"', page)


def test_every_timed_candidate_has_a_bar_whose_length_is_its_time_the_fastest_first():
    bars = bars_of(candidates_section(FIELD))
    assert [note.split(":")[0] for note, _ in bars] == [
        "openvino&lt; int8, spin off",
        "onnxruntime-cpu int8",
        "onnxruntime-cpu bf16, threads 1",
    ]
    lengths = [float(length) for _, length in bars]
    assert lengths == pytest.approx([lengths[0], 2 * lengths[0], 8 * lengths[0]], rel=0.01)


def test_the_bars_of_throughput_are_rows_per_second():
    bars = bars_of(candidates_section({**FIELD, "minimize": "throughput"}))
    assert ["4000 rows/s" in bars[0][0], "2000 rows/s" in bars[1][0], "500 rows/s" in bars[2][0]] == [True] * 3
    assert float(bars[0][1]) == pytest.approx(2 * float(bars[1][1]), rel=0.01)


def test_the_table_has_every_candidate_with_its_kernels_and_its_reason_escaped():
    page = candidates_section(FIELD)
    assert page.count("<tr>") == 1 + len(FIELD["candidates"])
    assert "9 of 10 in int8, 1 conversion" in page
    assert "a&lt;b: swallows NaN" in page
    assert "third&lt;: is not installed" in page
    assert "a<b" not in page


def test_the_terminal_lists_all_candidates_and_says_why_some_did_not_pass(capsys):
    print_candidates(FIELD)
    lines = capsys.readouterr().out.splitlines()
    assert "the time of a run with 4 rows, on 2 threads" in lines[0]
    assert any("openvino< int8, spin off" in line and "swallows NaN" in line for line in lines)
    assert any("other int8" in line and "no kernels" in line for line in lines)
    assert any("third<: is not installed" in line for line in lines)
