"""The folder that a package is: whole or not there, and nothing of anybody else's is ever lost."""

import json
import os
import sys
from pathlib import Path

import pytest

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.packaging.output import RECORD, SCHEMA, record_files, refuse_target
from relu_deploy.packaging.run import TARGETS, package

TARGET_NAMES = sorted(TARGETS)


def everything(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_every_file_is_listed_and_a_second_package_needs_force(command, digits_bundle, target):
    arguments = ("package", digits_bundle.path, "--for", target, "-o", "out", "--json", "-")
    made = command(*arguments)
    assert made.code == 0
    assert sorted(made.json["files"]) == sorted(f"out/{name}" for name in everything("out"))
    before = everything("out")
    refused = command(*arguments)
    assert refused.code == 2
    assert "already exists" in refused.stderr
    assert command(*arguments, "--force").code == 0
    assert everything("out") == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_that_package_did_not_write_is_never_replaced(command, digits_copy, tmp_path, force):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    for folder in ("mine", digits_copy.path.name):
        before = everything(tmp_path / folder)
        made = command("package", digits_copy.path, "--for", "triton", "-o", folder, *force)
        assert made.code == 2
        assert "did not write" in made.stderr
        assert everything(tmp_path / folder) == before


def test_a_file_that_somebody_put_into_a_package_is_not_replaced_with_it(command, digits_bundle, tmp_path):
    arguments = ("package", digits_bundle.path, "--for", "triton", "-o", "out")
    assert command(*arguments).code == 0
    (tmp_path / "out" / "other_model").mkdir()
    (tmp_path / "out" / "other_model" / "config.pbtxt").write_text("name: 'other_model'")
    made = command(*arguments, "--force")
    assert made.code == 2
    assert "other_model/config.pbtxt" in made.stderr
    assert (tmp_path / "out" / "other_model" / "config.pbtxt").exists()


@pytest.mark.parametrize(
    "record",
    ['{"schema": "%s"}', '{"schema": "%s", "files": 7}', '{"schema": "%s", "files": ["thesis.tex"]}', "[" * 100_000, None],
)
def test_a_folder_with_an_invalid_record_is_not_replaced(tmp_path, record):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    if record is None:
        os.mkfifo(folder / RECORD)
    else:
        (folder / RECORD).write_text(record.replace("%s", SCHEMA))
    with pytest.raises(InputError, match="did not write"):
        refuse_target(folder, force=True)


def test_a_link_that_somebody_put_into_a_package_is_not_removed_with_it(tmp_path):
    package, elsewhere = tmp_path / "package", tmp_path / "elsewhere"
    for folder in (package, elsewhere):
        folder.mkdir()
    (package / "config.pbtxt").write_text("name: 'a'")
    record_files(package, target="triton", model="a")
    refuse_target(package, force=True)
    (package / "data").symlink_to(elsewhere)
    with pytest.raises(InputError, match="data, which relu-deploy package did not write"):
        refuse_target(package, force=True)


def test_what_a_server_compiled_from_our_file_does_not_stand_in_the_way(command, digits_bundle, tmp_path):
    arguments = ("package", digits_bundle.path, "--for", "triton", "--flavor", "python", "-o", "out")
    assert command(*arguments).code == 0
    cache = tmp_path / "out" / "digits" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"compiled")
    assert command(*arguments, "--force").code == 0
    assert not cache.exists()


