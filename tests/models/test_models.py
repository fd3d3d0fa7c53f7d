"""What ships is what its card says: weights, slices, recipes, metrics."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from bundles import exported  # noqa: E402

from relu_deploy.bundle import sha256  # noqa: E402
from relu_deploy.data.datasets import load_dataset  # noqa: E402
from relu_deploy.paths import models_folder  # noqa: E402
from relu_deploy.tasks.metrics import score  # noqa: E402
from relu_deploy.zoo.recipes import build, recipe, recipes, weights_file  # noqa: E402

SHIPPED = [name for name, known in recipes().items() if known.weights == "shipped"]
TRAINED = [name for name, known in recipes().items() if known.weights]


def test_the_trained_models_and_mobilenet_are_there():
    assert set(SHIPPED) == {"digits", "digit_detector", "digit_segmenter", "language_id"}
    assert set(TRAINED) == {*SHIPPED, "mobilenet_v2"}


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_small_and_those_of_the_recipe(name):
    file = weights_file(recipe(name))
    assert file.stat().st_size < 4_000_000
    assert sha256(file) == recipe(name).weights_facts["sha256"]
    build(name, weights="default")


@pytest.mark.parametrize("name", TRAINED)
def test_the_card_states_the_metric_of_the_recipe_and_the_size_of_the_network(name):
    card = (models_folder() / name / "README.md").read_text()
    metric = recipe(name).metric
    assert f"{recipe(name).parameters:,} parameters" in card
    if name in SHIPPED:
        assert f"{metric['value']:.4f}".rstrip("0") in card
    else:
        assert f"{round(metric['value'] * 8)} of 8" in card


def test_the_recipes_keep_the_promised_quality():
    assert recipe("digits").metric["value"] >= 0.992
    assert recipe("digit_detector").metric["value"] >= 0.75
    assert recipe("digit_detector").metric["AP50"] >= 0.97
    assert recipe("digit_segmenter").metric["value"] >= 0.9
    assert recipe("language_id").metric["value"] >= 0.85


LEAST = {"digits": 0.992, "digit_detector": 0.75, "digit_segmenter": 0.88, "mobilenet_v2": 0.6, "language_id": 0.85}
SAMPLES = {"digits": 1000, "digit_detector": 100, "digit_segmenter": 100, "mobilenet_v2": 8, "language_id": 1300}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_the_model_as_deployed_is_as_good_on_its_shipped_data(tmp_path, name, least):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    try:
        weights_file(recipe(name))
    except Exception as why:
        pytest.skip(str(why))
    bundle = exported(name)
    dataset = load_dataset(bundle, name)
    metric = score(bundle.manifest, bundle.session("onnxruntime-cpu").run, dataset, batch=16)
    assert metric.value >= least
    assert metric.samples == SAMPLES[name]


def test_the_slices_are_real_and_whole():
    with np.load(models_folder() / "digits" / "test.npz") as digits:
        assert digits["x"].shape == (1000, 28, 28, 1)
        assert digits["x"].dtype == np.uint8
        assert set(digits["labels"]) == set(range(10))
    with np.load(models_folder() / "digit_detector" / "test.npz") as scenes:
        assert scenes["x"].shape == (100, 128, 128, 1)
        assert set(scenes["image"]) == set(range(100))
        low, high = scenes["boxes"][:, :2], scenes["boxes"][:, 2:]
        assert (low < high).all()
        assert (low >= 0).all()
        assert (high <= 128).all()
    with np.load(models_folder() / "digit_segmenter" / "test.npz") as scenes:
        assert scenes["x"].shape == (100, 128, 128, 1)
        assert scenes["mask"].shape == (100, 128, 128)
        assert set(np.unique(scenes["mask"])) == set(range(11))
        # Ink is lighter than what it is drawn on, clutter included.
        assert scenes["x"][scenes["mask"] > 0].mean() > 2 * scenes["x"][scenes["mask"] == 0].mean()


def test_the_texts_that_ship_are_words_of_the_free_lists_and_phrases_of_all_languages(monkeypatch):
    monkeypatch.syspath_prepend(str(models_folder() / "language_id"))
    import words

    labels = list(recipe("language_id").labels)
    assert labels == list(words.LISTS)
    lines = (models_folder() / "language_id" / "test.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if not line.startswith("#")]
    said = {tuple(pair) for pair in pairs if " " in pair[1]}
    assert {label: sum(mine == label for mine, _ in said) for label in labels} == dict.fromkeys(labels, 30)
    alone = [(label, text) for label, text in pairs if " " not in text]
    assert {label: sum(mine == label for mine, _ in alone) for label in labels} == {
        label: 250 if label in ("Dutch", "English", "Polish", "Spanish") else 0 for label in labels
    }
    assert all(words.is_held_out(word) for _, word in alone)


def test_a_tenth_of_all_stems_is_held_out_and_forms_of_a_stem_stay_together(monkeypatch):
    monkeypatch.syspath_prepend(str(models_folder() / "language_id"))
    import words

    stems = [f"{first}{second}{third}xy" for first in "abcdefghij" for second in "klmnopqrst" for third in "abcdefghij"]
    assert 70 < sum(map(words.is_held_out, stems)) < 130
    for stem in stems[:200]:
        assert words.is_held_out(stem) == words.is_held_out(stem.upper() + "ing")


def cut_out(ink_extent):
    """Return the ink of the first 100 shipped digits, and their labels."""
    with np.load(models_folder() / "digits" / "test.npz") as data:
        return [image[ink_extent(image)] for image in data["x"][:100, ..., 0]], data["labels"][:100]


def test_scenes_follow_from_their_seed_and_boxes_hold_the_ink(monkeypatch):
    monkeypatch.syspath_prepend(str(models_folder() / "digit_detector"))
    import scenes

    digits, labels = cut_out(scenes.ink_extent)
    one, same, other = (scenes.make_scenes(digits, labels, 5, seed) for seed in (0, 0, 1))
    for first, second in zip(one, same, strict=True):
        np.testing.assert_array_equal(first.pixels, second.pixels)
    assert any(not np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    for scene in one:
        for left, top, right, bottom in scene.boxes.astype(int):
            inside = scene.pixels[top:bottom, left:right]
            assert inside.max() > 120
            assert 16 * 0.7 <= bottom - top <= 48


def test_cluttered_scenes_follow_from_their_seed_and_masks_hold_the_ink_of_the_digits_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(models_folder() / "digit_segmenter"))
    monkeypatch.syspath_prepend(str(models_folder() / "digit_detector"))
    import clutter
    import scenes

    digits, labels = cut_out(scenes.ink_extent)
    one, same, other = (clutter.make_scenes(digits, labels, 5, seed) for seed in (0, 0, 1))
    for first, second in zip(one, same, strict=True):
        np.testing.assert_array_equal(first.pixels, second.pixels)
        np.testing.assert_array_equal(first.mask, second.mask)
    assert any(not np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    for scene in one:
        outside = np.ones_like(scene.mask, bool)
        for (left, top, right, bottom), label in zip(scene.boxes.astype(int), scene.labels, strict=True):
            inside = scene.mask[top:bottom, left:right]
            outside[top:bottom, left:right] = False
            assert 0.05 < (inside == 1 + label).mean() < 0.9
            assert clutter.SHORTEST * 0.7 <= bottom - top <= 48
        assert (scene.mask[outside] == 0).all()


def test_every_recipe_is_valid_json_with_a_card_beside_it():
    for file in models_folder().glob("*/recipe.json"):
        assert json.loads(file.read_text())["name"] == file.parent.name
        assert Path(file.with_name("README.md")).is_file()
