"""SSD300 (Liu et al., "SSD: Single Shot MultiBox Detector", 2015) on VGG-16, with torchvision's state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relu_deploy.zoo.nn.detection import AnchorDecoder, default_boxes
from relu_deploy.zoo.nn.fpn import rows_of
from relu_deploy.zoo.nn.vgg import VGG16, vgg_features

__all__ = ["SSD", "ssd300_vgg16"]

CHANNELS = (512, 1024, 512, 256, 256, 256)
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
STEPS = (8, 16, 32, 64, 100, 300)
SHAPES = tuple(2 + 2 * len(ratios) for ratios in RATIOS)


class Backbone(nn.Module):
    """VGG-16 cut at conv4_3, whose output is normalized and scaled, and five further stages. Returns six maps."""

    def __init__(self) -> None:
        super().__init__()
        layers = list(vgg_features(VGG16, batch_norm=False))
        layers[16] = nn.MaxPool2d(2, ceil_mode=True)
        self.scale_weight = nn.Parameter(torch.full((512,), 20.0))
        self.features = nn.Sequential(*layers[:23])
        fully_connected = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        self.extra = nn.ModuleList(
            [
                nn.Sequential(*layers[23:-1], fully_connected),
                _narrow_then_shrink(1024, 256, 512, padding=1, stride=2),
                _narrow_then_shrink(512, 128, 256, padding=1, stride=2),
                _narrow_then_shrink(256, 128, 256),
                _narrow_then_shrink(256, 128, 256),
            ]
        )
        for stage in (*self.extra[1:], fully_connected):
            for module in stage.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.features(images)
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(features)]
        for stage in self.extra:
            features = stage(features)
            maps.append(features)
        return maps


def _narrow_then_shrink(inputs: int, narrow: int, outputs: int, padding: int = 0, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, narrow, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, outputs, 3, stride, padding),
        nn.ReLU(inplace=True),
    )


class Head(nn.Module):
    """A 3x3 convolution a map, giving `columns` numbers for each default box."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.module_list = nn.ModuleList(
            nn.Conv2d(channels, shapes * columns, 3, padding=1) for channels, shapes in zip(CHANNELS, SHAPES, strict=True)
        )
        for module in self.module_list:
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([rows_of(conv(one), self.columns) for conv, one in zip(self.module_list, maps, strict=True)], 1)


class SSD(nn.Module):
    """SSD300 without its decoder.

    The input is float32 (N, 3, 300, 300), normalized; the outputs are raw cls_logits (N, A, num_classes) and bbox_regression
    (N, A, 4).
    """

    def __init__(self, num_classes: int = 91) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.ModuleDict({"classification_head": Head(num_classes), "regression_head": Head(4)})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(images)
        return self.head["classification_head"](maps), self.head["regression_head"](maps)

    def decoder(self, height: int, width: int) -> nn.Module:
        """Return the step from head maps to boxes and scores for pictures of one size; class 0 is the background."""
        with torch.device("meta"):
            maps = Backbone()(torch.empty(1, 3, height, width))
        sizes = [(one.shape[2], one.shape[3]) for one in maps]
        anchors = default_boxes(height, width, sizes, STEPS, SCALES, RATIOS)
        return AnchorDecoder(anchors, height, width, weights=(10, 10, 5, 5), softmax=True)


def ssd300_vgg16(num_classes: int = 91) -> SSD:
    """Return SSD300 with random weights."""
    return SSD(num_classes)
