"""The operators, one family a file. Importing a file registers its operators."""

from __future__ import annotations

from functools import cache
from importlib import import_module

__all__ = ["FAMILIES", "load"]

FAMILIES = (
    "activations",
    "casting",
    "control_flow",
    "contrib",
    "convolution",
    "detection",
    "elementwise",
    "gather_scatter",
    "image",
    "indexing",
    "integer",
    "linear_algebra",
    "normalization",
    "pooling",
    "quantization",
    "quantized_contrib",
    "random",
    "recurrent",
    "reductions",
    "resize",
    "sampling",
    "sequence",
    "shape",
    "signal",
    "slicing",
    "sorting",
    "text",
    "training",
)


@cache
def load() -> None:
    """Import every family once."""
    for name in FAMILIES:
        import_module(f"{__name__}.{name}")
