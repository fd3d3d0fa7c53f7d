"""A picture in, labels, boxes or a mask out: the same numbers as without a server, in the picture's own pixels."""

import base64
import concurrent.futures
import io
import json
import shutil
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
pytest.importorskip("python_multipart", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from pictures import encoded, form, gradient, png
from PIL import Image
from running import Running, until

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import read_picture, to_input
from relu_deploy.errors import InputError
from relu_deploy.graph import find_relus, load_model
from relu_deploy.prediction.errors import InvalidOutput
from relu_deploy.prediction.masks import mask_of
from relu_deploy.prediction.outputs import boxes_of
from relu_deploy.prediction.preparation import unsupported_reason
from relu_deploy.preprocessing.apply import place
from relu_deploy.preprocessing.errors import PictureTooLarge
from relu_deploy.preprocessing.placement import ImagePlacement
from relu_deploy.serving.errors import InvalidArgument, serve_error
from relu_deploy.serving.prediction.images import PictureLimits
from relu_deploy.serving.prediction.predict import PredictOptions, prepare
from relu_deploy.serving.prediction.relu_view import channels_of
from relu_deploy.tasks.detection import postprocess
from relu_deploy.tasks.segmentation import confusion, mean_iou
from relu_deploy.tensors import TensorSpec

DETECT, DIGITS = "/v2/models/digit_detector/predict", "/v2/models/digits/predict"
SEGMENT = "/v2/models/digit_segmenter/predict"
SHIPPED = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    from bundles import exported

    return exported("digit_detector")


def retold(bundle, path, name, **fields):
    """Return a copy of `bundle` at `path` whose manifest says something else."""
    shutil.copytree(bundle.path, path)
    manifest = json.loads((path / "manifest.json").read_text()) | {"name": name} | fields
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(path)


@pytest.fixture(scope="module")
def cropping(detector, tmp_path_factory):
    """The detector, fed the middle of a picture whose shorter side was made 128."""
    steps = {**detector.manifest["preprocess"], "resize": 128, "crop": 128}
    return retold(detector, tmp_path_factory.mktemp("crop") / "cropping.rdb", "cropping", preprocess=steps)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    from bundles import exported

    return exported("digit_segmenter")


@pytest.fixture(scope="module")
def cropping_segmenter(segmenter, tmp_path_factory):
    """The segmenter, fed the middle of a picture, and without a word on which class is the ground."""
    steps = {**segmenter.manifest["preprocess"], "resize": 128, "crop": 128}
    path = tmp_path_factory.mktemp("crop") / "middle.rdb"
    return retold(segmenter, path, "middle", preprocess=steps, postprocess=None)


@pytest.fixture(scope="module")
def server(digits_bundle, detector, cropping, segmenter, cropping_segmenter):
    paths = [digits_bundle.path, detector.path, cropping.path, digits_bundle.onnx, segmenter.path, cropping_segmenter.path]
    # Its memory is looked at, which is its own only in a process that was not forked.
    with Running(*paths, "--max-body", "8", "--threads", "1", forked=False) as running:
        yield running


@pytest.fixture(scope="module")
def digits():
    with np.load(SHIPPED / "digits" / "test.npz") as archive:
        return archive["x"][:32, ..., 0]


@pytest.fixture(scope="module")
def scenes():
    with np.load(SHIPPED / "digit_detector" / "test.npz") as archive:
        return archive["x"][:8, ..., 0]


def ask(server, path, body, kind="image/png", **headers):
    return server.ask("POST", path, body, Content_Type=kind, **headers)


def expected_probabilities(bundle, file):
    logits = bundle.session("onnxruntime-cpu", threads=1).run({"x": to_input(bundle, read_picture(bundle, file))})["y"][0]
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum()


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("form_", ["PNG", "JPEG", "WEBP", "BMP"])
def test_probabilities_are_the_softmax_of_what_the_session_answers(server, digits_bundle, digits, form_, tmp_path):
    # A photograph would be larger than the input, in color, and not square.
    file = tmp_path / f"digit.{form_.lower()}"
    file.write_bytes(encoded(Image.fromarray(digits[0]).convert("RGB").resize((97, 61)), form_))
    status, reply, _ = ask(server, f"{DIGITS}?top=10", file.read_bytes(), f"image/{form_.lower()}")
    assert status == 200
    probabilities = expected_probabilities(digits_bundle, file)
    assert [one["index"] for one in reply["predictions"]] == np.argsort(-probabilities).tolist()
    for one in reply["predictions"]:
        assert one["probability"] == pytest.approx(probabilities[one["index"]], rel=1e-5)
        assert one["label"] == digits_bundle.manifest["labels"][one["index"]]
    assert reply["picture"] == {"width": 97, "height": 61, "format": form_, "seen": [0, 0, 97, 61]}
    assert reply["task"] == "classification"
    assert (reply["model_name"], reply["model_version"]) == ("digits", "1")


def test_the_shipped_digits_are_named_right(server, digits):
    with np.load(SHIPPED / "digits" / "test.npz") as archive:
        labels = archive["labels"][: len(digits)]
    found = [ask(server, DIGITS, encoded(Image.fromarray(one), "PNG"))[1]["predictions"][0]["index"] for one in digits]
    assert (np.array(found) == labels).mean() > 0.95


def test_a_form_an_octet_stream_and_a_version_give_the_same_answer(server, digits):
    file = encoded(Image.fromarray(digits[1]), "PNG")
    body, kind = form(("note", None, b"seven?"), ("picture", "seven.png", file))
    answers = [
        ask(server, DIGITS, file),
        ask(server, DIGITS, file, "application/octet-stream"),
        ask(server, DIGITS, body, kind),
        ask(server, "/v2/models/digits/versions/1/predict", file),
    ]
    assert [status for status, _, _ in answers] == [200] * 4
    assert all(reply["predictions"] == answers[0][1]["predictions"] for _, reply, _ in answers)


def test_top_says_how_many_labels(server, digits):
    file = encoded(Image.fromarray(digits[2]), "PNG")
    assert [len(ask(server, f"{DIGITS}{query}", file)[1]["predictions"]) for query in ("", "?top=1", "?top=99")] == [5, 1, 10]


def test_timing_says_what_the_model_took(server, digits):
    timing = ask(server, DIGITS, encoded(Image.fromarray(digits[0]), "PNG"))[1]["timing"]
    assert set(timing) == {"decode_ms", "queue_ms", "compute_ms"}
    assert timing["compute_ms"] > 0
    assert timing["decode_ms"] > 0


def test_pictures_are_counted_as_inferences_like_all_others(server, digits):
    def count():
        return server.ask("GET", "/v2/models/digits/stats")[1]["model_stats"][0]["inference_count"]

    before = count()
    ask(server, DIGITS, encoded(Image.fromarray(digits[0]), "PNG"))
    assert count() == before + 1


# ---------------------------------------------------------------- boxes


def expected_boxes(bundle, scene, threshold=0.05):
    """Return the boxes in the pixels of a scene of the input's own size."""
    session = bundle.session("onnxruntime-cpu", threads=1)
    outputs = session.run({"x": to_input(bundle, scene[None, ..., None])})
    limits = {"iou_threshold": 0.5, "max_detections": 50, "score_threshold": threshold}
    return postprocess(outputs["boxes"], outputs["scores"], **limits)[0]


def overlap(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = (high - low).clip(0).prod()
    return common / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def test_boxes_of_a_picture_of_the_inputs_size_are_the_sessions(server, detector, scenes):
    for scene in scenes:
        reply = ask(server, DETECT, encoded(Image.fromarray(scene), "PNG"))[1]
        expected = expected_boxes(detector, scene)
        assert [one["index"] for one in reply["detections"]] == expected["labels"].tolist()
        assert [one["label"] for one in reply["detections"]] == list(map(str, expected["labels"]))
        np.testing.assert_allclose([one["box"] for one in reply["detections"]], expected["boxes"], atol=0.01)
        np.testing.assert_allclose([one["score"] for one in reply["detections"]], expected["scores"], rtol=1e-4)


def agree(reply, expected, scale, offset=(0, 0)):
    """Check that the answer is `wanted`, scaled and moved."""
    assert [one["index"] for one in reply["detections"]] == expected["labels"].tolist()
    boxes = expected["boxes"] * np.tile(scale, 2) + np.tile(offset, 2)
    np.testing.assert_allclose([one["box"] for one in reply["detections"]], boxes, atol=0.05)


def lies_near(reply, expected, scale, offset=(0, 0)):
    """Check that each box of `wanted`, scaled and moved, is answered, give or take what resizing does to a digit's edge."""
    assert len(expected["boxes"])
    for box, label in zip(expected["boxes"] * np.tile(scale, 2) + np.tile(offset, 2), expected["labels"], strict=True):
        mine = [np.array(one["box"]) for one in reply["detections"] if one["index"] == label]
        assert max((overlap(box, one) for one in mine), default=0) > 0.7


@pytest.mark.parametrize(("across", "down"), [(2, 2), (3, 1), (2, 5), (4, 3)])
def test_boxes_of_a_stretched_picture_are_stretched(server, detector, scenes, across, down):
    for scene in scenes:
        large = Image.fromarray(scene).resize((128 * across, 128 * down), Image.Resampling.NEAREST)
        reply = ask(server, f"{DETECT}?threshold=0.5", encoded(large, "PNG"))[1]
        assert (reply["picture"]["width"], reply["picture"]["height"]) == large.size
        assert reply["picture"]["seen"] == [0, 0, *large.size]
        shrunk = np.asarray(large.resize((128, 128), Image.Resampling.BILINEAR))
        agree(reply, expected_boxes(detector, shrunk, 0.5), [across, down])
        lies_near(reply, expected_boxes(detector, scene, 0.7), [across, down])


@pytest.mark.parametrize(("before", "after", "wide"), [(40, 100, True), (100, 40, False), (33, 0, True), (0, 0, True)])
def test_boxes_of_a_cropped_picture_lie_where_the_digits_are(server, detector, scenes, before, after, wide):
    """The scene is not in the middle: part of it is cut off, as of any picture that is not square."""
    for scene in scenes[:4]:
        around = ((0, 0), (before, after)) if wide else ((before, after), (0, 0))
        large = Image.fromarray(np.pad(scene, around, mode="edge"))
        status, reply, _ = ask(server, "/v2/models/cropping/predict?threshold=0.6", encoded(large, "PNG"))
        assert status == 200
        start = (before + after) // 2
        assert reply["picture"]["seen"] == ([start, 0, start + 128, 128] if wide else [0, start, 128, start + 128])
        middle = np.asarray(large)[:, start : start + 128] if wide else np.asarray(large)[start : start + 128]
        expected = expected_boxes(detector, middle, 0.6)
        agree(reply, expected, [1, 1], [start, 0] if wide else [0, start])


def test_boxes_of_a_picture_that_is_scaled_and_cropped_lie_where_the_digits_are(server, detector, scenes):
    for scene in scenes[:4]:
        large = Image.fromarray(np.pad(scene, ((0, 0), (64, 64)), mode="edge")).resize((768, 384), Image.Resampling.NEAREST)
        reply = ask(server, "/v2/models/cropping/predict?threshold=0.5", encoded(large, "PNG"))[1]
        assert reply["picture"]["seen"] == [192, 0, 576, 384]
        shrunk = np.asarray(large.resize((256, 128), Image.Resampling.BILINEAR))[:, 64:192]
        agree(reply, expected_boxes(detector, shrunk, 0.5), [3, 3], [192, 0])
        lies_near(reply, expected_boxes(detector, scene, 0.7), [3, 3], [192, 0])


def test_boxes_of_a_turned_photograph_are_those_of_the_upright_one(server, scenes):
    upright = Image.fromarray(scenes[0]).resize((256, 128))
    metadata = Image.Exif()
    metadata[0x0112] = 6
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=metadata)
    one, other = ask(server, DETECT, encoded(upright, "PNG"))[1], ask(server, DETECT, turned)[1]
    assert one["detections"] == other["detections"] != []
    assert (other["picture"]["width"], other["picture"]["height"]) == (256, 128)


def test_a_threshold_leaves_out_what_is_not_above_it(server, scenes):
    file = encoded(Image.fromarray(scenes[0]), "PNG")
    every = ask(server, DETECT, file)[1]["detections"]
    sure = ask(server, f"{DETECT}?threshold=0.5", file)[1]["detections"]
    assert sure == [one for one in every if one["score"] > 0.5] != every
    assert ask(server, f"{DETECT}?threshold=1", file)[1]["detections"] == []


def test_placements_find_the_way_back_to_any_pixel():
    spec = TensorSpec("x", "float32", ("batch", 3, 64, 48))
    generator = np.random.default_rng(0)
    for steps in ({}, {"resize": 72, "crop": 48}, {"crop": 48}):
        for width, height in [(48, 64), (100, 100), (640, 33), (7, 90), (301, 200)]:
            pixels, placed = place(gradient(width, height), spec, steps)
            assert placed.picture == (width, height)
            assert pixels.shape == (1, placed.size[1], placed.size[0], 3)
            # Colors of a gradient say where a pixel comes from.
            x, y = generator.integers(2, placed.size[0] - 2), generator.integers(2, placed.size[1] - 2)
            column, row = placed.to_picture(np.array([[x + 0.5, y + 0.5, x + 0.5, y + 0.5]]))[0][:2]
            red, green, _ = pixels[0, y, x].astype(int)
            assert abs(red - (column - 0.5) * 255 / (width - 1)) < 8 + 255 / width
            assert abs(green - (row - 0.5) * 255 / (height - 1)) < 8 + 255 / height


def test_no_box_leaves_the_picture():
    placed = ImagePlacement((100, 50), (64, 64), (1.28, 1.28), (32, 0))
    boxes = placed.to_picture(np.array([[-500.0, -500, 500, 500], [0, 0, 64, 64]]))
    assert boxes.tolist() == [[0, 0, 100, 50], [25, 0, 75, 50]]


def test_a_picture_that_would_grow_beyond_bounds_is_refused():
    spec = TensorSpec("x", "float32", ("batch", 3, 224, 224))
    with pytest.raises(InputError, match="1x200000 pixels is too elongated"):
        place(Image.new("RGB", (1, 200_000)), spec, {"resize": 256, "crop": 224})


def test_a_graph_that_suppresses_boxes_itself_is_only_cut_off_at_the_threshold():
    outputs = {
        "boxes": np.array([[0, 0, 10, 10], [5, 5, 20, 20], [1, 1, 2, 2]], np.float32),
        "scores": np.array([0.9, 0.4, 0.8], np.float32),
        "labels": np.array([1, 0, 1]),
        "image": np.array([0, 0, 1]),
    }
    manifest = {"task": "detection", "labels": ["cat", "dog"], "postprocess": {"decode": "nms", "score_threshold": 0.05}}
    placed = ImagePlacement((40, 40), (20, 20), (0.5, 0.5), (0, 0))
    found = boxes_of(outputs, manifest, placed, None)
    assert [(one["label"], one["box"]) for one in found] == [("dog", [0, 0, 20, 20]), ("cat", [10, 10, 40, 40])]
    assert [one["label"] for one in boxes_of(outputs, manifest, placed, 0.5)] == ["dog"]


# ---------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def cluttered():
    with np.load(SHIPPED / "digit_segmenter" / "test.npz") as archive:
        return archive["x"][:8, ..., 0]


def expected_mask(bundle, scene):
    """Return the classes of the pixels of a scene of the input's own size."""
    logits = bundle.session("onnxruntime-cpu", threads=1).run({"x": to_input(bundle, scene[None, ..., None])})["y"]
    return logits[0].argmax(0)


def opened(png):
    """Return the numbers of a PNG file with a palette, and what a viewer shows, RGBA."""
    picture = Image.open(io.BytesIO(png))
    assert (picture.format, picture.mode) == ("PNG", "P")
    return np.asarray(picture), np.asarray(picture.convert("RGBA"))


def test_a_mask_holds_the_class_of_each_pixel_and_the_shares_are_counted_from_it(server, segmenter, cluttered):
    for scene in cluttered:
        status, reply, _ = ask(server, SEGMENT, encoded(Image.fromarray(scene), "PNG"))
        expected = expected_mask(segmenter, scene)
        assert status == 200
        assert reply["task"] == "segmentation"
        assert {key: reply["mask"][key] for key in ("format", "width", "height", "void")} == {
            "format": "PNG",
            "width": 128,
            "height": 128,
            "void": 255,
        }
        mask, shown = opened(base64.b64decode(reply["mask"]["data"]))
        assert (mask != expected).mean() < 1e-3  # two sessions may differ in the last bit of a logit
        counts = np.bincount(mask.ravel(), minlength=11)
        assert {one["index"]: one["pixels"] for one in reply["classes"]} == {k: n for k, n in enumerate(counts) if n}
        assert [one["share"] for one in reply["classes"]] == sorted((n / 128**2 for n in counts if n), reverse=True)
        for one in reply["classes"]:
            assert one["label"] == segmenter.manifest["labels"][one["index"]]
            assert one["background"] == (one["index"] == 0)
            colors = {tuple(color) for color in shown[mask == one["index"]].tolist()}
            assert colors == {(*bytes.fromhex(one["color"][1:]), 0 if one["background"] else 255)}
        assert len({one["color"] for one in reply["classes"]}) == len(reply["classes"]) > 1


def test_the_shipped_scenes_are_named_right_pixel_by_pixel(server):
    with np.load(SHIPPED / "digit_segmenter" / "test.npz") as archive:
        scenes, true = archive["x"][:30, ..., 0], archive["mask"][:30]
    found = np.stack([opened(ask(server, f"{SEGMENT}?mask=png", encoded(Image.fromarray(one), "PNG"))[1])[0] for one in scenes])
    assert mean_iou(confusion(found, true, 11)) > 0.85


def test_the_mask_can_come_alone_or_stay_away(server, cluttered):
    file = encoded(Image.fromarray(cluttered[0]), "PNG")
    whole = ask(server, SEGMENT, file)[1]
    status, png, headers = ask(server, f"{SEGMENT}?mask=png", file)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert png == base64.b64decode(whole["mask"]["data"])
    without = ask(server, f"{SEGMENT}?mask=none", file)[1]
    assert "mask" not in without
    assert without["classes"] == whole["classes"] == ask(server, f"{SEGMENT}?mask=json", file)[1]["classes"]


def test_the_mask_of_a_stretched_picture_is_stretched(server, segmenter, cluttered):
    large = Image.fromarray(cluttered[1]).resize((384, 640), Image.Resampling.NEAREST)
    mask, _ = opened(ask(server, f"{SEGMENT}?mask=png", encoded(large, "PNG"))[1])
    shrunk = np.asarray(large.resize((128, 128), Image.Resampling.BILINEAR))
    expected = expected_mask(segmenter, shrunk).repeat(5, 0).repeat(3, 1)
    assert mask.shape == (640, 384)
    assert (mask != expected).mean() < 1e-3


@pytest.mark.parametrize("wide", [True, False])
def test_where_a_cropping_model_does_not_look_the_mask_is_void(server, segmenter, cluttered, wide):
    scene = cluttered[2]
    around = ((0, 0), (30, 70)) if wide else ((30, 70), (0, 0))
    reply = ask(server, "/v2/models/middle/predict", encoded(Image.fromarray(np.pad(scene, around, mode="edge")), "PNG"))[1]
    mask, shown = opened(base64.b64decode(reply["mask"]["data"]))
    inside = np.zeros(mask.shape, bool)
    inside[(slice(None), slice(50, 178)) if wide else (slice(50, 178), slice(None))] = True
    assert (mask[~inside] == 255).all()
    assert (shown[~inside][:, 3] == 0).all()
    padded = np.pad(scene, around, mode="edge")
    expected = expected_mask(segmenter, padded[:, 50:178] if wide else padded[50:178])
    assert (mask[inside].reshape(128, 128) != expected).mean() < 1e-3
    # Shares are of what the model looked at; nobody said that class 0 is the ground, so it has a color.
    assert sum(one["share"] for one in reply["classes"]) == pytest.approx(1)
    assert not any(one["background"] for one in reply["classes"])
    assert (shown[inside][:, 3] == 255).all()


def test_masks_find_the_way_to_every_pixel_of_a_picture_that_was_scaled_and_cut():
    placed = ImagePlacement((300, 200), (64, 64), (0.64, 0.64), (64, 32))
    for side in (64, 16):  # a model may answer for fewer pixels than it is given
        plane = np.arange(side * side).reshape(side, side)
        full = placed.plane_to_picture(plane, -1)
        assert full.shape == (200, 300)
        for x, y in [(100, 50), (150, 99), (199, 149)]:
            column, row = ((np.array([x, y]) + 0.5) * 0.64 - [64, 32]) * side / 64
            assert full[y, x] == plane[int(row), int(column)]
        assert (full[:50] == full[150:]).all()
        assert (full[:, :100] == -1).all()
        assert (full[50:150, 100:200] >= 0).all()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.full((1, 3, 4, 4), np.nan, np.float32), "NaN or an infinity"),
        (np.zeros((1, 3), np.float32), "not a mask"),
        (np.full((1, 4, 4), 255), "class 255"),
    ],
)
def test_an_output_that_is_no_mask_is_the_servers_failure(output, message):
    with pytest.raises(InvalidOutput, match=message):
        mask_of(output, ImagePlacement((4, 4), (4, 4), (1.0, 1.0), (0, 0)))


