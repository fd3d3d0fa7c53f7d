"""Predictions for very many inputs take time and memory in proportion to them, and what cannot be shown is refused."""

import numpy as np
import pytest

from relu_deploy.prediction import run, sources
from relu_deploy.reporting.tables import predict as table


@pytest.fixture
def rows(tmp_path):
    """A file of six rows for the digit classifier."""
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((6, 1, 28, 28), np.float32))
    return tmp_path / "x.npz"


def test_more_rows_than_are_shown_need_a_file(command, digits_bundle, rows, monkeypatch):
    monkeypatch.setattr(run, "MOST_ROWS", 5)
    refused = command("predict", digits_bundle.path, rows, "--quiet")
    assert (refused.code, "6 inputs have too many rows to show" in refused.stderr, "-o OUT.jsonl" in refused.stderr) == (
        2,
        True,
        True,
    )
    assert command("predict", digits_bundle.path, rows, "-o", "rows.jsonl", "--quiet").code == 0


def test_the_table_shows_some_rows_and_how_many_more_there_are(command, digits_bundle, rows, monkeypatch):
    monkeypatch.setattr(table, "MOST_ROWS", 4)
    shown = command("predict", digits_bundle.path, rows, "--quiet").stdout
    assert [f"x.npz[{row}]" in shown for row in range(6)] == [True] * 4 + [False] * 2
    assert "and 2 more: --json and -o write all" in shown
    assert len(command("predict", digits_bundle.path, rows, "--json", "-", "--quiet").json["rows"]) == 6


def test_more_inputs_than_one_run_holds_are_refused_before_they_are_listed(command, digits_bundle, rows, monkeypatch):
    monkeypatch.setattr(sources, "MAX_INPUTS", 5)
    refused = command("predict", digits_bundle.path, rows, "-o", "rows.jsonl", "--quiet")
    assert (refused.code, "has 6 inputs, at most 5" in refused.stderr) == (2, True)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_lines_of_a_text_file_are_counted_before_they_are_split(tmp_path, monkeypatch, end):
    monkeypatch.setattr(sources, "MAX_INPUTS", 5)
    (tmp_path / "t.txt").write_bytes(b"a" + end + b"b" + end)
    assert len(sources._of_texts(tmp_path / "t.txt")) == 2
    (tmp_path / "t.txt").write_bytes((b"a" + end) * 6)
    with pytest.raises(Exception, match="at most 5"):
        sources._of_texts(tmp_path / "t.txt")
