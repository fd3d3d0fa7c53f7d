"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017) on ResNet-50, with torchvision's state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relu_deploy.zoo.nn.detection import AnchorDecoder, grid_anchors
from relu_deploy.zoo.nn.fpn import STRIDES, ResNetPyramid, initialize, rows_of

__all__ = ["RetinaNet", "retinanet_resnet50_fpn"]

RATIOS = (0.5, 1.0, 2.0)
#: three sizes a level, a third of an octave apart, cut to whole pixels as torchvision does
SIZES = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
ANCHORS = len(RATIOS) * 3


def tower(width: int) -> nn.Sequential:
    """Return four 3x3 convolutions, each with a ReLU."""
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(4)))


class ClassificationHead(nn.Module):
    """Predicts the logits of each class for each anchor of each level."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = tower(width)
        self.cls_logits = nn.Conv2d(width, ANCHORS * num_classes, 3, padding=1)
        self.num_classes = num_classes
        initialize(self, self.cls_logits)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([rows_of(self.cls_logits(self.conv(level)), self.num_classes) for level in levels], 1)


class RegressionHead(nn.Module):
    """Predicts the offsets of center and size for each anchor of each level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = tower(width)
        self.bbox_reg = nn.Conv2d(width, ANCHORS * 4, 3, padding=1)
        initialize(self)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([rows_of(self.bbox_reg(self.conv(level)), 4) for level in levels], 1)


class RetinaNet(nn.Module):
    """RetinaNet without its decoder.

    The input is float32 (N, 3, H, W), normalized; the outputs are raw cls_logits (N, A, num_classes) and bbox_regression (N, A, 4).
    """

    def __init__(self, num_classes: int = 91, batch_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.backbone = ResNetPyramid(batch_norm_eps=batch_norm_eps)
        self.head = nn.ModuleDict(
            {"classification_head": ClassificationHead(256, num_classes), "regression_head": RegressionHead(256)}
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.backbone(images)
        return self.head["classification_head"](levels), self.head["regression_head"](levels)

    def decoder(self, height: int, width: int) -> nn.Module:
        """Return the step from head maps to boxes and scores for pictures of one size."""
        return AnchorDecoder(grid_anchors(height, width, STRIDES, SIZES, RATIOS), height, width)


def retinanet_resnet50_fpn(num_classes: int = 91, batch_norm_eps: float = 1e-5) -> RetinaNet:
    """Return RetinaNet with random weights.

    Args:
        num_classes: Number of classes.
        batch_norm_eps: Epsilon of the batch norms of the ResNet. torchvision uses 0 with its published weights
            (RetinaNet_ResNet50_FPN_Weights.COCO_V1).
    """
    return RetinaNet(num_classes, batch_norm_eps)
