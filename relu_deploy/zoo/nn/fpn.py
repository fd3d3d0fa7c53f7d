"""A ResNet-50 with a feature pyramid (Lin et al., "Feature Pyramid Networks", 2016), with torchvision's state dict."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from relu_deploy.zoo.nn.resnet import Body

__all__ = ["STRIDES", "ResNetPyramid", "initialize", "rows_of"]

#: of the pyramid's levels, P3 to P7
STRIDES = (8, 16, 32, 64, 128)


class ExtraLevels(nn.Module):
    """P6 and P7 by strided convolutions behind P5, as in RetinaNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(width, width, 3, 2, padding=1)
        self.p7 = nn.Conv2d(width, width, 3, 2, padding=1)
        self.relu = nn.ReLU()
        for conv in (self.p6, self.p7):
            _keep_variance(conv)

    def forward(self, p5: Tensor) -> list[Tensor]:
        p6 = self.p6(p5)
        return [p6, self.p7(self.relu(p6))]


class Pyramid(nn.Module):
    """Converts maps of decreasing size and any width to maps of one width, and adds two coarser ones."""

    def __init__(self, inputs: tuple[int, ...], width: int) -> None:
        super().__init__()
        # A Sequential of one: torchvision's keys have that extra level.
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, width, 1)) for channels in inputs)
        self.layer_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1)) for _ in inputs)
        for conv in (*self.inner_blocks, *self.layer_blocks):
            _keep_variance(conv[0])
        self.extra_blocks = ExtraLevels(width)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        merged = self.inner_blocks[-1](maps[-1])
        levels = [self.layer_blocks[-1](merged)]
        for level in range(len(maps) - 2, -1, -1):
            merged = self.inner_blocks[level](maps[level]) + F.interpolate(merged, size=maps[level].shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[level](merged))
        return levels + self.extra_blocks(levels[-1])  # type: ignore[no-any-return]


def _keep_variance(conv: nn.Conv2d) -> None:
    # a=1 is the gain without a ReLU, because no ReLU follows.
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


class ResNetPyramid(nn.Module):
    """A ResNet-50 with a feature pyramid.

    The input is float32 (N, 3, H, W); the outputs are five maps (N, width, H/stride, W/stride) at `STRIDES`.

    Args:
        width: Channels of the maps.
        batch_norm_eps: Epsilon of every batch norm of the ResNet.
    """

    def __init__(self, width: int = 256, batch_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.body = Body()
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = batch_norm_eps
        self.fpn = Pyramid((512, 1024, 2048), width)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(list(self.body(images).values()))
        return levels


def rows_of(maps: Tensor, columns: int) -> Tensor:
    """Return head maps (N, A * columns, H, W) as rows (N, H * W * A, columns), the order of torchvision's heads."""
    batch, _, height, width = maps.shape
    return maps.view(batch, -1, columns, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, columns)


def initialize(head: nn.Module, final: nn.Conv2d | None = None, probability: float = 0.01) -> None:
    """Draw the convolutions of `head` from N(0, 0.01), and bias `final` so that it starts from `probability`."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if final is not None and final.bias is not None:
        nn.init.constant_(final.bias, -math.log((1 - probability) / probability))
