"""Whether a model can be served: the types that the Open Inference Protocol has."""

from __future__ import annotations

from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported
from relu_deploy.serving.protocol.tensors import why_no_datatype

__all__ = ["require_protocol_types"]


def require_protocol_types(bundle: Bundle) -> None:
    """Raise Unsupported if an input or output has a type that the protocol does not have: no server would start with the model."""
    for spec in (*bundle.inputs, *bundle.outputs):
        if (why := why_no_datatype(spec)) is not None:
            raise Unsupported(f"{bundle.title}: {why[0]}", why[1])