# ---------------------------------------------------------------- other inputs


def test_a_model_that_normalizes_itself_gives_the_same_probabilities(digits_bundle, digits, tmp_path):
    from bundles import exported

    bundle = exported("digits", embed_preprocess=True, batch=3)
    file = encoded(Image.fromarray(digits[0]).resize((50, 70)), "PNG")
    ours, plain = (prepare(one, file, "image/png", PictureLimits()).feeds["x"] for one in (bundle, digits_bundle))
    assert ours.dtype == np.uint8
    # A fixed batch is filled up.
    assert ours.shape == (3, 28, 28, 1)
    run = [one.session("onnxruntime-cpu").run({"x": fed})["y"][0] for one, fed in ((bundle, ours), (digits_bundle, plain))]
    np.testing.assert_allclose(*run, rtol=1e-4, atol=1e-5)


def like(**manifest):
    inputs = [
        TensorSpec.from_json(one)
        for one in manifest.pop("inputs", [{"name": "x", "dtype": "float32", "shape": ["n", 3, "h", "w"]}])
    ]
    steps = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3, "layout": "NCHW"}
    return SimpleNamespace(name="m", inputs=inputs, manifest={"task": "classification", "preprocess": steps} | manifest)


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (like(preprocess=None), "no 'preprocess'"),
        (like(task=None), "no 'task'"),
        (like(task="detection", postprocess={"decode": "none"}), "raw head maps"),
        (like(task="detection", postprocess=None), "raw head maps"),
        (like(inputs=[{"name": "x", "dtype": "float32", "shape": ["n", 10]}]), "not a picture of 1 or 3 channels"),
        (like(inputs=[{"name": name, "dtype": "float32", "shape": ["n", 3, 8, 8]} for name in "xy"]), "has 2 inputs"),
    ],
)
def test_what_a_model_lacks_to_take_pictures_is_named(bundle, message):
    assert message in unsupported_reason(bundle)[0]
    assert unsupported_reason(like()) is None


