"""`relu-deploy predict`: one row an input, whatever the others are like, and an interrupted run continues."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bundles
import numpy as np
import pytest
from PIL import Image

from relu_deploy.errors import InputError
from relu_deploy.paths import models_folder
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.prediction.run import predict

SHIPPED = np.load(models_folder() / "digits" / "test.npz")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty digits; 07 is not a picture, and 13 ends in the middle."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(20):
        Image.fromarray(SHIPPED["x"][index, :, :, 0]).save(folder / f"{index:02}.png")
    (folder / "07.png").write_bytes(b"no picture")
    whole = (folder / "13.png").read_bytes()
    (folder / "13.png").write_bytes(whole[: len(whole) // 2])
    return folder


def lines_of(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.fixture(scope="module")
def rows(digits_bundle, pictures, tmp_path_factory):
    """The rows of one uninterrupted run."""
    out = tmp_path_factory.mktemp("rows") / "all.jsonl"
    with Predictor(digits_bundle.path, batch=4) as predictor:
        predict(predictor, [pictures], out)
    return lines_of(out)


def test_every_input_is_a_row_in_order_and_a_bad_one_is_a_row_with_an_error(rows, pictures):
    assert [row["input"] for row in rows] == [f"{pictures.as_posix()}/{index:02}.png" for index in range(20)]
    assert [row["input"][-6:-4] for row in rows if "error" in row] == ["07", "13"]
    assert "not a JPEG, PNG, WebP or BMP picture" in rows[7]["error"]
    assert "damaged" in rows[13]["error"]
    good = [row for row in rows if "error" not in row]
    labels = [int(SHIPPED["labels"][int(row["input"][-6:-4])]) for row in good]
    assert [row["predictions"][0]["index"] for row in good] == labels
    assert all(sum(one["probability"] for one in row["predictions"]) <= 1 + 1e-12 for row in good)


def test_rows_are_what_a_plain_session_gives_on_the_same_pixels(digits_bundle, rows):
    x = ((SHIPPED["x"][:4].transpose(0, 3, 1, 2) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)).astype(np.float32)
    logits = digits_bundle.session("onnxruntime-cpu").run({"x": x})["y"].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, probabilities in zip(rows, expected, strict=False):
        best = row["predictions"][0]
        assert best["probability"] == pytest.approx(probabilities[best["index"]], rel=1e-5)


@pytest.mark.parametrize("keep", [0, 1, 6, 19])
@pytest.mark.parametrize("torn", [b"", b'{"input": "half'])
def test_an_interrupted_run_continues_and_gives_the_same_rows(command, digits_bundle, pictures, rows, keep, torn):
    whole = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    Path("out.jsonl").write_bytes(b"".join(whole[:keep]) + torn)
    made = command("predict", digits_bundle.path, pictures, "-o", "out.jsonl", "--batch", "4", "--json", "-")
    assert made.code == 0, made.stderr
    assert (made.json["skipped"], made.json["predicted"] + made.json["failed"]) == (keep, 20 - keep)
    assert lines_of("out.jsonl") == rows


def test_a_killed_run_leaves_whole_lines_and_the_same_command_completes_it(digits_bundle, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for index in range(400):
        Image.fromarray(SHIPPED["x"][index, :, :, 0]).save(many / f"{index:03}.png")
    out = tmp_path / "out.jsonl"
    words = [sys.executable, "-m", "relu_deploy", "predict", digits_bundle.path, many, "-o", out, "--quiet", "--batch", "2"]
    running = subprocess.Popen([*map(str, words), "--threads", "1"], stdout=subprocess.DEVNULL)
    while running.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = out.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    kept = [json.loads(line) for line in before.splitlines()]
    assert 20 <= len(kept) < 400, "the run was not killed in the middle"
    with Predictor(digits_bundle.path, batch=2, threads=1) as predictor:
        report = predict(predictor, [many], out)
        assert (report.skipped, report.predicted) == (len(kept), 400 - len(kept))
        assert out.read_bytes().startswith(before)
        whole = predict(predictor, [many], tmp_path / "whole.jsonl")
    assert whole.predicted == 400
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_shards_share_the_inputs_between_them(command, digits_bundle, pictures, rows):
    names = []
    for shard in ("1/3", "2/3", "3/3"):
        made = command("predict", digits_bundle.path, pictures, "--shard", shard, "--json", "-", "--quiet")
        names.append([row["input"] for row in made.json["rows"]])
    everything = [row["input"] for row in rows]
    assert names == [everything[start::3] for start in range(3)]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5"])
def test_a_shard_that_there_is_not_is_refused(command, digits_bundle, pictures, shard):
    made = command("predict", digits_bundle.path, pictures, f"--shard={shard}")
    assert made.code == 2
    assert "--shard" in made.stderr
    assert "\nhint: " in made.stderr


def test_csv_has_the_same_rows_and_continues_behind_a_torn_one(command, digits_bundle, pictures, rows):
    arguments = ("predict", digits_bundle.path, pictures, "-o", "out.csv", "--batch", "4", "--quiet")
    assert command(*arguments).code == 0
    whole = Path("out.csv").read_bytes()
    found = list(csv.DictReader(whole.decode().splitlines()))
    assert [row["input"] for row in found] == [row["input"] for row in rows]
    assert [json.loads(row["predictions"]) if row["predictions"] else None for row in found] == [
        row.get("predictions") for row in rows
    ]
    assert [row["error"] for row in found] == [row.get("error", "") for row in rows]
    Path("out.csv").write_bytes(whole[: len(whole) * 2 // 3])
    assert command(*arguments).code == 0
    assert Path("out.csv").read_bytes() == whole


def test_parquet_has_the_same_rows_and_continues(command, digits_bundle, pictures, rows):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install -e '.[parquet]'")
    arguments = ("predict", digits_bundle.path, "-o", "out.parquet", "--batch", "4", "--quiet")
    assert command(*arguments, pictures / "00.png", pictures / "07.png").code == 0
    assert command(*arguments, pictures).code == 0
    assert [file.name for file in Path().iterdir()] == ["out.parquet"]
    found = {row["input"]: row for row in parquet.read_table("out.parquet").to_pylist()}
    assert sorted(found) == [row["input"] for row in rows]
    for row in rows:
        one = found[row["input"]]
        assert one["error"] == row.get("error")
        if "predictions" in row:
            assert [each["label"] for each in one["predictions"]] == [each["label"] for each in row["predictions"]]
            assert one["predictions"][0]["probability"] == pytest.approx(row["predictions"][0]["probability"], rel=1e-6)


def test_rows_of_another_model_or_another_kind_of_file_are_not_continued(command, digits_bundle, pictures, rows):
    Path("other.jsonl").write_text(json.dumps({**rows[0], "model": "digits@000000000000"}) + "\n")
    Path("text.jsonl").write_text("something else\n")
    Path("table.csv").write_text("a,b\n1,2\n")
    for name, message in (
        ("other", "holds predictions of digits@0"),
        ("text", "not a file of pred"),
        ("table", "not a file of pred"),
    ):
        file = next(Path().glob(f"{name}.*"))
        before = file.read_bytes()
        made = command("predict", digits_bundle.path, pictures, "-o", file)
        assert made.code == 2
        assert message in made.stderr
        assert file.read_bytes() == before
        assert command("predict", digits_bundle.path, pictures, "-o", file, "--force", "--quiet").code == 0
    assert len(lines_of("other.jsonl")) == 20


def test_two_runs_never_write_the_same_file(digits_bundle, pictures, tmp_path):
    from relu_deploy.prediction.rows import open_rows

    with Predictor(digits_bundle.path) as predictor:
        first = open_rows(tmp_path / "out.jsonl", predictor.model_id, force=False)
        with pytest.raises(InputError, match="another process is writing"):
            predict(predictor, [pictures], tmp_path / "out.jsonl")
        first.close()
        assert predict(predictor, [pictures], tmp_path / "out.jsonl").inputs == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png"], "nothing.png does not exist"),
        (["nothing*.png"], "no file matches"),
        (["."], "there is no picture in"),
        (["x.npz"], "has no array 'x'"),
        (["words.txt"], "does not take texts"),
        (["a.png", "-o", "out.xml"], "no known suffix"),
        (["a.png", "-o", "folder.jsonl"], "it is a folder"),
        (["a.png", "--top", "0"], "--top must be at least 1"),
        (["a.png", "--threshold", "2"], "--threshold must be between"),
        (["a.png", "--draw", "."], "--draw would replace the input"),
        (["a.png", "--draw", "words.txt"], "is not a folder"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_anything_is_written(command, digits_bundle, tmp_path, arguments, message):
    np.savez("x.npz", other=np.zeros(3))
    Path("words.txt").write_text("words\n")
    Path("folder.jsonl").mkdir()
    if "." not in arguments[:1]:
        Image.fromarray(SHIPPED["x"][0, :, :, 0]).save("a.png")
    before = sorted(file.name for file in tmp_path.iterdir())
    made = command("predict", digits_bundle.path, *arguments)
    assert made.code == 2
    assert message in made.stderr
    assert "\nhint: " in made.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_patterns_folders_and_arrays_are_inputs_each_only_once(command, digits_bundle, pictures):
    np.savez("rows.npz", x=SHIPPED["x"][:2], unused=np.zeros(9))
    made = command(
        "predict", digits_bundle.path, f"{pictures}/0[0-2].png", pictures / "01.png", "rows.npz", "--quiet", "--json", "-"
    )
    names = [row["input"] for row in made.json["rows"]]
    assert names == [f"{pictures}/00.png", f"{pictures}/01.png", f"{pictures}/02.png", "rows.npz[0]", "rows.npz[1]"]
    first = made.json["rows"][0]["predictions"]
    assert made.json["rows"][3]["predictions"] == first


def test_a_name_that_is_not_utf8_is_a_row_like_any_other(command, digits_bundle):
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(SHIPPED["x"][0, :, :, 0]).save("a.png")
    Path("a.png").rename(name)
    made = command("predict", digits_bundle.path, name, "-o", "out.jsonl")
    assert made.code == 0, made.stderr
    assert lines_of("out.jsonl")[0]["input"] == name
    assert command("predict", digits_bundle.path, name, "-o", "out.jsonl", "--quiet").stdout.count("1 skipped") == 1


def test_the_table_shows_predictions_and_errors(command, digits_bundle, pictures):
    made = command("predict", digits_bundle.path, pictures / "00.png", pictures / "07.png", "--quiet")
    assert made.code == 0
    assert "7 0.9" in made.stdout
    assert "not a JPEG" in made.stdout
    assert "2 inputs" in made.stdout
    assert "1 error" in made.stdout


def test_drawings_keep_the_folders_of_their_inputs_and_replace_nothing(command, digits_bundle, tmp_path):
    for name in ("a/x.png", "b/x.png", "b/x.bmp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(SHIPPED["x"][0, :, :, 0]).save(tmp_path / "in" / name)
    arguments = ("predict", digits_bundle.path, "in", "--draw", "drawn", "--quiet")
    assert command(*arguments).code == 0
    drawn = sorted(file.relative_to("drawn").as_posix() for file in Path("drawn").rglob("*.png"))
    assert drawn == ["a/x.png", "b/x-2.png", "b/x.png"]
    assert all(Image.open(Path("drawn") / name).height > 28 for name in drawn)
    refused = command(*arguments)
    assert refused.code == 2
    assert "already exists" in refused.stderr
    assert command(*arguments, "--force").code == 0


def test_a_predictor_predicts_files_contents_and_arrays_and_pickles_by_its_path(digits_bundle, pictures):
    import pickle

    file = pictures / "02.png"
    with Predictor(digits_bundle.path, top=1) as predictor:
        results = predictor.predict([file, file.read_bytes(), str(file), {"x": SHIPPED["x"][2:3]}, pictures / "07.png"])
        assert results[0] == results[1] == results[2] == results[3]
        assert [one["label"] for one in results[0]["predictions"]] == ["1"]
        assert "error" in results[4]
        copy = pickle.loads(pickle.dumps(predictor))
    assert copy.predict([file]) == results[:1]
    assert len(pickle.dumps(copy)) < 1000


def test_texts_come_one_a_line_and_each_is_a_row(command, tmp_path):
    model = bundles.exported("language_id")
    Path("texts.txt").write_text("wo liegt der Schlüssel\n# a comment\n\ndove sono le chiavi\n" + "x" * 65 + "\n")
    made = command("predict", model.path, "texts.txt", "--top", "1", "--quiet", "--json", "-")
    assert [row["input"] for row in made.json["rows"]] == ["texts.txt:1", "texts.txt:4", "texts.txt:5"]
    assert [row["predictions"][0]["label"] for row in made.json["rows"][:2]] == ["German", "Italian"]
    assert "65 bytes" in made.json["rows"][2]["error"]


def test_boxes_are_in_pixels_of_the_picture(command):
    model = bundles.exported("digit_detector")
    scenes = np.load(models_folder() / "digit_detector" / "test.npz")
    small = Image.fromarray(scenes["x"][0, :, :, 0])
    small.save("small.png")
    small.resize((384, 256)).save("large.png")
    made = command("predict", model.path, "small.png", "large.png", "--threshold", "0.8", "--quiet", "--json", "-", "--draw", "d")
    found, larger = (row["predictions"] for row in made.json["rows"])
    assert len(found) == len(larger) > 0
    for one, other in zip(found, larger, strict=True):
        assert one["label"] == other["label"]
        assert np.array(other["box"]) == pytest.approx(np.array(one["box"]) * [3, 2, 3, 2], abs=6)
    true = scenes["boxes"][scenes["image"] == 0]
    overlaps = [np.abs(true - np.array(one["box"])).max(1).min() for one in found]
    assert max(overlaps) < 6
    assert Image.open("d/large.png").size == (384, 256)


def test_masks_have_the_size_of_the_picture_and_their_shares_add_up(command):
    import base64
    import io

    model = bundles.exported("digit_segmenter")
    scenes = np.load(models_folder() / "digit_segmenter" / "test.npz")
    Image.fromarray(scenes["x"][0, :, :, 0]).save("scene.png")
    row = command("predict", model.path, "scene.png", "--quiet", "--json", "-").json["rows"][0]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["mask"]["data"]))))
    assert mask.shape == (128, 128)
    assert (mask == scenes["mask"][0]).mean() > 0.97
    assert sum(one["share"] for one in row["predictions"]) == pytest.approx(1)
    assert {one["index"]: one["pixels"] for one in row["predictions"]} == dict(
        zip(*np.unique(mask, return_counts=True), strict=True)
    )


def test_predictions_are_those_of_the_server(digits_bundle, pictures, rows):
    pytest.importorskip("uvicorn", reason="the server's packages are not installed: pip install -e '.[serve]'")
    from running import Running

    with Running(digits_bundle.path) as server:
        for index in (0, 5, 11):
            body = (pictures / f"{index:02}.png").read_bytes()
            status, answer, _ = server.ask("POST", "/v2/models/digits/predict", body, **{"Content-Type": "image/png"})
            assert status == 200
            served, ours = answer["predictions"], rows[index]["predictions"]
            assert [one["label"] for one in served] == [one["label"] for one in ours]
            assert [one["probability"] for one in served] == pytest.approx([one["probability"] for one in ours], rel=1e-5)


def test_a_picture_beyond_a_limit_is_a_row_with_an_error_and_is_not_decoded(command, digits_bundle):
    Image.new("1", (20_000, 1)).save("strip.png")
    Image.new("1", (10_000, 4_001)).save("area.png")
    rows = command("predict", digits_bundle.path, "strip.png", "area.png", "--quiet", "--json", "-").json["rows"]
    assert [row["error"] for row in rows] == [
        "a side of 20000 pixels exceeds the limit of 16384",
        "a picture of 10000x4001 pixels exceeds the limit of 40000000",
    ]
