"""VGG (Simonyan and Zisserman, "Very Deep Convolutional Networks", 2014), with torchvision's state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VGG", "vgg16", "vgg16_bn", "vgg_features"]

#: output channels of each 3x3 convolution of VGG-16; 0 stands for a 2x2 max pooling
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg_features(widths: tuple[int, ...], batch_norm: bool) -> nn.Sequential:
    """Return the convolutional part, with modules numbered as in torchvision.

    Weights are initialized as in He et al., "Delving Deep into Rectifiers", 2015, because networks of this depth do not train with
    the initialization of the paper.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(channels, width, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers.append(conv)
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
        channels = width
    return nn.Sequential(*layers)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    # Nine tenths of the weights are here, and initializing them takes seconds, so PyTorch's initialization is skipped.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device=torch.get_default_device())
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


class VGG(nn.Module):
    """Convolutions and three linear layers.

    The input is float32 (N, 3, H, W) with H and W at least 32; the output is logits (N, num_classes).
    """

    def __init__(self, batch_norm: bool, num_classes: int) -> None:
        super().__init__()
        self.features = vgg_features(VGG16, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            _linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            _linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            _linear(4096, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))
        return logits


def vgg16(num_classes: int = 1000) -> VGG:
    """Return VGG-16 without batch norm, with random weights."""
    return VGG(False, num_classes)


def vgg16_bn(num_classes: int = 1000) -> VGG:
    """Return VGG-16 with batch norm, with random weights."""
    return VGG(True, num_classes)
