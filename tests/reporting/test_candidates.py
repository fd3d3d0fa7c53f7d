"""The chart and the table of the candidates of `optimize --precision auto`, from the dictionaries that --json writes."""

import re

import pytest

from relu_deploy.reporting.pages.candidates import candidates_section
from relu_deploy.reporting.tables.candidates import print_candidates


def candidate(outcome, milliseconds, ci95, **fields):
    given = {"backend": "onnxruntime-cpu", "precision": "int8", "settings": {}, "outcome": outcome, "reason": "", "level": 1}
    latency = None if milliseconds is None else {"p50": milliseconds}
    given |= {"latency_ms": latency, "speedup": milliseconds and 8 / milliseconds, "speedup_ci95": ci95}
    return given | {"accuracy": None, "relative_error": None, "verified": None, "kernels": None} | fields


FIELD = {
    "minimize": "latency",
    "batch": 4,
    "threads": 2,
    "candidates": [
        candidate("chosen", 2.0, [3.9, 4.1], kernels={"computing": {"float32": 1, "int8": 9}, "converting": 1}),
        candidate("failed", 1.0, [7.9, 50.0], backend="openvino<", reason="a<b: swallows NaN", settings={"spin": False}),
        candidate("eliminated", 8.0, None, precision="bf16", settings={"autocast": "bfloat16", "threads": 1}),
        candidate("unusable", None, None, backend="other", reason="no kernels"),
    ],
    "unusable": {"third<": "is not installed"},
}


def bars_of(page):
    return re.findall(r'<title>([^<]*)</title><text class="name"[^>]*>[^<]*</text><rect [^>]*width="([\d.]+)"', page)


def test_every_timed_candidate_has_a_bar_whose_length_is_its_speed_the_fastest_first():
    bars = bars_of(candidates_section(FIELD))
    assert [note.split(":")[0] for note, _ in bars] == [
        "openvino&lt; int8, spin off",
        "onnxruntime-cpu int8",
        "onnxruntime-cpu bf16, threads 1",
    ]
    assert ["8x, 1 ms" in bars[0][0], "4x, 2 ms" in bars[1][0], "1x, 8 ms" in bars[2][0]] == [True] * 3
    lengths = [float(length) for _, length in bars]
    assert lengths == pytest.approx([lengths[0], lengths[0] / 2, lengths[0] / 8], rel=0.01)


def test_the_times_of_throughput_are_rows_per_second():
    page = candidates_section({**FIELD, "minimize": "throughput"})
    assert ["4000 rows/s" in page, "2000 rows/s" in page, "500 rows/s" in page, " ms" in page] == [True] * 3 + [False]


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
