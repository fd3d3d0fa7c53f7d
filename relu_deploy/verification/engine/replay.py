"""A graph evaluated with what an engine showed in the place of its tensors: each region from the engine's own inputs.

As the evaluation comes by a tensor that was shown, the evaluated value is kept and the shown one goes on. So one pass over
the graph replays every region by itself, however they overlap, and no piece has to be cut out and loaded.
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
from relu_deploy.verification.invariants import Contract, check_contract
from relu_deploy.verification.verdict import LIMITS, SINGLE, Comparison, compare, estimate_noise_floor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Evaluations", "compare_shown", "contract_of", "evaluate", "rounds_to", "shapes_at"]

#: the values of the tensors that were shown, by what was evaluated: "float64", "float32" as the graph is, "rounded/<precision>"
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
    """Return what the graph gives for every tensor in `shown`.

    replay: once a tensor was evaluated, go on with what the engine showed of it.
    """

    def evaluated(**how: Any) -> dict[str, Array]:
        values: dict[str, Array] = {}

        def seen(name: str, value: Any) -> Any:
            if name not in shown:
                return value
            values[name] = value
            return shown[name].value.astype(value.dtype) if replay else value

        session.evaluate(feeds, seen=cast(Seen, seen), **how)
        return values

    found = {f"rounded/{each}": evaluated(rounding=Rounding(each)) for each in sorted(precisions)}
    return {"float64": evaluated(), "float32": evaluated(wide=False), **found}


def rounds_to(model: ir.Model, region: Region, view: EngineTrace) -> str:
    """Return the coarsest precision that a region rounds to on its way: of its nodes' results and of codes inside it.

    Codes that it reads or ends in are not on its way, and codes of weights are what they are.
    """
    stored, found = node_precisions(model), {"float32"}
    for node in model.graph:
        if node.name not in region.nodes:
            continue
        if node.op_type == "QuantizeLinear":
            source = node.inputs[0]
            # The engine may have quantized what it showed already: then its numbers are codes, and stay as they are.
            before = view.shown.get(str(source.name)) if source is not None and source.name in region.inputs else None
            is_exact = source is not None and source.const_value is not None
            if not is_exact and node.outputs[0].name != region.tensor and not (before and before.quantized):
                found.add(stored[str(node.name)])
            continue
        kind = node.outputs[0].dtype
        named = {"FLOAT16": "float16", "BFLOAT16": "bfloat16"}.get(kind.name if kind else "")
        found |= {named} if named else set()
    return max(found, key=PRECISIONS.index)


def compare_shown(shown: Shown, got: Array, evaluations: Evaluations, precision: str) -> Comparison:
    """Return the verdict on `got`, a value of the tensor `shown`. precision: that was rounded to on the way to it."""
    true, noise = _true_and_noise(shown, evaluations, precision)
    return compare(shown.real(got), true, noise, LIMITS["int8" if shown.quantized else precision])


def _true_and_noise(shown: Shown, evaluations: Evaluations, precision: str) -> tuple[Array, float]:
    true, *others = (shown.real(evaluations[each][shown.tensor]) for each in ("float64", "float32", f"rounded/{precision}"))
    # How many rows come out may depend on rounding: a non-maximum suppression is no measure of noise then.
    noise = estimate_noise_floor(true, *(other for other in others if other.shape == true.shape), precision=precision)
    return true, noise if shown.quantized is None else max(noise, shown.quantized.noise(true))


def contract_of(relu: Relu, shown: Shown, own: Evaluations, precision: str) -> Contract:
    """Return how the Relu keeps its contract on what it was given, whether or not that was right."""
    true, noise = _true_and_noise(shown, own, precision)
    return check_contract(relu, shown.real(shown.value), true, SINGLE * noise, "int8" if shown.quantized else precision, None)
