"""The reference backend: ONNX graphs evaluated by NumPy, in float64 for the truth and in float32 for its noise floor."""

from relu_deploy.backends.reference.session import load, probe

__all__ = ["load", "probe"]
