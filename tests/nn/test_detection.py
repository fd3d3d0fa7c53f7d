"""The separate, exportable steps behind a detector."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from relu_deploy.backends import load  # noqa: E402
from relu_deploy.export import export_source  # noqa: E402
from relu_deploy.nn.detection import NonMaxSuppression, PointDecoder, map_sizes  # noqa: E402


def test_points_lie_in_the_middle_of_their_cells_and_boxes_stay_inside_the_picture():
    decode = PointDecoder((4,), 8, 12)
    distances = torch.zeros(1, 6, 4)
    distances[0, 0] = torch.tensor([10.0, 0.25, 0.5, 10.0])
    boxes, scores = decode(torch.zeros(1, 6, 2), distances)
    assert boxes[0, 0].tolist() == [0, 1, 4, 8]
    assert boxes[0, 1].tolist() == [6, 2, 6, 2]
    assert boxes[0, 5].tolist() == [10, 6, 10, 6]
    assert (scores == 0.5).all()


def test_head_maps_round_up():
    assert map_sizes(100, 33, (8, 16)) == [(13, 5), (7, 3)]


def test_suppression_keeps_the_better_of_two_boxes_of_one_class():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]]])
    scores = torch.tensor([[[0.6, 0.0], [0.9, 0.0], [0.0, 0.8]]])
    kept, certainty, labels, image = NonMaxSuppression(0.5, 0.5, 10)(boxes, scores)
    assert kept.tolist() == [[1, 1, 11, 11], [0, 0, 10, 10]]
    assert certainty.tolist() == pytest.approx([0.9, 0.8])
    assert labels.tolist() == [0, 1]
    assert image.tolist() == [0, 0]


@pytest.mark.parametrize(("decode", "names"), [("none", 2), ("boxes", 2), ("nms", 4)])
def test_a_detector_ships_with_or_without_its_steps_and_answers_alike(tmp_path, decode, names):
    bundle = export_source("digit_detector", tmp_path / "d.rdb", decode=decode).bundle
    assert len(bundle.outputs) == names
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (3, 1, 128, 128)).astype(np.float32)}
    torch_says, onnxruntime_says = (load(bundle, name).run(feeds) for name in ("torch", "onnxruntime-cpu"))
    for name, value in torch_says.items():
        np.testing.assert_allclose(onnxruntime_says[name], value, rtol=1e-3, atol=1e-3)
