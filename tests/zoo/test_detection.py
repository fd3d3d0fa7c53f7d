"""The separate, exportable steps behind a detector."""

import warnings

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from bundles import exported  # noqa: E402
from torch import nn  # noqa: E402

from relu_deploy.backends import load  # noqa: E402
from relu_deploy.tasks.detection import nms, postprocess  # noqa: E402
from relu_deploy.zoo.nn.detection import (  # noqa: E402
    ONNX_TRANSLATIONS,
    AnchorDecoder,
    Detector,
    NonMaxSuppression,
    PointDecoder,
    grid_anchors,
    map_sizes,
)


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


@pytest.mark.parametrize(("limit", "per_class"), [(1, None), (7, None), (7, 2), (1000, None)])
def test_suppression_in_the_graph_selects_what_post_processing_selects(limit, per_class):
    draw = torch.Generator().manual_seed(0)
    low = 60 * torch.rand(3, 50, 2, generator=draw)
    boxes = torch.cat([low, low + 30 * torch.rand(3, 50, 2, generator=draw)], 2)
    # Many scores are equal, and the second image has no detection.
    scores = torch.randint(0, 10, (3, 50, 4), generator=draw) / 10 * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    kept, certainty, labels, image = NonMaxSuppression(0.3, 0.5, limit, per_class)(boxes, scores)
    expected = postprocess(
        boxes.numpy(), scores.numpy(), score_threshold=0.3, iou_threshold=0.5, max_detections=limit, max_per_class=per_class
    )
    for one, found in enumerate(expected):
        assert len(found["scores"]) == (image == one).sum() <= limit
        np.testing.assert_array_equal(kept[image == one], found["boxes"])
        np.testing.assert_array_equal(certainty[image == one], found["scores"])
        np.testing.assert_array_equal(labels[image == one], found["labels"])
    assert image.tolist() == sorted(image.tolist())


def test_two_boxes_that_overlap_by_the_threshold_itself_are_judged_as_onnxruntime_judges_them():
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        suppress (float[n, a, 4] boxes, float[n, k, a] scores, int64[1] limit, float[1] iou) => (int64[d, 3] kept) {
            kept = NonMaxSuppression (boxes, scores, limit, iou)
        }"""
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    # Their overlap is 1/5, 1/3 and 1/10, so that one rounding more or less decides.
    for scale, iou, pair in (
        (0.1, 0.2, [[7, 2, 15, 6], [7, 0, 11, 4]]),
        (0.1, 1 / 3, [[2, 9, 6, 15], [0, 9, 8, 12]]),
        (3.3, 0.1, [[10, 5, 11, 13], [4, 5, 11, 7]]),
    ):
        boxes = np.array([pair], np.float32) * np.float32(scale)
        scores = np.array([[[0.9, 0.8]]], np.float32)
        limits = {"limit": np.array([9]), "iou": np.array([iou], np.float32)}
        expected = session.run(None, {"boxes": boxes, "scores": scores, **limits})[0]
        np.testing.assert_array_equal(nms(boxes, scores, iou, 0.0, 9), expected)


class TinyHeads(nn.Module):
    """Head maps of one convolution each, with stride 4; where nothing is seen, only class 0 is likely."""

    def __init__(self, columns, shapes):
        super().__init__()
        self.columns = columns
        self.heads = nn.ModuleList(nn.Conv2d(3, shapes * width, 3, 4, padding=1) for width in columns)
        self.heads[0].bias.data.reshape(shapes, -1)[:, 1:] -= 3

    def forward(self, images):
        maps = [head(images).permute(0, 2, 3, 1) for head in self.heads]
        rows = [one.reshape(images.shape[0], -1, width) for one, width in zip(maps, self.columns, strict=True)]
        return rows if len(rows) == 2 else (rows[0], rows[1].abs(), rows[2])


def tiny_points():
    return TinyHeads((5, 4, 1), 1), PointDecoder((4,), 24, 36)


def tiny_anchors():
    anchors = grid_anchors(24, 36, (4,), ((8, 12),), (0.5, 1.0))
    return TinyHeads((5, 4), 4), AnchorDecoder(anchors, 24, 36, weights=(10, 10, 5, 5), softmax=True)


@pytest.mark.parametrize(("make", "of_an_empty_image"), [(tiny_points, 6), (tiny_anchors, 0)])
def test_decoding_and_suppression_survive_the_export_with_any_number_of_images(make, of_an_empty_image, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    torch.manual_seed(0)
    detector = Detector(*make(), NonMaxSuppression(0.3, 0.5, 6)).eval()
    names = ["boxes", "scores", "labels", "image"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            detector,
            (torch.zeros(2, 3, 24, 36),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=names,
            custom_translation_table=ONNX_TRANSLATIONS(),
            verbose=False,
        )
    program.save(tmp_path / "tiny.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tiny.onnx", providers=["CPUExecutionProvider"])
    assert "NonMaxSuppression" in [node.op_type for node in program.model.graph]
    assert {opset.domain: opset.version for opset in program.model_proto.opset_import}[""] == 20
    draw = torch.Generator().manual_seed(1)
    counts = []
    for batch in (1, 2, 5):
        images = 3 * torch.randn(batch, 3, 24, 36, generator=draw)
        images[:1] = 0  # its points score alike; of a batch of one it leaves no detection or only equal ones
        with torch.no_grad():
            expected = detector(images)
        got = session.run(names, {"images": images.numpy()})
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == other.numpy().dtype
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-4)
        counts.append(np.bincount(got[3], minlength=batch).tolist())
    assert [count[0] for count in counts] == [of_an_empty_image] * 3
    assert max(counts[-1]) == 6  # the limit was reached, and not passed


@pytest.mark.parametrize(("decode", "names"), [("none", 2), ("boxes", 2), ("nms", 4)])
def test_a_detector_ships_with_or_without_its_steps_and_answers_alike(tmp_path, decode, names):
    bundle = exported("digit_detector", decode=decode)
    assert len(bundle.outputs) == names
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (3, 1, 128, 128)).astype(np.float32)}
    torch_says, onnxruntime_says = (load(bundle, name).run(feeds) for name in ("torch", "onnxruntime-cpu"))
    for name, value in torch_says.items():
        np.testing.assert_allclose(onnxruntime_says[name], value, rtol=1e-3, atol=1e-3)
