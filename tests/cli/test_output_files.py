"""The files that a command writes are none that it reads, whatever names they have."""

import os
import sys

import pytest

NAMES = ("m.onnx", "./m.onnx", "link.onnx", "hard.onnx")


@pytest.fixture
def model(tmp_path, digits_bundle):
    file = tmp_path / "m.onnx"
    file.write_bytes((digits_bundle.path / "model.onnx").read_bytes())
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    os.link(file, tmp_path / "hard.onnx")
    return file


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["inspect", "m.onnx"], "--json"),
        (["verify", "m.onnx", "--force"], "--html"),
        (["verify", "m.onnx", "--force"], "--junit"),
        (["bench", "m.onnx", "--force"], "--summary"),
        (["compile", "m.onnx", "--backend", "tensorrt-rtx", "--force"], "--out"),
        (["serve", "m.onnx"], "--json"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_no_output_replaces_a_file_that_the_command_reads(command, model, words, option, name):
    before = model.read_bytes()
    answer = command(*words, option, name)
    assert answer.code == 2
    assert answer.stderr.startswith(f"error: {option} ")
    assert "is a file that the command reads" in answer.stderr
    assert model.read_bytes() == before


def test_a_key_is_an_input_too(command, tmp_path, digits_bundle):
    (tmp_path / "key.pem").write_text("a key")
    assert command("sign", digits_bundle.path, "--key", "key.pem", "--json", "key.pem").code == 2
    assert (tmp_path / "key.pem").read_text() == "a key"


def test_two_results_never_go_into_one_file(command, tmp_path, model):
    answer = command("verify", "m.onnx", "--html", "report", "--junit", "./report")
    assert answer.code == 2
    assert "--html and --junit are the same file" in answer.stderr
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the null device has no path there: run this on Linux")
def test_several_results_may_go_into_a_device(command, model):
    assert command("verify", "m.onnx", "--html", "/dev/null", "--junit", "/dev/null", "--json", "/dev/null").code == 0
