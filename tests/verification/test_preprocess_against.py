"""`verify --preprocess-against`: the arrays of training code beside the manifest's preprocessing, and the step that differs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from relu_deploy.errors import InputError, UsageError
from relu_deploy.paths import schema_file
from relu_deploy.preprocessing.presets import load_preprocess
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.tensors import TensorSpec
from relu_deploy.verification.preprocess.comparison import compare_preprocess

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SIDE = 64


def model(preset="torchvision", **changes):
    spec = TensorSpec("x", "float32", ("batch", 3, SIDE, SIDE))
    steps = load_preprocess(preset).fitted(spec).to_json() | changes
    return SimpleNamespace(name="m", inputs=(spec,), manifest={"preprocess": steps})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures with edges and noise, larger than the input and not square."""
    path = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate([(200, 150), (130, 240), (128, 129)]):
        coarse = generator.integers(0, 256, (9, 9, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        noisy = smooth + generator.integers(-40, 40, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path / f"{number}.png")
    return path


def torchvision_pixels(picture, kernel=Image.Resampling.BILINEAR):
    """Return what torchvision's Resize(73) and CenterCrop(64) give, written with Pillow."""
    width, height = picture.size
    side = round(SIDE * 256 / 224)
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
    return np.asarray(picture.resize(size, kernel).crop((left, top, left + SIDE, top + SIDE)), np.float32)


def normalized(pixels, mean=MEAN, std=STD, scale=1 / 255):
    return ((pixels * np.float32(scale) - mean) / std).transpose(2, 0, 1)


def pictures_of(folder):
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]


def compared(folder, tmp_path, made, bundle=None, name="x"):
    np.savez(tmp_path / "arrays.npz", **{name: np.stack(made)})
    return compare_preprocess(bundle or model(), tmp_path / "arrays.npz", folder)


def test_the_same_preprocessing_agrees_picture_by_picture(folder, tmp_path):
    report = compared(folder, tmp_path, [normalized(torchvision_pixels(one)) for one in pictures_of(folder)])
    assert report.passed
    assert [one.picture for one in report.pictures] == ["0.png", "1.png", "2.png"]
    assert report.largest < 1e-3
    assert report.steps == ()


def swapped(one):
    return normalized(torchvision_pixels(one)[..., ::-1], MEAN[::-1], STD[::-1])


def swapped_but_not_the_mean(one):
    return normalized(torchvision_pixels(one)[..., ::-1])


def bicubic(one):
    return normalized(torchvision_pixels(one, Image.Resampling.BICUBIC))


def nearest_of_pillow(one):
    return normalized(torchvision_pixels(one, Image.Resampling.NEAREST))


def stretched(one):
    return normalized(np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32))


def not_normalized(one):
    return normalized(torchvision_pixels(one), np.zeros(3, np.float32), np.ones(3, np.float32))


def in_gray_levels(one):
    return normalized(torchvision_pixels(one), np.zeros(3, np.float32), np.ones(3, np.float32), 1)


def normalized_without_scale(one):
    return normalized(torchvision_pixels(one), scale=1)


def letterboxed(one):
    ratio = SIDE / max(one.size)
    size = tuple(round(side * ratio) for side in one.size)
    whole = Image.new("RGB", (SIDE, SIDE), (114, 114, 114))
    whole.paste(one.resize(size, Image.Resampling.BILINEAR), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return normalized(np.asarray(whole, np.float32))


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        (swapped, ["color"]),
        (swapped_but_not_the_mean, ["color"]),
        (bicubic, ["interpolation"]),
        (nearest_of_pillow, ["interpolation"]),
        (stretched, ["resize"]),
        (letterboxed, ["resize"]),
        (not_normalized, ["mean", "std"]),
        (in_gray_levels, ["scale", "mean", "std"]),
        (normalized_without_scale, ["scale"]),
        (lambda one: bicubic(one)[::-1], ["interpolation", "color"]),
    ],
)
def test_the_step_that_differs_is_named_and_explains_the_difference(folder, tmp_path, training, steps):
    report = compared(folder, tmp_path, [training(one) for one in pictures_of(folder)])
    assert not report.passed
    if training.__name__ == "<lambda>":
        # Channels exchanged after the normalization, mean and std with them.
        assert {one.name for one in report.steps} == set(steps)
    else:
        assert [one.name for one in report.steps] == steps
    assert report.remaining <= 1.001
    # The suggestion is a whole description, and with it the arrays agree.
    suggested = model()
    suggested.manifest["preprocess"] = read_preprocess(report.suggestion, strict=True).to_json()
    assert compare_preprocess(suggested, tmp_path / "arrays.npz", folder).passed


