"""The environment variable that forbids TF32 to all of NVIDIA's libraries in a process.

ONNX Runtime's TensorRT provider has no option for TF32, so its sessions set the variable. It then holds for the whole process, and
libraries read it when they start, so it is not unset: a session that is to use TF32 is refused afterwards instead of computing in
float32 without a word.
"""

from __future__ import annotations

import os

from relu_deploy.errors import Unsupported

__all__ = ["forbid_tf32", "require_tf32"]

VARIABLE = "NVIDIA_TF32_OVERRIDE"


def forbid_tf32() -> None:
    """Forbid TF32 in this process. A value that is set already is not changed."""
    os.environ.setdefault(VARIABLE, "0")


def require_tf32(backend: str) -> None:
    """Check that TF32 is not forbidden in this process.

    Args:
        backend: Name of the backend that is to use it.

    Raises:
        Unsupported: If it is forbidden.
    """
    if os.environ.get(VARIABLE) == "0":
        raise Unsupported(
            f"{backend} cannot use TF32: {VARIABLE}=0 forbids it to this process",
            "unset it, or use another process: a session of onnxruntime-tensorrt sets it, having no other option",
        )
