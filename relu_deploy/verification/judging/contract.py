"""The Relu contract: what the output of every Relu satisfies, whatever its input.

Nothing negative; nothing above the bound of a ReLU6; zero exactly where the truth is zero, beyond noise; a NaN that comes in
comes out, unless `NAN_NOT_PROPAGATED` is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph import Relu
from relu_deploy.graph.subgraph import Producers
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.judging.verdict import LIMITS

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NAN_NOT_PROPAGATED", "Contract", "check_contract", "feeds_of_nan", "nan_is_kept"]

#: the finding that Relus return a number for NaN, as those of OpenVINO do; `verify` can accept it
NAN_NOT_PROPAGATED = "nan-not-propagated"
#: operators through which an all-NaN input stays all NaN by IEEE 754, so that a Relu behind them must receive one
LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization", "Identity", "Concat", "Reshape"}
LINEAR |= {"Flatten", "Transpose", "Dropout", "Relu", "Clip", "GlobalAveragePool", "AveragePool", "ReduceMean"}


@dataclass(frozen=True)
class Contract:
    """How one Relu keeps the contract.

    Attributes:
        upper: The bound of a ReLU6 or clipped Relu.
        mask_errors: Elements that are zero on one side only, beyond noise; None without a truth.
        nan_kept: None when no NaN could be brought before it.
        sparsity: Share of zeros.
        dead: Channels (axis 1) that are zero everywhere on these inputs.
        accepts_lost_nan: A NaN that is not kept does not break the contract.
        accepts_masks: Elements that are zero on one side only do not either: a quantizer clips there.
    """

    minimum: float
    maximum: float
    upper: float | None
    mask_errors: int | None
    nan_kept: bool | None
    sparsity: float
    dead: int
    channels: int
    accepts_lost_nan: bool = False
    accepts_masks: bool = False

    @property
    def broken(self) -> str:
        """Return which term is broken, "" when none is."""
        if self.minimum < 0:
            return f"negative output {self.minimum:.3g}"
        if self.upper is not None and self.maximum > self.upper:
            return f"output {self.maximum:.6g} above {self.upper:g}"
        if self.mask_errors and not self.accepts_masks:
            noun, verb = ("element", "is") if self.mask_errors == 1 else ("elements", "are")
            return f"{self.mask_errors} {noun} {verb} zero where the truth is not, or the other way round"
        return "swallows NaN" if self.nan_kept is False and not self.accepts_lost_nan else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "broken": self.broken,
            "minimum": _finite(self.minimum),
            "maximum": _finite(self.maximum),
            "mask_errors": self.mask_errors,
            "nan_kept": self.nan_kept,
            "sparsity": self.sparsity,
            "dead": self.dead,
            "channels": self.channels,
        }


def check_contract(
    relu: Relu, got: Array, true: Array | None, single: float | Array, precision: str, nan_kept: bool | None
) -> Contract:
    """Return how the output of a Relu keeps the contract.

    Args:
        relu: The Relu.
        got: Its output on a backend.
        true: The truth in float64, of the same shape; None when there is none.
        single: How far off correct arithmetic may leave a single element, of the tensor or of each channel.
        precision: Of the graph; it chooses the limit.
        nan_kept: Whether a NaN passed through it.
    """
    wrong = None
    if true is not None and true.shape == got.shape:
        noise = LIMITS[precision] * single
        wide = got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            wrong = int(np.count_nonzero(((wide == 0) & (true > noise)) | ((true == 0) & (wide > noise))))
    finite = got[np.isfinite(got)] if got.dtype.kind == "f" else got
    channels = got.shape[1] if got.ndim > 1 else 1
    fired = (
        np.any(np.moveaxis(got, 1, 0).reshape(channels, -1) > 0, axis=1) if got.ndim > 1 and got.size else np.ones(channels, bool)
    )
    return Contract(
        minimum=float(np.min(finite, initial=0)) if finite.size else 0.0,
        maximum=float(np.max(finite, initial=0)) if finite.size else 0.0,
        upper=relu.upper,
        mask_errors=wrong,
        nan_kept=nan_kept,
        sparsity=float(np.mean(got == 0)) if got.size else 0.0,
        dead=int(np.count_nonzero(~fired)),
        channels=channels,
    )


def feeds_of_nan(feeds: Feeds) -> Feeds:
    """Return `feeds` with nothing but NaN in every floating-point input; {} when there is no such input."""
    if not any(array.dtype.kind == "f" for array in feeds.values()):
        return {}
    return {name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array for name, array in feeds.items()}


def nan_is_kept(model: ir.Model, relus: Sequence[Relu], feeds: Feeds, results: Feeds) -> dict[str, bool | None]:
    """Return for the tensor of each Relu whether NaN passed through it; None where it is not known that one reached it.

    Args:
        model: The graph.
        relus: Its Relus.
        feeds: As from `feeds_of_nan`.
        results: The outputs of the Relus of a session for `feeds`.
    """
    all_nan = {
        name for name, array in (feeds | results).items() if array.dtype.kind == "f" and array.size and np.isnan(array).all()
    }
    kept: dict[str, bool | None] = {}
    starts = {relu.output for relu in relus} | set(feeds)
    producers = None
    for relu in relus:
        if relu.output not in results:
            kept[relu.output] = None
        elif np.isnan(results[relu.output]).any():
            kept[relu.output] = True
        else:
            producers = producers or Producers(model)
            piece = producers.nodes_between(starts, [relu.output])
            reads = {value.name for node in piece for value in node.inputs if value is not None} & starts
            # Only where everything before it is NaN, constants aside, and no node between may drop one did this Relu drop it.
            certain = bool(reads) and reads <= all_nan and all(node.op_type in LINEAR for node in piece)
            kept[relu.output] = False if certain else None
    return kept


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
