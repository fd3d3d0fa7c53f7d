"""Three small networks: a classifier of handwritten digits, a detector of digits in scenes, and a segmentation of scenes.

All are convolution, batch norm and ReLU throughout, so that every batch norm folds and every ReLU can be held to account.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["DigitDetector", "DigitNet", "DigitSegmenter", "digit_detector", "digit_segmenter", "digits"]


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """Return a convolution of `size` by `size`, batch norm and ReLU; the convolution has no bias, the batch norm has."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
            bn=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(inplace=True),
        )
    )


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut around them; the last ReLU comes after the sum (He et al., 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(width, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.relu(self.bn(self.conv(self.first(x))) + x)
        return output


class DigitNet(nn.Module):
    """Six convolutions and a linear layer.

    The input is float32 (N, 1, 28, 28), normalized; the output is logits (N, num_classes).
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(conv_bn_relu(1, 16), conv_bn_relu(16, 32), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(conv_bn_relu(32, 64), conv_bn_relu(64, 64), nn.MaxPool2d(2))
        self.stage3 = nn.Sequential(conv_bn_relu(64, 96), conv_bn_relu(96, 96), nn.AdaptiveAvgPool2d(1))
        self.classify = nn.Linear(96, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(images)))
        logits: Tensor = self.classify(torch.flatten(features, 1))
        return logits


class DigitDetector(nn.Module):
    """An anchor-free detector with one output level (stride 4): every point predicts a digit and the distances to four edges.

    The input is float32 (N, 1, H, W), normalized, with H and W multiples of 16. The outputs are raw head maps for A = (H/4) * (W/4)
    points: cls_logits (N, A, num_classes), and bbox_regression (N, A, 4), the distances to the left, top, right and bottom edge in
    units of the stride, made non-negative by a ReLU (Tian et al., "FCOS", 2019).
    """

    stride = 4

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        widths = (48, 80, 112)
        self.stem = nn.Sequential(conv_bn_relu(1, 24, stride=2), conv_bn_relu(24, widths[0], stride=2))
        self.fine = Residual(widths[0])
        self.middle = nn.Sequential(conv_bn_relu(widths[0], widths[1], stride=2), Residual(widths[1]), Residual(widths[1]))
        self.coarse = nn.Sequential(conv_bn_relu(widths[1], widths[2], stride=2), Residual(widths[2]))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge = conv_bn_relu(width, width)
        self.cls_tower = conv_bn_relu(width, width)
        self.box_tower = conv_bn_relu(width, width)
        self.cls_logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        self.distances_relu = nn.ReLU()
        # Rare positives: start from a probability of 1% everywhere (Lin et al., "Focal loss", 2017); boxes from 2 strides.
        nn.init.normal_(self.cls_logits.weight, std=0.01)
        nn.init.constant_(self.cls_logits.bias, -4.595)
        nn.init.normal_(self.distances.weight, std=0.01)
        nn.init.constant_(self.distances.bias, 2.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        merged = self.lateral[2](coarse)
        for lateral, features in ((self.lateral[1], middle), (self.lateral[0], fine)):
            merged = lateral(features) + self.up(merged)
        merged = self.merge(merged)
        logits = self.cls_logits(self.cls_tower(merged))
        distances = self.distances_relu(self.distances(self.box_tower(merged)))
        return logits.flatten(2).transpose(1, 2), distances.flatten(2).transpose(1, 2)

    def decoder(self, height: int, width: int) -> nn.Module:
        """Return the step from head maps to boxes (N, A, 4) xyxy in pixels and scores (N, A, num_classes)."""
        from relu_deploy.zoo.nn.detection import PointDecoder

        return PointDecoder((self.stride,), height, width)


class DigitSegmenter(nn.Module):
    """A U-Net (Ronneberger et al., 2015) of five levels that classifies every pixel of a scene as background or a digit.

    The input is float32 (N, 1, H, W), normalized, with H and W multiples of 16; the output is logits (N, num_classes, H, W). Maps are
    upsampled by repeating pixels, after a 1x1 convolution that halves the channels; transposed convolutions have no 8-bit kernel
    on CPUs.
    """

    def __init__(self, num_classes: int = 11, widths: tuple[int, ...] = (16, 24, 40, 52, 64)) -> None:
        super().__init__()
        self.stem = conv_bn_relu(1, widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(conv_bn_relu(fine, coarse, stride=2), conv_bn_relu(coarse, coarse)) for fine, coarse in pairs
        )
        self.reduce = nn.ModuleList(conv_bn_relu(coarse, fine, size=1) for fine, coarse in pairs)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge = nn.ModuleList(conv_bn_relu(2 * fine, fine) for fine, _ in pairs)
        self.classify = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        levels = [self.stem(images)]
        for down in self.down:
            levels.append(down(levels[-1]))
        features = levels.pop()
        for reduce, merge in zip(reversed(self.reduce), reversed(self.merge), strict=True):
            features = merge(torch.cat([self.up(reduce(features)), levels.pop()], 1))
        logits: Tensor = self.classify(features)
        return logits


def digits(num_classes: int = 10) -> DigitNet:
    """Return the digit classifier with random weights."""
    return DigitNet(num_classes)


def digit_detector(num_classes: int = 10) -> DigitDetector:
    """Return the digit detector with random weights."""
    return DigitDetector(num_classes)


def digit_segmenter(num_classes: int = 11) -> DigitSegmenter:
    """Return the digit segmenter with random weights."""
    return DigitSegmenter(num_classes)
