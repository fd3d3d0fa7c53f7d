"""Bad input is exit 2, one line and a hint, and nothing half-written; what is not usable here is exit 3."""

import subprocess
import sys

import numpy as np
import pytest
from bundles import copied

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")


def refused(answer, *words, code=2):
    assert answer.code == code, answer.stderr
    lines = [line for line in answer.stderr.splitlines() if not line.startswith("[")]
    assert len(lines) == 2, answer.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert answer.stdout == ""
    for word in words:
        assert word in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["VERB"]),
        (["frobnicate"], ["frobnicate"]),
        (["export", "digits"], ["--out"]),
        (["export", "resnet5", "-o", "x.rdb"], ["no zoo model called 'resnet5'", "did you mean 'resnet50'?"]),
        (["export", "nothing.onnx", "-o", "x.rdb"], ["no file nothing.onnx"]),
        (["export", "no.such.module:net", "-o", "x.rdb"], ["cannot import"]),
        (["export", "json:net", "-o", "x.rdb"], ["has nothing called 'net'"]),
        (["export", "json:loads", "-o", "x.rdb"], ["calling json:loads failed"]),
        (["export", "collections:OrderedDict", "-o", "x.rdb"], ["not a torch.nn.Module"]),
        (["export", "torch.nn:ReLU", "-o", "x.rdb"], ["input shape", "--input"]),
        (["export", "torch.nn:ReLU", "-o", "x.rdb", "--input", "1x3"], ["not an input"]),
        (["export", "torch.nn:ReLU", "-o", "x.rdb", "--input", "x=1x0"], ["not a shape"]),
        (["export", "digits", "-o", "x.rdb", "--batch", "zero"], ["--batch 'zero'"]),
        (["export", "digits", "-o", "x.rdb", "--input", "x=1x3x28x28"], ["does not accept an input of shape"]),
        (["export", "digits", "-o", "x.rdb", "--opset", "3"], ["opset"]),
        (["export", "digits", "-o", "x.rdb", "--decode", "boxes"], ["not a detector"]),
        (["export", "digits", "-o", "x.rdb", "--mean", "0.5"], ["--mean and --std go together"]),
        (["export", "digits", "-o", "x.rdb", "--weights", "nothing.pth"], ["no weights file"]),
        (["export", "digits", "-o", "x.rdb", "--arg", "classes=7"], ["no argument 'classes'", "did you mean 'num_classes'?"]),
        (["export", "digits", "-o", "x.rdb", "--labels", "nothing.txt"], ["--labels nothing.txt cannot be read"]),
        (["verify", "nothing.rdb"], ["does not exist"]),
        (["inspect", "."], ["not a bundle"]),
        (["bench", "nothing.rdb"], ["does not exist"]),
        (["bench", "--batch", "0"], ["--batch '0'"]),
    ],
    ids=lambda value: " ".join(value)[:60] if value else "nothing",
)
def test_bad_usage_is_refused_in_one_line_with_a_hint(command, tmp_path, arguments, words):
    refused(command(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "names", "words"),
    [
        ("digits", "a\nb\n", ["--labels names 2 classes", "y batchx10"]),
        ("digits", "a\na\n", ["names 'a' twice"]),
        ("digits", "\n\n", ["is empty"]),
        ("digit_detector", "a\nb\n", ["task is detection"]),
    ],
)
def test_labels_that_do_not_fit_the_model_are_refused(command, tmp_path, source, names, words):
    (tmp_path / "names.txt").write_text(names)
    refused(command("export", source, "-o", "x.rdb", "--labels", "names.txt", "--quiet"), *words)
    assert not (tmp_path / "x.rdb").exists()


def test_weights_of_another_architecture_name_the_first_keys(command, tmp_path):
    from relu_deploy.zoo.recipes import build

    torch.save(build("squeezenet1_1").state_dict(), tmp_path / "squeezenet.pth")
    answer = command("export", "mobilenet_v2", "-o", "x.rdb", "--weights", "squeezenet.pth")
    refused(answer, "first missing 'features.0.0.weight'", "first unexpected 'features.0.weight'")
    assert not (tmp_path / "x.rdb").exists()


def test_weights_for_another_number_of_classes_name_both_shapes(command, tmp_path):
    from relu_deploy.zoo.recipes import build

    torch.save(build("digits", num_classes=7).state_dict(), tmp_path / "seven.pth")
    refused(command("export", "digits", "-o", "x.rdb", "--weights", "seven.pth"), "has shape (7, 96), but digits needs (10, 96)")


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_weights_that_cannot_be_read_safely_are_refused(command, tmp_path, name):
    (tmp_path / name).write_bytes(b"garbage")
    refused(command("export", "digits", "-o", "x.rdb", "--weights", name), f"{name} is not a weights file")


def test_a_pickle_that_would_run_code_is_refused(command, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return print, ("code was run",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    answer = command("export", "digits", "-o", "x.rdb", "--weights", "evil.pth")
    refused(answer, "evil.pth is not a weights file")
    assert "code was run" not in answer.stdout + answer.stderr


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x09\x12\x07pytorch"])
@pytest.mark.parametrize("verb", ["export", "verify", "inspect"])
def test_a_file_that_is_no_onnx_graph_is_refused(command, tmp_path, verb, content):
    (tmp_path / "m.onnx").write_bytes(content)
    refused(command(verb, "m.onnx", *(["-o", "x.rdb"] if verb == "export" else [])), "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_an_existing_target_is_kept_without_force(command, tmp_path):
    copied("digits", tmp_path / "m.rdb")
    before = (tmp_path / "m.rdb" / "model.onnx").read_bytes()
    refused(command("export", "digits", "-o", "m.rdb"), "already exists", "--force")
    assert (tmp_path / "m.rdb" / "model.onnx").read_bytes() == before
    assert command("export", "digits", "-o", "m.rdb", "--force", "--quiet").code == 0


def test_a_place_that_cannot_be_written_is_refused(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(command("export", "digits", "-o", "file/x.rdb", "--quiet"), "cannot write")


def test_a_bundle_that_was_tampered_with_is_refused(command, digits_copy):
    with (digits_copy.path / "model.onnx").open("ab") as file:
        file.write(b"x")
    refused(command("verify", digits_copy.path), "model.onnx is not the file")


def test_inputs_of_the_wrong_kind_are_refused(command, digits_bundle, tmp_path):
    np.savez(tmp_path / "double.npz", x=np.zeros((1, 1, 28, 28)))
    refused(command("verify", digits_bundle.path, "--inputs", "double.npz"), "must be float32, got float64")
    np.savez(tmp_path / "name.npz", y=np.zeros((1, 1, 28, 28), np.float32))
    refused(command("verify", digits_bundle.path, "--inputs", "name.npz"), "no array for input 'x'")
    (tmp_path / "no.npz").write_text("nothing")
    refused(command("verify", digits_bundle.path, "--inputs", "no.npz"), "not an .npz file")


@pytest.mark.parametrize("verb", ["verify", "bench"])
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
def test_a_backend_asked_for_by_name_that_is_not_here_is_exit_3(command, digits_bundle, verb, backend):
    refused(command(verb, digits_bundle.path, "--backend", backend), f"'{backend}' is not usable here", code=3)


@pytest.mark.parametrize(("words", "traceback"), [([], False), (["--debug"], True)])
def test_a_traceback_is_shown_only_where_it_was_asked_for(tmp_path, words, traceback):
    command = [sys.executable, "-m", "relu_deploy", "verify", "nothing.onnx", *words]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ("Traceback" in answer.stderr) is traceback
    assert (answer.returncode == 2) is not traceback
