"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", 2015), with torchvision's state dict.

The stride of a bottleneck sits on its 3x3 convolution ("v1.5"), as in torchvision and in NVIDIA's and MLPerf's ResNet-50.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = ["ResNet", "resnet18", "resnet34", "resnet50", "resnet101"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; input (N, inputs, H, W), output (N, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(y)
        return output


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; input (N, inputs, H, W), output (N, 4 * width, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(y)
        return output


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Return the projection of a block's input to the shape of its output, None if they have the same shape."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and a linear layer.

    The input is float32 (N, 3, H, W); the output is logits (N, num_classes).
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, int, int, int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), start=1):
            blocks = []
            for position in range(depth):
                blocks.append(block(inputs, width, stride=2 if stage > 1 and position == 0 else 1))
                inputs = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(features), 1))
        return logits

    def stem(self, images: Tensor) -> Tensor:
        """Return the input of the first stage, (N, 64, H/4, W/4)."""
        features: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return features


class Body(ResNet):
    """A ResNet-50 without pooling and classifier, that returns the outputs of the last three stages (strides 8, 16 and 32)."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3))
        del self.avgpool, self.fc

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:  # type: ignore[override]
        features = self.layer1(self.stem(images))
        maps = OrderedDict()
        for name, stage in (("c3", self.layer2), ("c4", self.layer3), ("c5", self.layer4)):
            maps[name] = features = stage(features)
        return maps


def resnet18(num_classes: int = 1000) -> ResNet:
    """Return ResNet-18 with random weights."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """Return ResNet-34 with random weights."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """Return ResNet-50 with random weights."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet101(num_classes: int = 1000) -> ResNet:
    """Return ResNet-101 with random weights."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes)
