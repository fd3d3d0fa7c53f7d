"""The result file of `predict`, and the files beside it: what another program wrote stays as it is."""

import errno
import os
from pathlib import Path

import bundles
import numpy as np
import pytest
from PIL import Image

from relu_deploy.paths import models_folder

FORMATS = ("jsonl", "csv", "parquet")


@pytest.fixture
def predict(command, digits_bundle, tmp_path):
    """Run `predict` with one picture and more words."""
    digits = np.load(models_folder() / "digits" / "test.npz")["x"]
    Image.fromarray(digits[0, :, :, 0]).save(tmp_path / "0.png")
    return lambda *words: command("predict", digits_bundle.path, "0.png", "--quiet", *words)


def needs_pyarrow(form):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[parquet]'")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "content", [b"words without a line end", b"{", b"[" * 200_000 + b"\n", b'{"input": ["a"], "model": "m"}\n']
)
def test_a_file_that_is_not_one_of_predictions_is_refused_and_stays_as_it_is(predict, form, content):
    needs_pyarrow(form)
    if form == "jsonl" and content == b"{":
        content = b'{"other": 1}'
    file = Path(f"out.{form}")
    file.write_bytes(content)
    answer = predict("-o", file)
    assert answer.code == 2, answer.stderr
    assert len(answer.stderr.splitlines()) == 2
    assert file.read_bytes() == content
    assert sorted(each.name for each in Path().iterdir()) == ["0.png", file.name]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_first_row_that_was_interrupted_is_written_again(predict, form):
    assert predict("-o", f"whole.{form}").code == 0
    whole = Path(f"whole.{form}").read_bytes()
    for length in (1, 5, len(whole.splitlines()[0]) - 1):
        Path(f"torn.{form}").write_bytes(whole[:length])
        assert predict("-o", f"torn.{form}").code == 0
        assert Path(f"torn.{form}").read_bytes() == whole


def test_files_with_names_like_those_of_unfinished_results_are_kept_and_a_link_stays_a_link(predict):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install -e '.[parquet]'")
    for name in ("out.parquet.tmp", "out.parquet.rows.tmp"):
        Path(name).write_text("mine")
    Path("folder").mkdir()
    Path("out.parquet").symlink_to("folder/real.parquet")
    Path("folder/real.parquet").write_bytes(b"")
    assert predict("-o", "out.parquet", "--force").code == 0
    assert Path("out.parquet").is_symlink()
    assert parquet.read_table("folder/real.parquet").num_rows == 1
    assert [Path(name).read_text() for name in ("out.parquet.tmp", "out.parquet.rows.tmp")] == ["mine", "mine"]
    assert [each.name for each in Path("folder").iterdir()] == ["real.parquet"]


def test_rows_beside_a_parquet_file_that_are_no_predictions_are_refused(predict, digits_bundle):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[parquet]'")
    Path("out.parquet.rows").write_text("mine")
    assert predict("-o", "out.parquet").code == 2
    assert Path("out.parquet.rows").read_text() == "mine"
    assert not Path("out.parquet").exists()


def test_a_byte_order_mark_is_no_part_of_the_first_text(command):
    model = bundles.exported("language_id")
    Path("plain.txt").write_text("wo liegt der Schlüssel\n", encoding="utf-8")
    Path("marked.txt").write_text("wo liegt der Schlüssel\n", encoding="utf-8-sig")
    rows = command("predict", model.path, "plain.txt", "marked.txt", "--quiet", "--json", "-").json["rows"]
    assert rows[0]["predictions"] == rows[1]["predictions"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_disk_without_space_for_the_first_row_leaves_no_file(predict, monkeypatch, form):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("relu_deploy.prediction.rows.RowFile._line", full)
    monkeypatch.setattr("relu_deploy.prediction.rows._CsvFile._line", full)
    answer = predict("-o", f"out.{form}")
    assert (answer.code, len(answer.stderr.splitlines())) == (2, 2)
    assert [each.name for each in Path().iterdir()] == ["0.png"]
