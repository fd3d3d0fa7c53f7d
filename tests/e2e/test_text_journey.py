"""A text model through every verb of the command line."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

from relu_deploy.bundle import Bundle


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A copy, because a census is kept in the bundle."""
    from bundles import copied

    return copied("language_id", tmp_path_factory.mktemp("bundles") / "m.rdb")


def test_a_text_model_travels_through_census_and_both_optimizations(command, tmp_path):
    assert command("export", "language_id", "-o", "m.rdb", "--quiet").code == 0
    counted = command("census", "m.rdb", "--data", "language_id", "--samples", "200", "--json", "-", "--quiet")
    assert counted.code == 0, counted.stderr
    assert [relu["channels"] for relu in counted.json["relus"]] == [128, 128, 128, 128, 256]
    for target, name in (("cpu", "int8-cpu"), ("tensorrt-rtx", "int8-tensorrt-rtx")):
        made = command(
            "optimize", "m.rdb", "--for", target, "--precision", "int8", "--calibration", "language_id", "--json", "-", "--quiet"
        )
        assert made.code == 0, made.stdout + made.stderr
        assert made.json["accuracy"]["metric"] == "top1"
        assert made.json["accuracy"]["drop"] <= 0.005
        assert command("verify", f"m.rdb/variants/{name}.onnx", "--quiet").code == 0


def test_both_architectures_verify_against_pytorch_at_another_length(command):
    for name in ("text_cnn", "text_transformer"):
        assert command("export", name, "-o", f"{name}.rdb", "--input", "x=1x24", "--quiet").code == 0
        answer = command("verify", f"{name}.rdb", "--samples", "4", "--backend", "onnxruntime-cpu", "--json", "-", "--quiet")
        assert answer.code == 0, answer.stdout
        assert answer.json["passed"] is True


@pytest.mark.parametrize("name", ["text_cnn", "text_transformer"])
def test_both_architectures_compile_for_a_gpu_that_is_not_here(command, name):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx-build]')")
    assert command("export", name, "-o", "m.rdb", "--quiet").code == 0
    words = ("compile", "m.rdb", "--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--json", "-", "--quiet")
    built = command(*words)
    assert built.code == 0, built.stderr
    assert built.json["bytes"] > 10_000


def test_lines_of_text_are_data_and_a_bad_line_is_exit_2(command, tmp_path, exported):
    (tmp_path / "d.txt").write_text("bonjour tout le monde\nGuten Morgen\n", encoding="utf-8")
    assert command("census", exported.path, "--data", "d.txt", "--quiet").code == 0
    (tmp_path / "d.txt").write_bytes(b"bonjour\n\xe9t\xe9\n")
    refused = command("census", exported.path, "--data", "d.txt")
    assert refused.code == 2
    assert "d.txt, line 2: the text is not UTF-8: byte 0 is 0xe9" in refused.stderr


def test_data_of_the_wrong_kind_are_refused_by_name(command, tmp_path, exported, digits_bundle):
    (tmp_path / "d.txt").write_text("seven\n")
    refused = command("census", digits_bundle.path, "--data", "d.txt")
    assert (refused.code, "digits does not take texts" in refused.stderr) == (2, True)
    (tmp_path / "pictures").mkdir()
    from PIL import Image

    Image.new("L", (28, 28)).save(tmp_path / "pictures" / "a.png")
    refused = command("census", exported.path, "--data", "pictures")
    assert (refused.code, "language_id takes texts, not pictures" in refused.stderr) == (2, True)
    refused = command("export", "language_id", "-o", "n.rdb", "--embed-preprocess")
    assert (refused.code, "takes bytes and decodes them itself" in refused.stderr) == (2, True)
    assert not (tmp_path / "n.rdb").exists()


def test_the_deployed_graph_answers_a_text_alike_whatever_stands_in_the_other_rows(exported):
    from relu_deploy.data.texts import to_bytes

    texts = ["år", "zażółć gęślą jaźń", "x" * 64, "Donaudampfschifffahrt", "\ufffd", "été"]
    rows = to_bytes(texts, exported.inputs[0])
    session = exported.session("onnxruntime-cpu", threads=1)
    together = session.run({"text": rows})["y"]
    for index in range(len(texts)):
        alone = session.run({"text": rows[index : index + 1]})["y"]
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-5, atol=1e-5)


def test_bytes_that_are_no_utf8_and_no_text_at_all_still_get_finite_answers(exported):
    rows = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    rows[0] = 0
    assert np.isfinite(exported.session("onnxruntime-cpu").run({"text": rows})["y"]).all()
    assert isinstance(exported, Bundle)
