"""The recipe of a zoo model: architecture, weights, input, labels, pre- and post-processing, and data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ModelRecipe"]


@dataclass(frozen=True)
class ModelRecipe:
    """The recipe of one model in the zoo.

    Attributes:
        name: Its name in the zoo.
        task: "classification", "detection" or "segmentation".
        parameters: Number of trained parameters.
        activation: Name of the activation.
        shape: Shape of the input without the batch.
        input_name: Name of the input.
        preprocess: Preprocessing of pictures or texts, as in a manifest.
        postprocess: Post-processing of the outputs, as in a manifest.
        labels: Names of its classes.
        weights: "shipped" (in models/), "fetched" (from the recipe's sources) or None (architecture only).
        published: URL of torchvision's weights for the architecture, None where there are none.
        weights_facts: Files or sources of the weights, and their sha256.
        arguments: Arguments of the architecture's function.
        dataset: Name of the data set that it is scored on.
        metric: Its score on that data set.
        licence: License of the weights.
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
    published: str | None = None
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
            "published": self.published,
            "metric": dict(self.metric) if self.metric else None,
            "dataset": self.dataset,
            "licence": self.licence,
        }
