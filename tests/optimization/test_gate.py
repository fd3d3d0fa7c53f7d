"""How right a candidate is: which metric is taken when, and that broken answers never pass."""

from types import SimpleNamespace

import numpy as np
import pytest

from relu_deploy.data.datasets import Dataset
from relu_deploy.errors import InputError
from relu_deploy.optimization.accuracy.compared_tensors import ComparedTensors
from relu_deploy.optimization.accuracy.gate import MAX_DROP, AccuracyEvaluator, distance

ROWS = 40


def judge(run, targets=None, **manifest):
    x = np.arange(ROWS, dtype=np.float32)[:, None]
    bundle = SimpleNamespace(name="m", manifest={"task": None, **manifest})
    return AccuracyEvaluator.prepare(bundle, Dataset("d", {"x": x}, targets or {}), run, batch=8)


def classifier(wrong=0):
    def run(feeds):
        row = feeds["x"][:, 0].astype(int)
        answer = np.where(row < wrong, (row + 1) % 4, row % 4)
        return {"y": np.eye(4, dtype=np.float32)[answer]}

    return run


def test_with_labels_it_is_accuracy_and_a_row_with_two_labels_takes_either():
    labels = (np.arange(ROWS) % 4)[:, None].repeat(2, 1)
    labels[:, 1] = -1
    one = judge(classifier(10), {"labels": labels}, task="classification")
    assert (one.before.name, one.before.value) == ("top1", 0.75)
    assert one.score(classifier(20)).value == 0.5
    assert one.max_drop == MAX_DROP["top1"] == 0.005


@pytest.mark.parametrize("task", ["classification", None])
def test_without_labels_a_classifier_is_asked_whether_it_agrees_with_float32(task):
    one = judge(classifier(), task=task)
    assert (one.before.name, one.before.value, one.before.samples) == ("top1_agreement", 1.0, ROWS)
    assert one.score(classifier(4)).value == 0.9


def test_anything_else_is_asked_for_its_signal():
    def run(feeds, scale=1.0):
        return {"a": np.ones((len(feeds["x"]), 2, 3), np.float32), "b": np.full((len(feeds["x"]), 2), scale, np.float32)}

    one = judge(run)
    assert one.before.name == "signal"
    assert one.score(lambda feeds: run(feeds, 1.1)).value == pytest.approx(0.9)


def test_detections_are_held_against_the_sure_ones_of_float32():
    def run(feeds, moved=0.0):
        rows = len(feeds["x"])
        boxes = np.tile(np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32), (rows, 1, 1)) + np.float32(moved)
        return {"boxes": boxes, "scores": np.tile(np.array([[0.9, 0.0], [0.0, 0.8]], np.float32), (rows, 1, 1))}

    one = judge(run, task="detection", postprocess={"decode": "boxes"})
    assert one.before.name == "AP_agreement"
    assert one.score(run).value == pytest.approx(1.0)
    assert one.score(lambda feeds: run(feeds, 2.0)).value < 0.7
    assert one.score(lambda feeds: run(feeds, 100.0)).value == pytest.approx(0.0)


def segmenter(moved=0):
    """Return a model whose masks have stripes of three classes, one column wide, and for `moved` rows one further."""

    def run(feeds):
        row = feeds["x"][:, 0].astype(int)
        stripes = (np.arange(6)[None, None] + np.zeros((len(row), 4, 1), int) + (row < moved)[:, None, None]) % 3
        return {"y": np.eye(3, dtype=np.float32)[stripes].transpose(0, 3, 1, 2)}

    return run


def test_masks_are_scored_by_mean_iou_and_void_pixels_are_not():
    true = np.tile(np.arange(6) % 3, (ROWS, 4, 1))
    true[:, 0, :] = 255
    one = judge(segmenter(10), {"mask": true}, task="segmentation")
    # A quarter of each class's pixels is wrong: 30 of 40 rows over 50.
    assert (one.before.name, one.before.value, one.before.samples) == ("mIoU", pytest.approx(30 / 50), ROWS)
    assert one.score(segmenter()).value == 1.0
    assert one.max_drop == MAX_DROP["mIoU"] == 0.005


