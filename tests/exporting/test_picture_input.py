"""Exports with a preprocessing: the manifest says all of it, and a finished graph takes pixels after --embed-preprocess."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.bundle import Bundle
from relu_deploy.data.image_folder import to_input
from relu_deploy.exporting.exporter import export

RANDOM = np.random.default_rng(0)


def picture_model(file, shape=("n", 3, 16, 16), dtype=TensorProto.FLOAT):
    """Write a convolution over NCHW pictures, or over NHWC ones behind a transpose; its weights tell the channels apart."""
    element = helper.tensor_dtype_to_np_dtype(dtype)
    weights = numpy_helper.from_array(RANDOM.normal(size=(4, 3, 3, 3)).astype(element), "w")
    last = shape[3] == 3
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2], name="t")] if last else []
    nodes += [
        helper.make_node("Conv", ["t" if last else "x", "w"], ["c"], name="c"),
        helper.make_node("Relu", ["c"], ["y"], name="r"),
    ]
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    outputs = [helper.make_tensor_value_info("y", dtype, ("n", 4, "h", "w"))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), file)
    return file


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (("n", 3, 16, 16), TensorProto.FLOAT),
        (("n", 16, 16, 3), TensorProto.FLOAT),
        ((2, 3, 16, 16), TensorProto.FLOAT16),
        (("n", 3, "h", "w"), TensorProto.DOUBLE),
    ],
)
@pytest.mark.parametrize("preset", ["caffe", "torchvision"])
def test_a_finished_graph_with_embedded_preprocessing_gives_the_same_answers(tmp_path, shape, dtype, preset):
    file = picture_model(tmp_path / "m.onnx", shape, dtype)
    plain = export(file, tmp_path / "plain.rdb", preprocess=preset)
    pixels = export(file, tmp_path / "pixels.rdb", preprocess=preset, embed_preprocess=True)
    spec = pixels.inputs[0]
    assert (spec.name, spec.dtype, spec.shape[3]) == ("x", "uint8", 3)
    assert pixels.manifest["preprocess"]["embedded"]
    assert pixels.manifest["preprocess"]["layout"] == "NHWC"
    pictures = RANDOM.integers(0, 256, (2, 16, 16, 3), np.uint8)
    one = pixels.session("reference").run({"x": to_input(pixels, pictures)})["y"].astype(np.float64)
    other = plain.session("reference").run({"x": to_input(plain, pictures)})["y"].astype(np.float64)
    tolerance = 2e-2 if dtype == TensorProto.FLOAT16 else 1e-4
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())
    assert np.abs(other).max() > 0.1


def test_an_input_that_is_also_an_output_stays_what_it_was(tmp_path):
    shape = ("n", 3, 8, 8)
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names] for names in (["x"], ["y"])
    )
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name="i")], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "i.onnx")
    bundle = export(tmp_path / "i.onnx", tmp_path / "i.rdb", preprocess="opencv", embed_preprocess=True)
    pixels = RANDOM.integers(0, 256, (1, 8, 8, 3), np.uint8)
    found = bundle.session("reference").run({"x": pixels})["y"]
    np.testing.assert_allclose(found, pixels.transpose(0, 3, 1, 2) / 255, rtol=1e-5, atol=1e-7)


def test_the_manifest_has_every_size_that_follows_from_the_input(tmp_path):
    file = picture_model(tmp_path / "m.onnx", ("n", 3, 299, 299))
    steps = export(file, tmp_path / "a.rdb", preprocess="torchvision").manifest["preprocess"]
    assert steps["resize"]["size"] == 342
    assert steps["crop"] == {"size": [299, 299], "offset": "round"}
    assert (steps["color"], steps["layout"], steps["dtype"], steps["embedded"]) == ("RGB", "NCHW", "float32", False)
    file = picture_model(tmp_path / "k.onnx", ("n", 20, 30, 3))
    steps = export(file, tmp_path / "k.rdb", preprocess="keras").manifest["preprocess"]
    assert (steps["layout"], steps["resize"]["rounding"]) == ("NHWC", "none")
    assert steps["scale"] == pytest.approx(1 / 127.5)


def test_a_file_and_the_means_of_the_command_line_change_a_preset(command):
    picture_model("m.onnx")
    Path("p.json").write_text(json.dumps({"preset": "ultralytics", "color": "BGR", "resize": {"pad_value": 0}}))
    made = command(
        "export", "m.onnx", "-o", "m.rdb", "--preprocess", "p.json", "--mean", "0.1,0.2,0.3", "--std", "1,1,2", "--quiet"
    )
    assert made.code == 0, made.stderr
    steps = Bundle.open("m.rdb").manifest["preprocess"]
    assert (steps["color"], steps["resize"]["mode"], steps["resize"]["pad_value"]) == ("BGR", "letterbox", 0)
    assert (steps["mean"], steps["std"]) == ([0.1, 0.2, 0.3], [1, 1, 2])
    x = to_input(Bundle.open("m.rdb"), np.full((1, 16, 16, 3), [255, 0, 51], np.uint8))
    assert x[0, :, 0, 0] == pytest.approx([0.2 - 0.1, -0.2, (1 - 0.3) / 2], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preprocess", "nosuch"], "there is no preset 'nosuch'"),
        (["--preprocess", "none.json"], "none.json does not exist"),
        (["--preprocess", "bad.json"], "pad is not a field"),
        (["--preprocess", "keras", "--embed-preprocess"], "does not round"),
        (["--embed-preprocess"], "needs to know the normalization"),
        (["--preprocess", "opencv", "--mean", "1", "--std", "1"], "the normalization is of 1 channels"),
    ],
)
def test_a_preprocessing_that_does_not_fit_is_refused_and_nothing_is_written(command, words, message):
    picture_model("m.onnx", ("n", 3, 16, 16))
    Path("bad.json").write_text('{"pad": 3}')
    made = command("export", "m.onnx", "-o", "m.rdb", *words)
    assert made.code == 2
    assert message in made.stderr
    assert "\nhint: " in made.stderr
    assert not Path("m.rdb").exists()


def test_a_letterbox_needs_a_size_where_the_input_takes_any(command):
    picture_model("m.onnx", ("n", 3, "h", "w"))
    made = command("export", "m.onnx", "-o", "m.rdb", "--preprocess", "ultralytics")
    assert made.code == 2
    assert "the letterbox has no size" in made.stderr
    made = command("export", "m.onnx", "-o", "m.rdb", "--preprocess", "ultralytics", "--shape", "x=1x3x32x48", "--quiet")
    assert made.code == 0, made.stderr


def test_a_pytorch_model_of_bgr_pixels_gets_their_channels_exchanged():
    import torch

    from relu_deploy.zoo.nn.preprocess import PixelsIn

    module = PixelsIn(torch.nn.Identity(), 1.0, (104, 117, 123), (1, 1, 1), bgr=True)
    pixels = torch.tensor([[[[10, 20, 30]]]], dtype=torch.uint8)
    assert module(pixels).flatten().tolist() == [30 - 104, 20 - 117, 10 - 123]
