"""Decoders from a detector's head maps to boxes, and non-maximum suppression, as separate exportable modules.

    head maps ──decoder──► boxes (N, A, 4) xyxy in pixels, scores (N, A, K) ──NonMaxSuppression──► detections

A decoder's points or anchors are worked out once, for one picture size, and are constants of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from relu_deploy.tasks.detection import nms as numpy_nms

__all__ = [
    "ONNX_TRANSLATIONS",
    "AnchorDecoder",
    "Detector",
    "NonMaxSuppression",
    "PointDecoder",
    "default_boxes",
    "grid_anchors",
    "map_sizes",
]

#: largest ratio of the size of a box to that of its anchor, as in torchvision and Detectron
LARGEST_GROWTH = math.log(1000 / 16)


def map_sizes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return the size of the head map at each stride, for convolutions that round up."""
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]


class PointDecoder(nn.Module):
    """Boxes from distances to the four edges (Tian et al., "FCOS", 2019).

    Args:
        strides: Stride of each level.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        offset: Position of a point in its cell as a share of the stride; torchvision uses 0.
    """

    points: Tensor
    unit: Tensor
    limit: Tensor

    def __init__(self, strides: Sequence[int], height: int, width: int, offset: float = 0.5) -> None:
        super().__init__()
        points, units = [], []
        for stride, (rows, columns) in zip(strides, map_sizes(height, width, strides), strict=True):
            # torchvision uses the actual ratio of the sizes, which differs if the size is not a multiple of the stride.
            down, across = height // rows, width // columns
            y, x = torch.meshgrid((torch.arange(rows) + offset) * down, (torch.arange(columns) + offset) * across, indexing="ij")
            points.append(torch.stack([x.flatten(), y.flatten()], 1))
            units.append(torch.full((rows * columns, 1), float(stride)))
        self.register_buffer("points", torch.cat(points).float(), persistent=False)
        self.register_buffer("unit", torch.cat(units), persistent=False)
        self.register_buffer("limit", torch.tensor([width, height], dtype=torch.float32), persistent=False)

    def forward(self, cls_logits: Tensor, distances: Tensor, centerness: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return boxes (N, A, 4) inside the picture and scores (N, A, K).

        Args:
            cls_logits: (N, A, K).
            distances: (N, A, 4), non-negative, in units of the stride.
            centerness: Logits (N, A, 1), or None.
        """
        spread = distances * self.unit
        low = torch.minimum((self.points - spread[..., :2]).clamp(min=0), self.limit)
        high = torch.minimum((self.points + spread[..., 2:]).clamp(min=0), self.limit)
        scores = cls_logits.sigmoid()
        if centerness is not None:
            scores = (scores * centerness.sigmoid()).sqrt()
        return torch.cat([low, high], -1), scores


class AnchorDecoder(nn.Module):
    """Boxes from offsets to anchors (Girshick, "Fast R-CNN", 2015, appendix C of R-CNN).

    Args:
        anchors: (A, 4) xyxy in pixels.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        weights: Divisors of the offsets of center and size.
        softmax: Compute scores by a softmax over the classes, of which class 0 is the background with score 0; otherwise by a
            sigmoid of each class.
    """

    center: Tensor
    size: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(
        self,
        anchors: Tensor,
        height: int,
        width: int,
        weights: tuple[float, float, float, float] = (1, 1, 1, 1),
        softmax: bool = False,
    ) -> None:
        super().__init__()
        size = anchors[:, 2:] - anchors[:, :2]
        self.register_buffer("center", anchors[:, :2] + 0.5 * size, persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.register_buffer("limit", torch.tensor([width, height], dtype=torch.float32), persistent=False)
        self.softmax = softmax

    def forward(self, cls_logits: Tensor, bbox_regression: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, A, 4) inside the picture and scores (N, A, K).

        Args:
            cls_logits: (N, A, K).
            bbox_regression: (N, A, 4).
        """
        offsets = bbox_regression * self.scale
        center = offsets[..., :2] * self.size + self.center
        half = 0.5 * offsets[..., 2:].clamp(max=LARGEST_GROWTH).exp() * self.size
        low = torch.minimum((center - half).clamp(min=0), self.limit)
        high = torch.minimum((center + half).clamp(min=0), self.limit)
        if not self.softmax:
            return torch.cat([low, high], -1), cls_logits.sigmoid()
        scores = cls_logits.softmax(-1)
        return torch.cat([low, high], -1), torch.cat([torch.zeros_like(scores[..., :1]), scores[..., 1:]], -1)


def grid_anchors(
    height: int, width: int, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float]
) -> Tensor:
    """Return anchors (A, 4) xyxy: one of each ratio and size at every cell of every level, in torchvision's order."""
    anchors = []
    for (rows, columns), of_level in zip(map_sizes(height, width, strides), sizes, strict=True):
        scale = torch.tensor(of_level, dtype=torch.float32)
        down = torch.tensor(ratios).sqrt()
        half = torch.stack([(1 / down)[:, None] * scale, down[:, None] * scale], -1).reshape(-1, 2) / 2
        shapes = torch.cat([-half, half], 1).round()
        y, x = torch.meshgrid(torch.arange(rows) * (height // rows), torch.arange(columns) * (width // columns), indexing="ij")
        corners = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        anchors.append((corners + shapes).reshape(-1, 4))
    return torch.cat(anchors)


def default_boxes(
    height: int,
    width: int,
    maps: Sequence[tuple[int, int]],
    steps: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[Sequence[float]],
) -> Tensor:
    """Return SSD's default boxes (A, 4) xyxy in pixels (Liu et al., "SSD", 2015, section 2.2), in torchvision's order."""
    boxes = []
    for level, ((rows, columns), step) in enumerate(zip(maps, steps, strict=True)):
        small, between = scales[level], math.sqrt(scales[level] * scales[level + 1])
        shapes = [(small, small), (between, between)]
        for ratio in ratios[level]:
            long, short = small * math.sqrt(ratio), small / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        for row, column in product(range(rows), range(columns)):
            x, y = (column + 0.5) * step / width, (row + 0.5) * step / height
            boxes += [(x, y, min(w, 1.0), min(h, 1.0)) for w, h in shapes]
    x, y, w, h = torch.tensor(boxes, dtype=torch.float32).T
    return torch.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], 1)


