"""The `preprocess` of a manifest: from --preprocess, --mean and --std, or the zoo, completed by the graph's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from relu_deploy.errors import UsageError
from relu_deploy.exporting.options import ExportOptions
from relu_deploy.preprocessing.description import Preprocess, plane_of
from relu_deploy.preprocessing.presets import load_preprocess
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.tensors import TensorSpec
from relu_deploy.zoo.model_recipe import ModelRecipe

__all__ = ["chosen_pixels", "manifest_preprocess"]


def chosen_pixels(options: ExportOptions, recipe: ModelRecipe | None) -> Mapping[str, Any] | None:
    """Return the preprocessing to export with, as in a manifest: that of the options, else that of the zoo; None for none.

    Raises:
        UsageError: If there is no such preset, or the model takes texts.
        InputError: If a file of a preprocessing is not valid.
    """
    known = None if recipe is None else recipe.preprocess
    takes_text = known is not None and "text" in known
    if options.preprocess is None:
        if options.pixels is not None or known is None or takes_text:
            return options.pixels if options.pixels is not None else known
        return load_preprocess(known).to_json()
    if takes_text:
        raise UsageError("--preprocess describes pictures, and this model takes texts", "leave it out")
    return {**load_preprocess(options.preprocess).to_json(), **(options.pixels or {})}


def manifest_preprocess(options: ExportOptions, inputs: tuple[TensorSpec, ...], *, embedded: bool) -> dict[str, Any] | None:
    """Return the manifest's `preprocess` for a graph with these inputs, with every size that follows from them.

    Args:
        options: With the chosen `pixels`.
        inputs: Of the finished graph.
        embedded: The graph reorders and normalizes the pixels itself.

    Raises:
        UsageError: If the preprocessing does not fit the input.
    """
    if options.pixels is None or "text" in options.pixels:
        return None if options.pixels is None else dict(options.pixels)
    steps = replace(read_preprocess(options.pixels), embedded=embedded)
    spec = inputs[0] if inputs else None
    if spec is None or len(spec.shape) != 4:
        if options.preprocess is not None:
            raise UsageError(f"--preprocess: the input {spec} is not a picture", "leave it out")
        return steps.to_json()
    steps = replace(steps, layout=_layout(spec, steps))
    fitted = steps.fitted(spec)
    if options.preprocess is not None:
        _check(fitted, spec)
    return fitted.to_json()


def _layout(spec: TensorSpec, steps: Preprocess) -> str:
    """Return the layout of a picture input: that of its channels where only one axis can be them, else the declared one."""
    if steps.embedded:
        return "NHWC"
    counts = (len(steps.mean),) if steps.mean else (1, 3)
    first, last = spec.shape[1] in counts, spec.shape[3] in counts
    return steps.layout if first == last else "NCHW" if first else "NHWC"


def _check(steps: Preprocess, spec: TensorSpec) -> None:
    channels, *sides = plane_of(spec, {"layout": steps.layout, "embedded": steps.embedded})
    if channels not in (1, 3):
        raise UsageError(f"--preprocess: the input {spec} is not a picture of 1 or 3 channels", "leave it out")
    if len(steps.mean) != channels:
        raise UsageError(
            f"--preprocess: the normalization is of {len(steps.mean)} channels, and the input {spec} has {channels}",
            "give that of the model with --mean and --std",
        )
    if steps.resize.rounding == "none" and spec.dtype == "uint8":
        raise UsageError(
            f"--preprocess: the input {spec} takes whole gray levels, and the resizing does not round",
            'give a JSON file with {"resize": {"rounding": "once"}}',
        )
    if steps.resize.mode == "letterbox" and steps.resize.size is None and not all(isinstance(side, int) for side in sides):
        raise UsageError(
            f"--preprocess: the letterbox has no size, and the input {spec} takes any",
            'fix it with --shape, or give a JSON file with {"resize": {"size": [640, 640]}}',
        )
