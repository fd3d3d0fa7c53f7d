"""PyTorch architectures, one family a file, each readable from top to bottom; state dicts are torchvision's.

A new architecture is one new file and one line in `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "architecture"]

#: name → module of this package that defines a function of the same name
ARCHITECTURES = {
    "resnet18": "resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "resnet101": "resnet",
    "vgg16": "vgg",
    "vgg16_bn": "vgg",
    "mobilenet_v2": "mobilenet",
    "squeezenet1_1": "squeezenet",
    "ssd300_vgg16": "ssd",
    "fcos_resnet50_fpn": "fcos",
    "retinanet_resnet50_fpn": "retinanet",
    "digits": "digits",
    "digit_detector": "digits",
}


def architecture(name: str) -> Callable[..., nn.Module]:
    """Return the function that makes the architecture called `name`. Raises KeyError when there is none."""
    module = import_module(f"relu_deploy.nn.{ARCHITECTURES[name]}")
    builder: Callable[..., nn.Module] = getattr(module, name)
    return builder
