"""FCN (Long et al., 2015) and DeepLabV3 (Chen et al., 2017) on a dilated ResNet-50, with torchvision's state dict.

    image ──backbone, stride 8──► features ──head──► logits ──bilinear──► logits of every pixel

The auxiliary classifier, which torchvision's published weights include, is for training only: neither `forward` nor the exported
graph has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relu_deploy.zoo.nn.resnet import Bottleneck, ResNet

__all__ = ["Segmenter", "deeplabv3_resnet50", "fcn_resnet50"]

#: channels of the backbone's last two stages
MIDDLE, LAST = 1024, 2048
#: dilations of DeepLabV3's three 3x3 branches at stride 8
RATES = (12, 24, 36)


class DilatedBody(ResNet):
    """A ResNet-50 without pooling and classifier whose last two stages dilate instead of shrinking: stride 8 throughout.

    Returns the maps of both, (N, 1024, H/8, W/8) and (N, 2048, H/8, W/8).
    """

    def __init__(self) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3))
        del self.avgpool, self.fc
        dilate(self.layer3, before=1, after=2)
        dilate(self.layer4, before=2, after=4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        middle = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return middle, self.layer4(middle)


def dilate(stage: nn.Sequential, before: int, after: int) -> None:
    """Set the dilations of `stage` so that it keeps the size of its input: `before` for the first 3x3 convolution, else `after`."""
    for position, block in enumerate(stage):
        rate = before if position == 0 else after
        block.conv2.stride, block.conv2.padding, block.conv2.dilation = (1, 1), (rate, rate), (rate, rate)
        if block.downsample is not None:
            block.downsample[0].stride = (1, 1)


def conv_bn_relu(inputs: int, outputs: int, size: int, rate: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size, batch norm and ReLU."""
    padding = rate * (size // 2)
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, dilation=rate, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def fcn_head(inputs: int, num_classes: int) -> nn.Sequential:
    """Return the head of FCN, which is also the auxiliary classifier of both networks."""
    width = inputs // 4
    return nn.Sequential(*conv_bn_relu(inputs, width, 3), nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))


class WholePicture(nn.Sequential):
    """Global average pooling and a convolution, broadcast to all positions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs, 1))

    def forward(self, features: Tensor) -> Tensor:
        return resized(super().forward(features), features)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: several dilations and global pooling, joined by a 1x1 convolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        branches: list[nn.Module] = [nn.Sequential(*conv_bn_relu(inputs, width, 1))]
        branches += [nn.Sequential(*conv_bn_relu(inputs, width, 3, rate)) for rate in RATES]
        self.convs = nn.ModuleList([*branches, WholePicture(inputs, width)])
        self.project = nn.Sequential(*conv_bn_relu(len(self.convs) * width, width, 1), nn.Dropout(0.5))

    def forward(self, features: Tensor) -> Tensor:
        joined: Tensor = self.project(torch.cat([branch(features) for branch in self.convs], 1))
        return joined


def deeplab_head(inputs: int, num_classes: int) -> nn.Sequential:
    """Return the head of DeepLabV3."""
    width = 256
    return nn.Sequential(Pyramid(inputs, width), *conv_bn_relu(width, width, 3), nn.Conv2d(width, num_classes, 1))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Return `x`, (N, C, h, w), with the height and width of `like`, bilinear between the centers of pixels."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """A dilated ResNet-50 with a head. The input is float32 (N, 3, H, W), normalized; the output is logits (N, num_classes, H, W)."""

    def __init__(self, head: nn.Module, num_classes: int, aux_loss: bool) -> None:
        super().__init__()
        self.backbone = DilatedBody()
        self.classifier = head
        self.aux_classifier = fcn_head(MIDDLE, num_classes) if aux_loss else None

    def forward(self, images: Tensor) -> Tensor:
        return resized(self.classifier(self.backbone(images)[1]), images)

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and those of the auxiliary classifier, which torchvision adds to the loss with a weight of 0.5."""
        if self.aux_classifier is None:
            raise ValueError("this network was made with aux_loss=False")
        middle, last = self.backbone(images)
        return resized(self.classifier(last), images), resized(self.aux_classifier(middle), images)


def fcn_resnet50(num_classes: int = 21, aux_loss: bool = True) -> Segmenter:
    """Return FCN with random weights.

    Args:
        num_classes: Number of classes.
        aux_loss: Add the auxiliary classifier, which torchvision's published weights include.
    """
    return Segmenter(fcn_head(LAST, num_classes), num_classes, aux_loss)


def deeplabv3_resnet50(num_classes: int = 21, aux_loss: bool = True) -> Segmenter:
    """Return DeepLabV3 with random weights.

    Args:
        num_classes: Number of classes.
        aux_loss: Add the auxiliary classifier, which torchvision's published weights include.
    """
    return Segmenter(deeplab_head(LAST, num_classes), num_classes, aux_loss)
