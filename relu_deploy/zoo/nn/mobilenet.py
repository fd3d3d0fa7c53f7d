"""MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", 2018), with torchvision's state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MobileNetV2", "mobilenet_v2"]

#: expansion, output channels, repeats, stride of the first repeat: table 2 of the paper
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv_bn_relu6(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; the narrow ends are linear and added when they fit."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [conv_bn_relu6(inputs, wide)]
        layers += [
            conv_bn_relu6(wide, wide, kernel=3, stride=stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """MobileNetV2. The input is float32 (N, 3, H, W); the output is logits (N, num_classes)."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(3, 32, kernel=3, stride=2)]
        channels = 32
        for expansion, outputs, repeats, stride in STAGES:
            for repeat in range(repeats):
                layers.append(InvertedResidual(channels, outputs, expansion, stride if repeat == 0 else 1))
                channels = outputs
        layers.append(conv_bn_relu6(channels, 1280))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(images)), 1))
        return logits


def mobilenet_v2(num_classes: int = 1000) -> MobileNetV2:
    """Return MobileNetV2 at width 1.0 with random weights."""
    return MobileNetV2(num_classes)
