"""The results of a portion of `benchmarks/hardening.py` outlast whatever ends it."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import hardening
import pytest


def _options(out: Path) -> Namespace:
    return Namespace(out=out, seed=7, first=3, folder=None, limit=float("inf"))


def test_a_portion_that_crashes_keeps_its_results_beside_those_of_the_portions_before(tmp_path, monkeypatch):
    def crashes(_folder, _options):
        yield {"number": 0, "faults": []}
        yield {"number": 1, "faults": ["hang"]}
        raise RuntimeError("no more")

    monkeypatch.setitem(hardening.PARTS, "whole", lambda *_: iter([{"number": 9, "faults": []}]))
    monkeypatch.setitem(hardening.PARTS, "crashes", crashes)
    out = tmp_path / "results.json"
    assert hardening._run("whole", _options(out)) is False
    with pytest.raises(RuntimeError, match="no more"):
        hardening._run("crashes", _options(out))
    content = json.loads(out.read_text())
    assert [result["number"] for result in content["crashes"]["results"]] == [0, 1]
    assert [(each["results"], each["ended"]) for each in content["crashes"]["portions"]] == [(2, "ended by RuntimeError")]
    assert [(each["results"], each["ended"]) for each in content["whole"]["portions"]] == [(1, "complete")]
    assert list(tmp_path.iterdir()) == [out]


def test_results_are_written_while_a_portion_runs(tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    seen = []

    def slow(_folder, _options):
        for number in range(3):
            yield {"number": number, "faults": []}
            seen.append(json.loads(out.read_text())["slow"]["portions"])

    monkeypatch.setattr(hardening, "SAVE_SECONDS", 0.0)
    monkeypatch.setitem(hardening.PARTS, "slow", slow)
    hardening._run("slow", _options(out))
    assert [[each["results"] for each in portions] for portions in seen] == [[1], [2], [3]]