def test_without_true_masks_a_segmenter_is_asked_whether_it_agrees_with_float32():
    one = judge(segmenter(), task="segmentation")
    assert (one.before.name, one.before.value, one.before.samples) == ("mIoU_agreement", 1.0, ROWS)
    assert one.answers == {}  # logits of every pixel are not kept
    found = one.score(segmenter(10))
    assert (found.name, found.value) == ("mIoU_agreement", pytest.approx(30 / 50))
    with pytest.raises(InputError, match="itself gives NaN"):
        judge(lambda feeds: {"y": np.full((len(feeds["x"]), 3, 2, 2), np.nan, np.float32)}, task="segmentation")


def test_what_is_called_a_segmenter_and_gives_no_masks_is_asked_for_its_signal():
    assert judge(lambda feeds: {"y": np.ones((len(feeds["x"]), 5, 2), np.float32)}, task="segmentation").before.name == "signal"


@pytest.mark.parametrize(
    ("mask", "said"), [(np.zeros((ROWS, 9, 9), int), "9, 9"), (np.full((ROWS, 4, 6), 3), "class 3 is not one of 0 to 2")]
)
def test_masks_that_are_not_the_models_are_refused_by_name(mask, said):
    with pytest.raises(InputError, match=f"masks of d cannot be compared.*{said}"):
        judge(segmenter(), {"mask": mask}, task="segmentation")


def test_where_float32_is_sure_of_nothing_there_is_no_agreement_of_boxes():
    def run(feeds):
        return {
            "boxes": np.ones((len(feeds["x"]), 2, 4), np.float32),
            "scores": np.full((len(feeds["x"]), 2, 2), 0.1, np.float32),
        }

    assert judge(run, task="detection", postprocess={"decode": "boxes"}).before.name == "signal"


def test_answers_that_are_not_finite_have_no_signal_and_float32_that_is_not_is_refused():
    def broken(feeds):
        return {"y": np.full((len(feeds["x"]), 2, 2), np.nan, np.float32)}

    true = {"y": np.ones((3, 2), np.float32)}
    assert distance({"y": np.full((3, 2), np.inf, np.float32)}, true) == np.inf
    assert distance({"y": np.ones((3, 3), np.float32)}, true) == np.inf
    with pytest.raises(InputError, match="itself gives NaN"):
        judge(broken)


def test_classes_that_are_the_only_output_are_compared_row_by_row():
    def run(feeds, wrong=0):
        row = feeds["x"][:, 0].astype(np.int64)
        return {"y": np.where(row < wrong, row + 1, row) % 4}

    evaluator = judge(run)
    assert (evaluator.before.name, evaluator.max_drop) == ("top1_agreement", 0.05)
    assert evaluator.score(lambda feeds: run(feeds, 4)).value == 0.9
    assert evaluator.score(run).value == 1.0


def test_other_integers_count_where_they_are_equal_and_tables_by_their_rows():
    def masks(feeds, wrong=0):
        rows = len(feeds["x"])
        return {"y": np.arange(10) + np.zeros((rows, 1), np.int64) + (np.arange(10) < wrong)}

    evaluator = judge(masks)
    assert evaluator.before.name == "agreement"
    assert evaluator.score(lambda feeds: masks(feeds, 2)).value == pytest.approx(0.8)

    def found(feeds, kept=5):
        """Five detections a run, named by their row and class; a variant finds them in another order, and fewer."""
        start = int(feeds["x"][0, 0])
        table = np.stack([start + np.arange(5), np.arange(5) % 2], 1)
        return {"y": table[::-1][5 - kept :] if kept < 5 else table}

    evaluator = judge(found)
    assert evaluator.before.name == "agreement"
    assert evaluator.score(lambda feeds: found(feeds, 4)).value == pytest.approx(0.8)


def test_integers_that_are_rounded_numbers_have_a_signal():
    def run(feeds, more=0):
        return {"y": np.full((len(feeds["x"]), 6), 100 + more)}

    bundle = SimpleNamespace(name="m", manifest={"task": None})
    x = np.arange(ROWS, dtype=np.float32)[:, None]
    evaluator = AccuracyEvaluator.prepare(bundle, Dataset("d", {"x": x}, {}), run, batch=8, compared=ComparedTensors({"y"}))
    assert evaluator.before.name == "signal"
    assert evaluator.score(lambda feeds: run(feeds, 3)).value == pytest.approx(0.97)
