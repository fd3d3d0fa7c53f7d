"""Evaluation of a graph with the tensors that an engine showed: each region from the engine's own inputs.

At a tensor that was shown, the evaluated value is kept and the shown one is passed to the next nodes. So one pass over the
graph replays every region by itself, however they overlap, and no piece has to be cut out and loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends.base import Rounding, Seen, TruthSession
from relu_deploy.graph import Relu, node_precisions
from relu_deploy.graph.precision import PRECISIONS
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.engine.fusion_regions import EngineTrace, Region, Shown
from relu_deploy.verification.judging.contract import Contract, check_contract
from relu_deploy.verification.judging.verdict import LIMITS, SINGLE, Comparison, compare, estimate_noise_floor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Evaluations", "compare_shown", "contract_of", "evaluate", "rounds_to", "shapes_at"]

#: the values of the tensors that were shown, by the evaluation: "float64", "float32" as the graph is, "rounded/<precision>"
Evaluations = dict[str, dict[str, Array]]


def shapes_at(session: TruthSession, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the graph, at `feeds`."""
    shapes = {name: array.shape for name, array in feeds.items()}

    def keep(name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            shapes[name] = value.shape
        return value

    session.evaluate(feeds, seen=cast(Seen, keep))
    return shapes


def evaluate(
    session: TruthSession, feeds: Feeds, shown: Mapping[str, Shown], precisions: set[str], *, replay: bool = False
) -> Evaluations:
    """Return the evaluated value of every tensor in `shown`.

    Args:
        session: Evaluates the graph.
        feeds: Its inputs.
        shown: The tensors that the engine showed.
        precisions: Precisions to round to at random.
        replay: Continue from the tensors that the engine showed instead of the evaluated ones.
    """

    def evaluated(**options: Any) -> dict[str, Array]:
        values: dict[str, Array] = {}

        def seen(name: str, value: Any) -> Any:
            if name not in shown:
                return value
            values[name] = value
            return shown[name].value.astype(value.dtype) if replay else value

        session.evaluate(feeds, seen=cast(Seen, seen), **options)
        return values

    found = {f"rounded/{each}": evaluated(rounding=Rounding(each)) for each in sorted(precisions)}
    return {"float64": evaluated(), "float32": evaluated(wide=False), **found}


def rounds_to(model: ir.Model, region: Region, trace: EngineTrace) -> str:
    """Return the coarsest precision that a region rounds to: of the results of its nodes and of the codes inside it.

    Codes that it reads or ends in do not count, nor do those of weights, which are exact.
    """
    stored, found = node_precisions(model), {"float32"}
    for node in model.graph:
        if node.name not in region.nodes:
            continue
        if node.op_type == "QuantizeLinear":
            source = node.inputs[0]
            # The engine may have quantized that tensor already: then its numbers are codes and are exact.
            before = trace.shown.get(str(source.name)) if source is not None and source.name in region.inputs else None
            is_exact = source is not None and source.const_value is not None
            if not is_exact and node.outputs[0].name != region.tensor and not (before and before.quantized):
                found.add(stored[str(node.name)])
            continue
        kind = node.outputs[0].dtype
        named = {"FLOAT16": "float16", "BFLOAT16": "bfloat16"}.get(kind.name if kind else "")
        found |= {named} if named else set()
    return max(found, key=PRECISIONS.index)


def compare_shown(shown: Shown, got: Array, evaluations: Evaluations, precision: str) -> Comparison:
    """Return the verdict on `got`, a value of the tensor `shown`. precision: The coarsest that was rounded to before it."""
    true, noise = _true_and_noise(shown, evaluations, precision)
    return compare(shown.real(got), true, noise, LIMITS["int8" if shown.quantized else precision])


def _true_and_noise(shown: Shown, evaluations: Evaluations, precision: str) -> tuple[Array, float]:
    true, *others = (shown.real(evaluations[each][shown.tensor]) for each in ("float64", "float32", f"rounded/{precision}"))
    # The number of rows of a non-maximum suppression may depend on rounding: such an evaluation does not measure noise.
    noise = estimate_noise_floor(true, *(other for other in others if other.shape == true.shape), precision=precision)
    return true, noise if shown.quantized is None else max(noise, shown.quantized.noise(true))


def contract_of(relu: Relu, shown: Shown, replayed: Evaluations, precision: str) -> Contract:
    """Return how the Relu keeps its contract on its input, whether or not that was right."""
    true, noise = _true_and_noise(shown, replayed, precision)
    return check_contract(relu, shown.real(shown.value), true, SINGLE * noise, "int8" if shown.quantized else precision, None)