def test_a_file_in_the_way_stays(command, digits_bundle, tmp_path):
    (tmp_path / "out").write_text("a file")
    made = command("package", digits_bundle.path, "--for", "triton", "-o", "out", "--force")
    assert made.code == 2
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_a_write_that_fails_leaves_nothing_and_the_old_package_as_it_was(monkeypatch, digits_bundle, tmp_path, target):
    out = tmp_path / "out"
    package(digits_bundle, target, out)
    before = everything(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["relu_deploy.packaging.run"], "record_files", full)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(InputError, match="No space left"):
            package(digits_bundle, target, folder, force=folder == out)
    assert everything(out) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--for", "nomad"], "there is no target 'nomad'"),
        (["--for", "triton", "--flavor", "caffe"], "triton has no flavor 'caffe'"),
        (["--for", "triton", "--max-batch", "0"], "--max-batch must be at least 1"),
        (["--for", "triton", "--max-delay", "-1"], "--max-delay must be at least 0"),
        (["--for", "triton", "--device", "tpu"], "neither cpu nor gpu"),
        (["--for", "triton", "--accelerator", "openvino"], "there is no accelerator 'openvino'"),
        (["--for", "triton", "--accelerator", "tensorrt", "--device", "cpu"], "runs on a GPU"),
        (["--for", "triton", "--accelerator", "tensorrt", "--flavor", "python"], "--accelerator is for flavor onnxruntime"),
        (["--for", "triton", "--device", "gpu", "--threads", "2"], "--threads applies to a CPU"),
        (["--for", "triton", "--storage-uri", "s3://a/b"], "--storage-uri means nothing for triton"),
        (["--for", "docker", "--instances", "2"], "--instances means nothing for docker"),
        (["--for", "kserve", "--instances", "2"], "--instances means nothing for flavor relu-deploy"),
        (["--for", "kserve", "--storage-uri", "ftp://a/b"], "not a URI that KServe supports"),
        (["--for", "kserve", "--storage-uri", "models"], "not a URI that KServe supports"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_a_hint_and_leaves_nothing(command, digits_bundle, tmp_path, arguments, reported):
    made = command("package", digits_bundle.path, *arguments, "-o", "out")
    assert made.code == 2
    assert reported in made.stderr
    assert "\nhint: " in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_model_and_a_broken_one_are_bad_input(command, digits_copy, tmp_path):
    for path in ("nothing.rdb", "broken.onnx"):
        (tmp_path / "broken.onnx").write_bytes(b"not a graph")
        made = command("package", path, "--for", "triton", "-o", "out")
        assert made.code == 2
        assert path in made.stderr
    digits_copy.onnx.write_bytes(b"another graph")
    made = command("package", digits_copy.path, "--for", "triton", "-o", "out")
    assert made.code == 2
    assert "sha256" in made.stderr
    assert not (tmp_path / "out").exists()


def test_an_optimized_variant_is_packaged_by_its_path(command, digits_copy, tmp_path):
    facts = {"int8-cpu": {"precision": "int8", "target": "cpu", "checked_against": "model.onnx"}}
    digits_copy.add("variants/int8-cpu.onnx", digits_copy.onnx.read_bytes(), variants=facts)
    for target in TARGET_NAMES:
        made = command("package", digits_copy.path / "variants" / "int8-cpu.onnx", "--for", target, "-o", target, "--json", "-")
        assert made.code == 0, made.stderr
        assert made.json["model"] in ("digits-int8-cpu",)
    served = json.loads((tmp_path / "docker" / "Dockerfile").read_text().split("\nCMD ")[1])
    assert served[1] == "/models/digits.rdb/variants/int8-cpu.onnx"
    assert Bundle.open(tmp_path / "docker" / "models" / "digits.rdb" / "variants" / "int8-cpu.onnx").variant == "int8-cpu"
    assert "/mnt/models/variants/int8-cpu.onnx" in (tmp_path / "kserve" / "serving-runtime.yaml").read_text()
    assert Bundle.open(tmp_path / "kserve" / "model" / "variants" / "int8-cpu.onnx").variant == "int8-cpu"


def test_the_old_spelling_of_flavor_still_works(command, digits_bundle, tmp_path):
    made = command("package", digits_bundle.path, "--for", "triton", "--flavour", "python", "-o", "out", "--json", "-")
    assert made.code == 0, made.stderr
    assert made.json["flavour"] == "python"
    assert package(digits_bundle, "triton", tmp_path / "other", flavour="python").model.flavor == "python"
    assert "--flavour" not in command("package", "--help").stdout
