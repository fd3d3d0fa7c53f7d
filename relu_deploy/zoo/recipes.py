"""The recipes of the zoo by name, and the function that builds a model from one.

Architectures are in `relu_deploy.zoo.nn`; trained models are in `models/`, each in a folder with a `recipe.json`, which names its
architecture and adds weights, a data set and a measured score.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import UsageError, missing_package, nearest
from relu_deploy.paths import models_folder
from relu_deploy.zoo.model_recipe import ModelRecipe
from relu_deploy.zoo.published import published_url, published_weights
from relu_deploy.zoo.weights_sources import weights_file

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelRecipe", "build", "recipe", "recipes", "weights_file"]

#: the preset of `preprocessing.presets`
TORCHVISION = {"preset": "torchvision"}
IMAGENET = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "layout": "NCHW"}
#: torchvision's SSD subtracts the ImageNet mean from pixels in 0..255 and does not scale them
SSD_PIXELS = {"scale": 1 / 255, "mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255] * 3, "layout": "NCHW"}

#: the graph decodes the bytes (`nn.utf8`)
TEXT = {"text": "utf-8"}


def _classifier(name: str, parameters: int, activation: str = "ReLU") -> ModelRecipe:
    return ModelRecipe(name, "classification", parameters, activation, (3, 224, 224), preprocess=TORCHVISION)


def _detector(name: str, parameters: int, size: int, pixels: Mapping[str, Any], **postprocess: float) -> ModelRecipe:
    return ModelRecipe(name, "detection", parameters, "ReLU", (3, size, size), preprocess=pixels, postprocess=postprocess)


def _segmenter(name: str, parameters: int) -> ModelRecipe:
    return ModelRecipe(
        name, "segmentation", parameters, "ReLU", (3, 520, 520), preprocess=IMAGENET, postprocess={"background": 0}
    )


#: parameter counts are torchvision's; a test compares each with the module that is built
ARCHITECTURES = (
    _classifier("resnet18", 11_689_512),
    _classifier("resnet34", 21_797_672),
    _classifier("resnet50", 25_557_032),
    _classifier("resnet101", 44_549_160),
    _classifier("vgg16", 138_357_544),
    _classifier("vgg16_bn", 138_365_992),
    _classifier("mobilenet_v2", 3_504_872, "ReLU6"),
    _classifier("squeezenet1_1", 1_235_496),
    _detector("ssd300_vgg16", 35_641_826, 300, SSD_PIXELS, score_threshold=0.01, iou_threshold=0.45, max_detections=200),
    _detector("fcos_resnet50_fpn", 32_322_720, 640, IMAGENET, score_threshold=0.2, iou_threshold=0.6, max_detections=100),
    _detector("retinanet_resnet50_fpn", 34_068_119, 640, IMAGENET, score_threshold=0.05, iou_threshold=0.5, max_detections=300),
    _segmenter("fcn_resnet50", 35_322_218),
    _segmenter("deeplabv3_resnet50", 42_004_074),
)

#: not torchvision's; their input is UTF-8
TEXTS = (
    ModelRecipe("text_cnn", "classification", 287_050, "ReLU", (64,), preprocess=TEXT),
    ModelRecipe("text_transformer", "classification", 244_458, "ReLU", (64,), preprocess=TEXT),
)


@cache
def recipes() -> dict[str, ModelRecipe]:
    """Return all recipes by name: the architectures and the trained models of `models/`."""
    known = {entry.name: replace(entry, published=published_url(entry.name)) for entry in (*ARCHITECTURES, *TEXTS)}
    for file in sorted(models_folder().glob("*/recipe.json")):
        shipped = _read_recipe(file, known)
        known[shipped.name] = shipped
    return known


def recipe(name: str) -> ModelRecipe:
    """Return the recipe called `name`.

    Raises:
        UsageError: If there is none; the hint has the nearest name.
    """
    known = recipes()
    if name not in known:
        raise UsageError(f"the zoo has no model called {name!r}", nearest(name, known))
    return known[name]


def _read_recipe(file: Path, known: Mapping[str, ModelRecipe]) -> ModelRecipe:
    fields = json.loads(file.read_text(encoding="utf-8"))
    bare = known.get(fields["architecture"])
    labels = fields.get("labels", ())
    if isinstance(labels, str):
        labels = (file.parent / labels).read_text(encoding="utf-8").splitlines()
    base = bare or ModelRecipe(
        fields["name"], fields["task"], fields["parameters"], fields["activation"], tuple(fields["input"]["shape"])
    )
    return replace(
        base,
        name=fields["name"],
        published=None,
        shape=tuple(fields["input"]["shape"]),
        input_name=fields["input"]["name"],
        preprocess=fields["preprocess"],
        postprocess=fields.get("postprocess"),
        labels=tuple(labels) or None,
        weights="fetched" if "sources" in fields else "shipped",
        weights_facts={key: fields[key] for key in ("weights", "sources", "sha256") if key in fields},
        arguments=fields.get("architecture_args") or None,
        dataset=fields["name"],
        metric=fields.get("metric"),
        licence=fields.get("licence"),
        folder=file.parent,
    )


def build(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    weights_key: str | None = None,
    seed: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build the `torch.nn.Module` called `name`, in training mode.

    Args:
        name: Name of a recipe.
        weights: None for random weights, "default" for those of the zoo, "published" for those of torchvision, or a
            `.safetensors` or `.pth` file.
        weights_key: Which of the weights in a training checkpoint to take, such as "ema" or "model"; the averaged ones by default.
        seed: Seed of random weights; the caller's random state is not changed.
        **arguments: Arguments of the architecture's function.

    Raises:
        BackendUnavailable: If torch is not installed.
        InputError: If the weights are not available or not of this architecture.
        UsageError: If the name or an argument is unknown.
    """
    known = recipe(name)
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "torch") from error
    from relu_deploy.zoo.nn import architecture
    from relu_deploy.zoo.weights_files import load_weights

    arguments = {**(known.arguments or {}), **arguments}
    make = architecture(name)
    takes = inspect.signature(make).parameters
    if strange := [each for each in arguments if each not in takes]:
        raise UsageError(f"{name} has no argument {strange[0]!r}", nearest(strange[0], takes))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        module: nn.Module = make(**arguments)
    if weights is not None:
        named = {"default": lambda: weights_file(known), "published": lambda: published_weights(name)}
        file = named[weights]() if isinstance(weights, str) and weights in named else Path(weights)
        load_weights(module, file, name, weights_key)
    return module
