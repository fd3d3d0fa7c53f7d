"""The options of an export, checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relu_deploy.errors import UsageError
from relu_deploy.tensors import TensorSpec

__all__ = ["DEFAULT_OPSET", "DTYPES", "NORMALIZATION", "PUBLISHED", "ExportOptions", "InputShape"]

DEFAULT_OPSET = 20
#: Hint where the normalization of pixels is needed and not known.
NORMALIZATION = "give it with --preprocess, or with --mean and --std, for instance --mean 0.5 --std 0.25"
DECODES = ("none", "boxes", "nms")
#: instead of a weights file: those that torchvision publishes
PUBLISHED = "published"
#: Element types that a PyTorch input may have.
DTYPES = ("float32", "float16", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")

#: A shape, a shape and a dtype, or a spec with both.
InputShape = Sequence[int] | tuple[Sequence[int], str] | TensorSpec


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how.

    Attributes:
        inputs: Shape of each input by name, batch included, or `(shape, dtype)`. Known for zoo models and `.pt2` files. A name
            such as "batch.ids" is the entry "ids" of the dictionary that the argument "batch" takes, "state.0" the first
            element of a tuple, "past.0.1" the second element of the first element.
        shapes: Of the inputs of a finished ONNX graph, fixed in the graph; for a PyTorch source, `inputs`.
        batch: "dynamic", or the fixed size of the batch axes. A `.pt2` or `.onnx` file keeps its own dynamic shapes with
            "dynamic".
        batch_axes: Axis of the batch by input name, None for an input without one. By default axis 0 of the inputs whose first
            size equals that of the first input.
        opset: Version of the ONNX operator set.
        weights: File to load into a zoo model or callable; "published" downloads torchvision's for a zoo model.
        weights_key: Which of the weights in a training checkpoint to take, such as "ema" or "model"; by default the averaged ones.
        weights_url: Folder or file that published weights are downloaded from; None for the public server.
        arguments: For the zoo architecture or the callable.
        embed_preprocess: Take uint8 NHWC pictures and normalize them in the graph.
        preprocess: How pictures become the input: the name of a preset, a JSON file or its content; known for zoo models.
        pixels: How pixels are normalized (scale, mean, std), in place of what `preprocess` has.
        decode: For detectors: "none" gives raw head maps, "boxes" decoded boxes and scores, "nms" final detections.
        labels: Names of the classes.
        seed: Of random weights.
        force: Replace an existing bundle.
        name: The model's name in the manifest; taken from the source by default.
        trust_source: Load a `.pt2` file that can run code when it is loaded.
        compare: Compare the graph with the PyTorch program, both in float64, and store the verdict in the bundle.
    """

    inputs: Mapping[str, InputShape] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int | str = "dynamic"
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    opset: int = DEFAULT_OPSET
    weights: str | os.PathLike[str] | None = None
    weights_key: str | None = None
    weights_url: str | None = None
    arguments: Mapping[str, Any] | None = None
    embed_preprocess: bool = False
    preprocess: str | os.PathLike[str] | Mapping[str, Any] | None = None
    pixels: Mapping[str, Any] | None = None
    decode: str | None = None
    labels: Sequence[str] | None = None
    seed: int = 0
    force: bool = False
    name: str | None = None
    trust_source: bool = False
    compare: bool = True

    def __post_init__(self) -> None:
        if self.batch != "dynamic" and not (isinstance(self.batch, int) and self.batch >= 1):
            raise UsageError(f"batch must be a positive number or 'dynamic', not {self.batch!r}", "for instance --batch 1")
        if self.weights_url is not None and self.weights != PUBLISHED:
            raise UsageError("--weights-url goes with --weights published", "add --weights published")
        if self.weights_key is not None and self.weights in (None, PUBLISHED):
            raise UsageError("--weights-key goes with --weights FILE", "give the file")
        if self.decode not in (None, *DECODES):
            raise UsageError(f"there is no decoding called {self.decode!r}", f"one of: {', '.join(DECODES)}")

    @property
    def for_pytorch_only(self) -> Mapping[str, object]:
        """Return the options that a finished ONNX graph cannot have, by their names on the command line."""
        return {
            "--weights": self.weights,
            "--input": self.inputs,
            "--decode": self.decode,
        }
