"""The recipe of one model: architecture, weights, input, labels, pre- and post-processing, and the data that scores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ModelRecipe"]


@dataclass(frozen=True)
class ModelRecipe:
    """What the zoo knows about one model.

    Attributes:
        name: Its name in the zoo.
        task: "classification", "detection" or "segmentation".
        parameters: Number of trained parameters.
        activation: Name of the activation.
        shape: Of one input, without the batch.
        input_name: Name of the input.
        preprocess: How pictures or texts become its input, as in a manifest.
        postprocess: How its outputs become an answer, as in a manifest.
        labels: Names of its classes.
        weights: "shipped" (in models/), "fetched" (from the recipe's sources) or None (architecture only).
        weights_facts: Files or sources of the weights, and their sha256.
        arguments: Of the architecture.
        dataset: Name of the data set that scores it.
        metric: What it scores there.
        licence: Of the weights.
        folder: Its folder in models/.
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
        """Return an entry of `relu-deploy zoo --json`."""
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