def test_errors_of_a_picture_have_the_status_of_their_kind():
    kinds = {
        PictureTooLarge("large"): 413,
        InvalidOutput("NaN"): 500,
        InputError("damaged"): 400,
        InvalidArgument("no form"): 400,
    }
    assert {error: serve_error(error).http for error in kinds} == kinds
    assert serve_error(PictureTooLarge("large", "crop it")).text == "large; crop it"


def test_a_model_of_any_size_is_not_fed_what_would_exhaust_the_memory():
    assert prepare(like(), encoded(gradient(30, 20), "PNG"), "", PictureLimits()).feeds["x"].shape == (1, 3, 20, 30)
    with pytest.raises(PictureTooLarge, match="2001x2000 pixels exceeds the limit of 4000000"):
        prepare(like(), encoded(Image.new("L", (2001, 2000)), "PNG"), "", PictureLimits())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v2/models/nosuch/predict", 404, "no model called 'nosuch'"),
        ("/v2/models/digits/versions/7/predict", 404, "no version '7'"),
        ("/v2/models/nosuch/relus", 404, "no model called 'nosuch'"),
        ("/v2/models/model/predict", 400, "no 'preprocess'"),
        ("/v2/models/model/relus", 400, "no 'preprocess'"),
        (f"{DIGITS}?top=0", 400, "top is '0'"),
        (f"{DIGITS}?top=many", 400, "top is 'many'"),
        (f"{DIGITS}?topk=3", 400, "no option 'topk'"),
        (f"{DETECT}?threshold=1.5", 400, "threshold is '1.5'"),
        (f"{DETECT}?threshold=nan", 400, "threshold is 'nan'"),
        (f"{DETECT}?threshold=0.01", 400, "finds nothing below 0.05"),
        (f"{SEGMENT}?mask=jpeg", 400, "mask is 'jpeg', and must be one of json, png, none"),
        (f"{DIGITS}?mask=png", 400, "makes none: its task is classification"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(server, path, status, message):
    answer = ask(server, path, encoded(gradient(), "PNG"))
    assert answer[0] == status
    assert message in answer[1]["error"]


@pytest.mark.parametrize("path", [DIGITS, "/v2/models/digits/relus"])
def test_bad_pictures_are_refused_in_words(server, path):
    file = encoded(gradient(300, 200), "PNG")
    assert ask(server, path, file[: len(file) // 2])[0] == 400
    assert "damaged" in ask(server, path, file[: len(file) // 2])[1]["error"]
    assert "not a JPEG" in ask(server, path, b"nonsense")[1]["error"]
    assert ask(server, path, file, "application/json")[0] == 400
    assert ask(server, path, b"")[0] == 400
    assert server.ask("GET", path)[0] == 404


def test_a_bomb_is_refused_without_being_unpacked(server):
    def most_memory():
        lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024

    ask(server, DIGITS, encoded(gradient(), "PNG"))
    before = most_memory() if Path("/proc").is_dir() else 0
    bomb = png(20_000, 20_000, 8, 2, b"\0" * 60_001)
    assert len(bomb) < 1000
    for _ in range(8):
        status, reply, _ = ask(server, DIGITS, bomb)
        assert status == 413
        assert "40000000 pixels" in reply["error"]
    # Unpacked it would be 1,200 MB.
    assert (most_memory() if Path("/proc").is_dir() else 0) - before < 100


def test_the_largest_picture_is_an_option(digits_bundle, command):
    with Running(digits_bundle.path, "--max-pixels", "0.0015") as running:
        assert ask(running, DIGITS, encoded(gradient(30, 50), "PNG"))[0] == 200
        assert ask(running, DIGITS, encoded(gradient(31, 50), "PNG"))[0] == 413
    for wrong in ("0", "nan", "179"):
        answer = command("serve", digits_bundle.path, "--max-pixels", wrong)
        assert answer.code == 2
        assert "--max-pixels" in answer.stderr


def test_wishes_are_read_from_the_query():
    assert PredictOptions.parse("") == PredictOptions(5, None)
    assert PredictOptions.parse("top=3&threshold=0.25&mask=png") == PredictOptions(3, 0.25, "png")
    with pytest.raises(InvalidArgument, match="no option"):
        PredictOptions.parse("tüp=3")


# ---------------------------------------------------------------- many at a time


def test_each_of_many_clients_gets_the_answer_to_its_own_picture(server, digits):
    files = [encoded(Image.fromarray(one), "PNG") for one in digits]
    alone = [ask(server, f"{DIGITS}?top=10", file)[1]["predictions"] for file in files]

    def payload(index):
        return index % len(files), ask(server, f"{DIGITS}?top=10", files[index % len(files)])

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(payload, range(128)))
    for index, (status, reply, _) in answers:
        assert status == 200
        assert [one["index"] for one in reply["predictions"]] == [one["index"] for one in alone[index]]
        np.testing.assert_allclose(
            [one["probability"] for one in reply["predictions"]], [one["probability"] for one in alone[index]], rtol=1e-3
        )


def test_the_server_answers_others_while_it_decodes(server):
    large = encoded(Image.new("RGB", (6300, 6300), "gray"), "PNG")
    answers, done = [], threading.Event()

    def send():
        answers.append(ask(server, DIGITS, large))
        done.set()

    sending = threading.Thread(target=send)
    sending.start()
    healthy = 0
    while not done.is_set():
        healthy += server.ask("GET", "/v2/health/live")[0] == 200
    sending.join()
    assert answers[0][0] == 200
    assert answers[0][1]["timing"]["decode_ms"] > 50
    assert healthy > 10


# ---------------------------------------------------------------- the Relus


def test_relus_are_those_of_a_tapped_session(server, digits_bundle, digits):
    status, reply, _ = ask(server, "/v2/models/digits/relus", encoded(Image.fromarray(digits[0]), "PNG"))
    assert status == 200
    relus = find_relus(load_model(digits_bundle.onnx))
    assert [one["name"] for one in reply["relus"]] == [relu.node for relu in relus]
    with closing(load(digits_bundle, "onnxruntime-cpu", taps=tuple(relus), threads=1)) as session:
        outputs = session.run({"x": to_input(digits_bundle, digits[0][None, ..., None])})
    for relu, one in zip(relus, reply["relus"], strict=True):
        values = outputs[relu.output][0].reshape(one["channels"], -1).astype(np.float64)
        assert one["fired"] == pytest.approx((values.max(1) > 0).mean())
        assert one["positive"] == pytest.approx((values > 0).mean())
        np.testing.assert_allclose(np.array(one["means"]) / 255 * one["peak"], values.mean(1), atol=one["peak"] / 255)
    assert {"load_ms", "compute_ms"} == set(reply["timing"])


def test_the_second_session_is_loaded_once_and_again_after_a_reload(detector, tmp_path):
    path = tmp_path / "one.rdb"
    retold(detector, path, "one")
    file = encoded(gradient(64, 64), "PNG")
    with Running(path, "--threads", "1", "--allow-admin") as running:
        first, second = (ask(running, "/v2/models/one/relus", file)[1] for _ in range(2))
        assert first["relus"] == second["relus"]
        assert second["timing"]["load_ms"] < first["timing"]["load_ms"] / 10
        running.ask("POST", "/v2/repository/models/one/load", {})
        assert ask(running, "/v2/models/one/relus", file)[1]["timing"]["load_ms"] > 10 * second["timing"]["load_ms"]
        assert running.stop() == 0


def test_a_channel_that_fired_is_never_shown_as_silent():
    values = np.zeros((1, 4, 10, 10), np.float32)
    values[0, 1, 0, 0], values[0, 2], values[0, 3] = 1e-6, 5, -1
    reply = channels_of(values)
    assert reply["means"] == [0, 1, 255, 0]
    assert (reply["channels"], reply["fired"], reply["positive"], reply["peak"]) == (4, 0.5, 101 / 400, 5)
    assert channels_of(np.zeros((1, 3), np.float32)) == {"channels": 3, "fired": 0, "positive": 0, "peak": 0, "means": [0, 0, 0]}


def test_looking_at_relus_beyond_what_waits_is_refused_and_harms_nobody(server, digits):
    file = encoded(Image.fromarray(digits[0]), "PNG")
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(lambda _: ask(server, "/v2/models/digits/relus", file)[0], range(80)))
    assert set(statuses) <= {200, 503}
    assert 200 in statuses
    until(lambda: ask(server, "/v2/models/digits/relus", file)[0] == 200)


# ---------------------------------------------------------------- the page


def test_the_page_is_one_file_that_may_only_talk_to_its_server(server):
    import base64
    import hashlib

    status, page, headers = server.ask("GET", "/")
    text = page.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(one.split(" ", 1) for one in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        assert text.count(f"<{tag}") == 1
        inside = text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert "unsafe" not in headers["content-security-policy"]
    assert [part[:12] for part in text.split("://")[1:]] == ["www.w3.org/2"]
    assert " style=" not in text
    assert " on" not in {part[:3] for part in text.split("<script>")[0].split('"') if part.rstrip().endswith("=")}


def test_the_page_is_told_which_models_take_pictures(server):
    reply = {one["name"]: one for one in server.ask("GET", "/page/models")[1]["models"]}
    assert reply["digits"]["watched"]
    assert reply["digits"]["drawable"]
    assert (reply["digits"]["channels"], reply["digits"]["width"], reply["digits"]["classes"]) == (1, 28, 10)
    assert reply["digit_detector"]["threshold"] == 0.05
    assert "no 'preprocess'" in reply["model"]["reason"]
