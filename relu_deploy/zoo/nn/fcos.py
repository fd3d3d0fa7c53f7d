"""FCOS (Tian et al., "Fully Convolutional One-Stage Object Detection", 2019) on ResNet-50, with torchvision's state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relu_deploy.zoo.nn.detection import PointDecoder
from relu_deploy.zoo.nn.fpn import STRIDES, ResNetPyramid, initialize, rows_of

__all__ = ["FCOS", "fcos_resnet50_fpn"]


def tower(width: int) -> nn.Sequential:
    """Return four 3x3 convolutions, each with group norm and a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(32, width), nn.ReLU()]
    return nn.Sequential(*layers)


class ClassificationHead(nn.Module):
    """Predicts the logits of each class at each point of each level."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = tower(width)
        self.cls_logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.num_classes = num_classes
        initialize(self, self.cls_logits)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([rows_of(self.cls_logits(self.conv(level)), self.num_classes) for level in levels], 1)


class RegressionHead(nn.Module):
    """Predicts the distances to the four edges and the centerness at each point of each level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = tower(width)
        self.bbox_reg = nn.Conv2d(width, 4, 3, padding=1)
        self.bbox_ctrness = nn.Conv2d(width, 1, 3, padding=1)
        self.relu = nn.ReLU()
        initialize(self)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        features = [self.conv(level) for level in levels]
        distances = torch.cat([rows_of(self.relu(self.bbox_reg(one)), 4) for one in features], 1)
        return distances, torch.cat([rows_of(self.bbox_ctrness(one), 1) for one in features], 1)


class FCOS(nn.Module):
    """FCOS without its decoder.

    The input is float32 (N, 3, H, W), normalized. The outputs are raw cls_logits (N, A, num_classes), bbox_regression (N, A, 4),
    non-negative distances in units of the stride, and bbox_ctrness (N, A, 1).
    """

    def __init__(self, num_classes: int = 91) -> None:
        super().__init__()
        self.backbone = ResNetPyramid()
        self.head = nn.ModuleDict(
            {"classification_head": ClassificationHead(256, num_classes), "regression_head": RegressionHead(256)}
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.backbone(images)
        distances, centerness = self.head["regression_head"](levels)
        return self.head["classification_head"](levels), distances, centerness

    def decoder(self, height: int, width: int) -> nn.Module:
        """Return the step from head maps to boxes and scores for pictures of one size."""
        return PointDecoder(STRIDES, height, width, offset=0.0)


def fcos_resnet50_fpn(num_classes: int = 91) -> FCOS:
    """Return FCOS with random weights."""
    return FCOS(num_classes)