def test_a_missing_antialias_is_named(folder, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    made = [normalized(cv2.resize(np.asarray(one), (SIDE, SIDE)).astype(np.float32)) for one in pictures_of(folder)]
    plain = {"mode": "stretch", "interpolation": "bilinear", "antialias": True}
    bundle = model(resize=plain)
    del bundle.manifest["preprocess"]["crop"]
    report = compared(folder, tmp_path, made, bundle)
    assert [one.to_json() for one in report.steps] == [{"step": "antialias", "ours": "antialiased", "theirs": "not antialiased"}]
    assert report.largest > 10
    assert report.remaining <= 1.001


def test_another_layout_and_another_size_are_named(folder, tmp_path):
    made = [normalized(torchvision_pixels(one)).transpose(1, 2, 0) for one in pictures_of(folder)]
    report = compared(folder, tmp_path, made)
    assert [(one.name, one.ours, one.theirs) for one in report.steps] == [("layout", "NCHW", "NHWC")]
    assert report.pictures[0].largest is None
    assert report.remaining < 1e-3
    smaller = [one[:, :32, :32] for one in (normalized(torchvision_pixels(one)) for one in pictures_of(folder))]
    report = compared(folder, tmp_path, smaller)
    assert not report.passed
    assert report.pictures[0].shape == (3, 32, 32)
    assert report.pictures[0].expected == (3, SIDE, SIDE)


def test_an_orientation_that_training_code_ignored_is_named(folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    metadata = Image.Exif()
    metadata[0x0112] = 6
    picture = pictures_of(folder)[0]
    picture.save(photos / "turned.png", exif=metadata)
    report = compared(photos, tmp_path, [normalized(torchvision_pixels(picture))])
    assert [(one.name, one.theirs) for one in report.steps] == [("orientation", "as stored")]
    assert report.remaining < 1e-3


def test_arrays_find_their_pictures_by_name_and_by_an_array_of_names(folder, tmp_path):
    made = [normalized(torchvision_pixels(one)) for one in pictures_of(folder)]
    np.savez(tmp_path / "a.npz", **{"2.png": made[2], "0": made[0]})
    report = compare_preprocess(model(), tmp_path / "a.npz", folder)
    assert report.passed
    assert [one.picture for one in report.pictures] == ["2.png", "0.png"]
    np.savez(tmp_path / "b.npz", x=np.stack([made[1], made[0]]), files=np.array(["1.png", "0.png"]))
    report = compare_preprocess(model(), tmp_path / "b.npz", folder)
    assert report.passed
    assert [one.picture for one in report.pictures] == ["1.png", "0.png"]
    np.savez(tmp_path / "c.npz", x=np.stack(made[:2]))
    with pytest.raises(InputError, match="2 rows, and there are 3 pictures"):
        compare_preprocess(model(), tmp_path / "c.npz", folder)
    np.savez(tmp_path / "d.npz", **{"9.png": made[0]})
    with pytest.raises(InputError, match=r"'9.png' is not one picture"):
        compare_preprocess(model(), tmp_path / "d.npz", folder)
    with pytest.raises(UsageError, match="of a folder"):
        compare_preprocess(model(), tmp_path / "a.npz", tmp_path / "nowhere")


def test_gray_levels_for_a_model_of_normalized_pixels_do_not_agree_and_do_for_one_that_normalizes_itself(folder, tmp_path):
    pixels = [torchvision_pixels(one).astype(np.uint8) for one in pictures_of(folder)]
    report = compared(folder, tmp_path, [one.transpose(2, 0, 1) for one in pixels])
    assert [one.name for one in report.steps] == ["scale", "mean", "std"]
    spec = TensorSpec("x", "uint8", ("batch", SIDE, SIDE, 3))
    itself = SimpleNamespace(
        name="m", inputs=(spec,), manifest={"preprocess": model(embedded=True, layout="NHWC").manifest["preprocess"]}
    )
    assert compared(folder, tmp_path, pixels, itself).passed
    # Training code normalized what the deployed graph normalizes itself.
    assert compared(folder, tmp_path, [normalized(torchvision_pixels(one)) for one in pictures_of(folder)], itself).passed
    assert not compared(folder, tmp_path, [one[..., ::-1] for one in pixels], itself).passed


def test_an_array_of_nan_never_agrees(folder, tmp_path):
    made = [normalized(torchvision_pixels(one)) for one in pictures_of(folder)]
    made[1] = np.full_like(made[1], np.nan)
    assert [one.passed for one in compared(folder, tmp_path, made).pictures] == [True, False, True]


def test_the_verb_fails_beyond_a_gray_level_and_reports_it_everywhere(command, folder):
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node("Relu", ["c"], ["y"], name="relu")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, SIDE, SIDE))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 2, SIDE - 2, SIDE - 2))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), "m.onnx")
    assert command("export", "m.onnx", "-o", "m.rdb", "--preprocess", "torchvision", "--quiet").code == 0
    np.savez("right.npz", x=np.stack([normalized(torchvision_pixels(one)) for one in pictures_of(folder)]))
    np.savez("wrong.npz", x=np.stack([not_normalized(one) for one in pictures_of(folder)]))
    words = ("verify", "m.rdb", "--data", folder, "--quiet", "--preprocess-against")
    fine = command(*words, "right.npz", "--json", "-")
    assert fine.code == 0, fine.stderr
    assert fine.json["preprocess"]["passed"]
    made = command(*words, "wrong.npz", "--json", "wrong.json", "--junit", "wrong.xml", "--html", "w.html", "--summary", "w.md")
    assert made.code == 1
    assert "mean: 0.485, 0.456, 0.406 in the manifest, 0, 0, 0 in the arrays" in made.stdout
    result = json.loads(Path("wrong.json").read_text())
    jsonschema.validate(result, json.loads(schema_file("verify").read_text()))
    assert [one["step"] for one in result["preprocess"]["steps"]] == ["mean", "std"]
    assert not result["passed"]
    assert all(backend["passed"] for backend in result["backends"])
    suite = ElementTree.parse("wrong.xml").getroot().find("testsuite[@name='preprocess']")
    assert suite.get("failures") == "3"
    assert "<li>mean: 0.485, 0.456, 0.406 in the manifest, 0, 0, 0 in the arrays</li>" in Path("w.html").read_text()
    assert "| preprocessing | **failed** |" in Path("w.md").read_text()
    refused = command("verify", "m.rdb", "--preprocess-against", "right.npz")
    assert refused.code == 2
    assert "--data" in refused.stderr
