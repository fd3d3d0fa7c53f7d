"""Each preset of `--preprocess` gives the arrays of the library that it is named after, within one gray level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import preprocessing as benchmark
import pytest
import torchvision_import
from PIL import Image

from relu_deploy.errors import InputError, UsageError
from relu_deploy.preprocessing.apply import place
from relu_deploy.preprocessing.description import Resize
from relu_deploy.preprocessing.presets import PRESETS, load_preprocess
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.preprocessing.resample import resample
from relu_deploy.tensors import TensorSpec

SAMPLES = Path(__file__).parents[1] / "resources" / "tensorflow_resize.npz"
#: sides that are odd, even, multiples of the model's and below it
SIZES = [(301, 200), (512, 512), (97, 640), (448, 448), (60, 45)]
NAMES = ["chelsea.png", "rocket.jpg", "coffee.png"]


def synthetic():
    """Return noise over gradients: every interpolation differs on it, and it takes no package."""
    generator = np.random.default_rng(0)
    for width, height in SIZES:
        smooth = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 90, width))[..., None] + [0, 20, 40]
        yield Image.fromarray((smooth + generator.integers(0, 90, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures():
    try:
        return [*synthetic(), *benchmark.photographs(NAMES).values()]
    except SystemExit as error:
        pytest.skip(str(error))


def largest(preset, reference, pictures, side):
    return max(float(benchmark.levels(preset, benchmark.ours(preset, one, side), reference(one, side)).max()) for one in pictures)


def test_torchvision_is_its_classification_preset_bit_for_bit(pictures):
    torchvision_import.torchvision()
    for side in (224, 299):
        assert largest("torchvision", benchmark.torchvision_preset, pictures, side) < 1e-3


def test_torchvision_tensor_is_its_second_version_without_antialiasing(pictures):
    torchvision_import.torchvision()
    # Where its kernel for uint8 has no AVX2 it rounds once instead of after each axis.
    assert largest("torchvision-tensor", benchmark.torchvision_on_tensors, pictures, 224) <= 1.001


def test_the_first_version_of_torchvision_rounds_tensors_once(pictures):
    torchvision_import.torchvision()
    import torch
    from torchvision.transforms import functional

    once = load_preprocess({"preset": "torchvision-tensor", "resize": {"rounding": "once"}}).resize
    for picture in pictures:
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        expected = functional.resize(tensor, [150, 130], antialias=False).permute(1, 2, 0).numpy()
        apart = np.abs(resample(np.asarray(picture), (150, 130), once).astype(int) - expected)
        assert apart.max() <= 1
        # The other rounding differs in a quarter of the pixels.
        assert (apart > 0).mean() < 5e-3


def test_bicubic_torchvision_is_that_of_pillow(pictures):
    torchvision_import.torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    steps = load_preprocess({"preset": "torchvision", "resize": {"interpolation": "bicubic", "size": 236}, "crop": 224})
    reference = ImageClassification(crop_size=224, resize_size=236, interpolation=InterpolationMode.BICUBIC)
    spec = TensorSpec("x", "float32", ("n", 3, 224, 224))
    for picture in pictures:
        ours = benchmark.normalize(place(picture, spec, steps)[0], steps.fitted(spec))[0]
        assert benchmark.levels("torchvision", ours, reference(picture).numpy()).max() < 1e-3


@pytest.mark.parametrize("preset", ["opencv", "caffe"])
def test_opencv_and_caffe_are_opencvs_resize_and_blob(preset, pictures):
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    for side in (224, 96):
        assert largest(preset, benchmark.REFERENCES[preset][1], pictures, side) <= 1.001


@pytest.mark.parametrize(
    ("interpolation", "flag"), [("nearest", "NEAREST"), ("bilinear", "LINEAR"), ("bicubic", "CUBIC"), ("area", "AREA")]
)
def test_every_interpolation_of_opencv_is_reproduced(interpolation, flag, pictures):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    resize = load_preprocess({"preset": "opencv", "resize": {"interpolation": interpolation}}).resize
    for picture in pictures:
        pixels = np.asarray(picture)
        for height, width in ((224, 224), (50, 100), (310, 700)):
            expected = cv2.resize(pixels, (width, height), interpolation=getattr(cv2, f"INTER_{flag}"))
            assert np.abs(resample(pixels, (height, width), resize).astype(int) - expected).max() <= 1


def test_ultralytics_is_its_letterbox(pictures):
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    for side in (320, 97):
        assert largest("ultralytics", benchmark.letterbox_by_formula, pictures, side) <= 1.001


def test_boxes_of_a_letterboxed_picture_lie_where_they_are_in_it():
    spec = TensorSpec("x", "float32", ("n", 3, 64, 64))
    pixels, placement = place(Image.new("RGB", (200, 100), "white"), spec, PRESETS["ultralytics"])
    assert (pixels[0, :16] == 114).all()
    assert (pixels[0, 16:48] == 255).all()
    assert (pixels[0, 48:] == 114).all()
    assert placement.to_picture(np.array([[0, 16, 64, 48], [16, 24, 32, 40]])).tolist() == [[0, 0, 200, 100], [50, 25, 100, 75]]
    assert placement.seen == (0, 0, 200, 100)
    plane = placement.plane_to_picture(np.arange(64)[:, None].repeat(64, 1), -1)
    assert (plane[0, 0], plane[99, 0]) == (16, 47)


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "rocket.jpg"])
def test_keras_is_tensorflows_resize_to_its_rounding(name):
    """The samples were made by benchmarks/preprocessing.py with the TensorFlow that they name."""
    with np.load(SAMPLES) as samples:
        pixels, expected = samples[f"{name}/pixels"], samples[f"{name}/resized"]
    for preset in ("keras", "tensorflow"):
        found = resample(pixels, expected.shape[:2], PRESETS[preset].resize)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-3


def test_a_resize_to_the_same_size_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    for steps in PRESETS.values():
        assert (resample(pixels, (9, 7), steps.resize) == pixels).all()


def test_the_average_of_an_area_and_of_a_constant_are_exact():
    pixels = np.array([[0, 10, 20], [30, 40, 50], [60, 70, 80]], np.uint8)[..., None]
    area = Resize(interpolation="area", antialias=False, rounding="none")
    assert resample(pixels, (1, 1), area).item() == pytest.approx(40)
    # Half of the middle row and column belong to each of four quarters.
    quarter = (0 + 10 / 2 + 30 / 2 + 40 / 4) / 2.25
    assert resample(pixels, (2, 2), area)[0, 0].item() == pytest.approx(quarter, rel=1e-6)
    flat = np.full((31, 17, 3), 201, np.uint8)
    for interpolation in ("nearest", "bilinear", "bicubic", "area"):
        for rounding in ("per_axis", "fixed_point", "once"):
            for antialias in (True, False):
                resize = Resize(interpolation=interpolation, rounding=rounding, antialias=antialias)
                assert (resample(flat, (13, 40), resize) == 201).all()


def test_older_manifests_are_read_as_they_were_applied():
    """Until now: Pillow's bilinear filter, the long side rounded, the center's offset rounded down."""
    spec = TensorSpec("x", "float32", ("n", 3, 48, 48))
    for picture in synthetic():
        for steps, side in (({"resize": 72, "crop": 48}, 72), ({"crop": 48}, 48)):
            width, height = (round(one * (side / min(picture.size))) for one in picture.size)
            left, top = (width - 48) // 2, (height - 48) // 2
            resized = picture.resize((width, height), Image.Resampling.BILINEAR)
            expected = np.asarray(resized.crop((left, top, left + 48, top + 48)))
            pixels, placement = place(picture, spec, steps)
            assert (pixels[0] == expected).all()
            assert placement.offset == (left, top)
        expected = np.asarray(picture.resize((48, 48), Image.Resampling.BILINEAR))
        for steps in ({}, {"resize": 300}):
            assert (place(picture, spec, steps)[0][0] == expected).all()


def test_a_description_is_its_json_again():
    for steps in PRESETS.values():
        fitted = steps.fitted(TensorSpec("x", "float32", ("n", 3, 64, 32)))
        for one in (steps, fitted):
            again = read_preprocess(one.to_json(), strict=True)
            assert again.to_json() == one.to_json()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "opencw"}, "there is no preset 'opencw'"),
        ({"preset": ["opencv"]}, "there is no preset"),
        ({"preset": {}}, "there is no preset"),
        ({"colour": "BGR"}, "colour is not a field"),
        ({"color": "GBR"}, "color cannot be 'GBR'"),
        ({"resize": {"mode": "squeeze"}}, "mode cannot be 'squeeze'"),
        ({"resize": {"antialias": 1}}, "antialias is neither true nor false"),
        ({"resize": {"pad": 3}}, "resize.pad is not a field"),
        ({"resize": {"mode": "shortest_side", "size": [2, 3]}}, "resize.size must be one number"),
        ({"resize": {"mode": "letterbox", "size": [2]}}, "size must be height and width"),
        ({"resize": {"size": 0}}, "size must be a number of pixels"),
        ({"resize": {"pad_value": 300}}, "pad_value must be a gray level"),
        ({"crop": [1, 2, 3]}, "crop must be height and width"),
        ({"mean": 0.5}, "mean is not a list"),
        ({"mean": [0.5], "std": [1, 1, 1]}, "different lengths"),
        ({"std": [0.0]}, "std must be positive"),
        ({"scale": "1/255"}, "scale is not a number"),
    ],
)
def test_a_wrong_description_names_its_field(fields, message):
    with pytest.raises(InputError, match=message):
        load_preprocess(fields)


def test_names_and_files_that_there_are_not_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="no preset 'torchvison'") as raised:
        load_preprocess("torchvison")
    assert "torchvision" in raised.value.hint
    with pytest.raises(UsageError, match="does not exist"):
        load_preprocess(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_preprocess(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="not hold a JSON object"):
        load_preprocess(tmp_path / "list.json")