@torch.library.custom_op("relu_deploy::nms", mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_per_class: int) -> Tensor:
    rows = numpy_nms(boxes.cpu().numpy(), scores.cpu().numpy(), iou_threshold, score_threshold, max_per_class)
    return torch.from_numpy(rows).to(boxes.device)


@_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_per_class: int) -> Tensor:  # noqa: ARG001
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)


def ONNX_TRANSLATIONS() -> dict[Callable[..., Any], Callable[..., Any]]:  # noqa: N802
    """Return the `custom_translation_table` of torch.onnx for this module's operators."""
    from onnxscript import opset20 as op

    def write_nms(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, max_per_class: int) -> Any:
        limit = op.Constant(value_ints=[max_per_class])
        overlap, least = op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[score_threshold])
        return op.NonMaxSuppression(boxes, scores, limit, overlap, least)

    def write_stable_sort(values: Any, *, stable: bool, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
        # TopK is stable by definition: the lower index of equal values comes first.
        axis = dim % len(values.shape)
        length = op.Shape(values, start=axis, end=axis + 1)
        return op.TopK(values, length, axis=axis, largest=int(descending), sorted=1)

    return {torch.ops.relu_deploy.nms.default: write_nms, torch.ops.aten.sort.stable: write_stable_sort}


class NonMaxSuppression(nn.Module):
    """Non-maximum suppression per class, then the best detections of each image: `tasks.detection.postprocess` in the graph.

    Args:
        score_threshold: Boxes with a score not above this are removed.
        iou_threshold: Boxes whose overlap with a kept box of their class is above this are removed.
        max_detections: Largest number of detections of each image.
        max_per_class: Largest number of each image and class, by default `max_detections`.
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        max_per_class: int | None = None,
    ) -> None:
        super().__init__()
        self.score_threshold, self.iou_threshold, self.max_detections = score_threshold, iou_threshold, max_detections
        self.max_per_class = max_per_class or max_detections

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes (D, 4), scores (D,), labels int64 (D,) and image int64 (D,), the row of each detection.

        Detections are ordered by image and descending score.

        Args:
            boxes: (N, A, 4).
            scores: (N, A, K).
        """
        rows = torch.ops.relu_deploy.nms(
            boxes, scores.transpose(1, 2), self.iou_threshold, self.score_threshold, self.max_per_class
        )
        image, label, box = rows.unbind(1)
        order = scores[image, box, label].sort(descending=True, stable=True).indices
        order = order[image[order].sort(stable=True).indices]
        # Counting needs no special case for images without detections.
        images = torch.arange(boxes.shape[0], device=boxes.device)
        begins = (image[:, None] < images).sum(0)
        place = torch.arange(rows.shape[0], device=boxes.device) - begins[image[order]]
        image, label, box = rows[order[place < self.max_detections]].unbind(1)
        return boxes[image, box], scores[image, box, label], label, image


class Detector(nn.Module):
    """A network followed by its decoder, and by non-maximum suppression unless `nms` is None."""

    def __init__(self, network: nn.Module, decoder: nn.Module, nms: NonMaxSuppression | None = None) -> None:
        super().__init__()
        self.network, self.decoder, self.nms = network, decoder, nms

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes and scores, or with suppression boxes, scores, labels and image."""
        boxes, scores = self.decoder(*self.network(images))
        return (boxes, scores) if self.nms is None else self.nms(boxes, scores)
