"""What the reference evaluator does, and that it runs anywhere."""

from __future__ import annotations

from relu_deploy.backends.base import Capabilities, Probe

__all__ = ["capabilities", "probe"]


def probe(name: str) -> Probe:
    """Return that the backend is usable: it needs nothing that is not always installed."""
    import numpy as np
    import onnx

    return Probe(name, True, version=f"onnx {onnx.__version__}, numpy {np.__version__}", device="CPU")


def capabilities(_: str) -> Capabilities:
    return Capabilities(evaluates_float64=True, compared_by_default=False)
