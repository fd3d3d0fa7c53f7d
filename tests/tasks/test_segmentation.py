"""From logits of pixels to classes, and how far two masks agree."""

import numpy as np
import pytest

from relu_deploy.data.datasets import load_dataset
from relu_deploy.errors import InputError
from relu_deploy.tasks.segmentation import VOID, classes_of_pixels, confusion, mean_iou


def test_the_class_of_a_pixel_is_its_largest_logit_and_of_equal_ones_the_lower():
    logits = np.zeros((2, 3, 2, 2), np.float32)
    logits[0, 2, 0, 1] = logits[1, 1, 1, 0] = 1
    np.testing.assert_array_equal(classes_of_pixels(logits), [[[0, 2], [0, 0]], [[0, 0], [1, 0]]])


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
def test_a_graph_may_have_chosen_the_classes_itself(shape):
    chosen = np.arange(40).reshape(shape).astype(np.uint8)
    np.testing.assert_array_equal(classes_of_pixels(chosen), chosen.reshape(2, 4, 5))


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float32), np.zeros((2, 1, 4, 4), np.float32), np.zeros((2, 4, 4), bool)])
def test_what_is_no_mask_is_refused(array):
    with pytest.raises(ValueError, match="neither logits"):
        classes_of_pixels(array)


def test_mean_iou_is_its_definition_class_by_class():
    generator = np.random.default_rng(0)
    true, found = generator.integers(0, 5, (2, 3, 20, 30))
    true[0, :4] = VOID
    known = true != VOID
    ious = [((true == k) & (found == k) & known).sum() / (((true == k) | (found == k)) & known).sum() for k in range(5)]
    counts = sum(confusion(one, other, 7) for one, other in zip(found, true, strict=True))
    assert counts.sum() == known.sum()
    assert mean_iou(counts) == pytest.approx(np.mean(ious), rel=1e-12)  # classes 5 and 6 occur nowhere
    assert 0.05 < np.mean(ious) < 0.2


def test_a_perfect_mask_scores_one_and_a_wrong_one_zero():
    true = np.array([[0, 1, 2, VOID]])
    assert mean_iou(confusion(np.array([[0, 1, 2, 1]]), true, 3)) == 1
    assert mean_iou(confusion(np.array([[1, 2, 0, 0]]), true, 3)) == 0
    assert mean_iou(confusion(true, np.full_like(true, VOID), 3)) == 0


@pytest.mark.parametrize(
    ("found", "true", "said"), [([3], [0], "class 3 .* 0 to 2"), ([0], [7], "class 7"), ([0], [-1], "class -1")]
)
def test_a_class_out_of_range_is_refused_and_named(found, true, said):
    with pytest.raises(ValueError, match=said):
        confusion(np.array(found), np.array(true), 3)


def test_true_masks_come_from_an_npz_and_are_those_of_the_rows(digits_bundle, tmp_path):
    pixels, mask = np.zeros((5, 28, 28, 1), np.uint8), np.arange(5)[:, None, None].repeat(3, 1).repeat(3, 2)
    np.savez(tmp_path / "scenes.npz", x=pixels, mask=mask)
    picked = load_dataset(digits_bundle, tmp_path / "scenes.npz").picked(np.array([3, 1]))
    assert picked.targets["mask"][:, 0, 0].tolist() == [3, 1]
    for wrong in (mask[:4], mask.astype(np.float32), mask[..., None]):
        np.savez(tmp_path / "scenes.npz", x=pixels, mask=wrong)
        with pytest.raises(InputError, match=r"scenes.npz: 'mask' is"):
            load_dataset(digits_bundle, tmp_path / "scenes.npz")
