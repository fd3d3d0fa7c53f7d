"""PyTorch architectures, one family in each file, with torchvision's state dicts.

A new architecture is one new file and one line in `ARCHITECTURES`. Where weights are to be loaded anyway, drawing random
ones can be saved: build under `torch.device("meta")`, then `load_state_dict(weights, assign=True)`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "architecture"]

#: name → "module:function", where the module is in this package
ARCHITECTURES: dict[str, str] = {
    "resnet18": "resnet:resnet18",
    "resnet34": "resnet:resnet34",
    "resnet50": "resnet:resnet50",
    "resnet101": "resnet:resnet101",
    "vgg16": "vgg:vgg16",
    "vgg16_bn": "vgg:vgg16_bn",
    "mobilenet_v2": "mobilenet:mobilenet_v2",
    "squeezenet1_1": "squeezenet:squeezenet1_1",
    "ssd300_vgg16": "ssd:ssd300_vgg16",
    "fcos_resnet50_fpn": "fcos:fcos_resnet50_fpn",
    "retinanet_resnet50_fpn": "retinanet:retinanet_resnet50_fpn",
    "fcn_resnet50": "segmentation:fcn_resnet50",
    "deeplabv3_resnet50": "segmentation:deeplabv3_resnet50",
    "digits": "digits:digits",
    "digit_detector": "digits:digit_detector",
    "digit_segmenter": "digits:digit_segmenter",
    "text_cnn": "text:text_cnn",
    "text_transformer": "text:text_transformer",
    "language_id": "text:text_cnn",
}


def architecture(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds the architecture called `name`.

    Raises:
        KeyError: If there is none.
    """
    module, function = ARCHITECTURES[name].split(":")
    builder: Callable[..., nn.Module] = getattr(import_module(f"relu_deploy.zoo.nn.{module}"), function)
    return builder
