"""The operators, one family a file. Importing a file registers its operators."""

from __future__ import annotations

from functools import cache
from importlib import import_module

__all__ = ["FAMILIES", "load"]

FAMILIES = (
    "control_flow",
    "imaging.detection",
    "imaging.image",
    "imaging.resize",
    "imaging.sampling",
    "layers.activations",
    "layers.convolution",
    "layers.normalization",
    "layers.pooling",
    "layers.recurrent",
    "layers.training",
    "numeric.elementwise",
    "numeric.linear_algebra",
    "numeric.random",
    "numeric.reductions",
    "numeric.signal",
    "quantized.contrib",
    "quantized.integer",
    "quantized.quantization",
    "quantized.quantized_contrib",
    "tensor.casting",
    "tensor.gather_scatter",
    "tensor.indexing",
    "tensor.sequence",
    "tensor.shape",
    "tensor.slicing",
    "tensor.sorting",
    "tensor.text",
)


@cache
def load() -> None:
    """Import every family once."""
    for name in FAMILIES:
        import_module(f"{__name__}.{name}")
