"""If, Loop, Scan and SequenceMap: operators that evaluate graphs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


def _frame(call: Call) -> Any:
    assert call.frame is not None, "an operator with a body runs inside a graph"
    return call.frame


@operator("If", keeps_types=True)
def if_operator(call: Call, condition: Array) -> tuple[Any, ...]:
    branch = call.get("then_branch" if bool(np.all(condition)) else "else_branch")
    return tuple(_frame(call).run(branch, []))


@operator("Loop", keeps_types=True)
def loop(call: Call, trips: Array | None, condition: Array | None, *carried: Any) -> tuple[Any, ...]:
    """Without a trip count the condition alone ends the loop; without a condition the trip count does."""
    body, frame = call.get("body"), _frame(call)
    most = None if trips is None else int(np.asarray(trips).reshape(()))
    goes_on = True if condition is None else bool(np.all(condition))
    state: list[Any] = list(carried)
    collected: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(state))]
    count = 0
    while goes_on and (most is None or count < most):
        frame.evaluation.turns.begin("Loop", call.name, count)
        results = frame.run(body, [np.array(count, np.int64), np.array(True), *state])
        # Where the node has a trip count and no condition, what the body says about going on is ignored.
        goes_on = bool(np.all(results[0])) if condition is not None or most is None else True
        state = results[1 : 1 + len(state)]
        for values, value in zip(collected, results[1 + len(state) :], strict=True):
            values.append(value)
        count += 1
    places = range(1 + len(state), len(body.outputs))
    return (*state, *(_stacked(values, body.empty_output(place)) for values, place in zip(collected, places, strict=True)))


def _stacked(values: Sequence[Array], empty: Array) -> Array:
    return np.stack(values) if values else empty


@operator("Scan", until=8, keeps_types=True)
def scan_of_batches(call: Call, lengths: Array | None, *operands: Array) -> tuple[Array, ...]:
    """Version 8 has a batch axis before the sequence axis; each row runs for its own length."""
    body, count = call.get("body"), call.get("num_scan_inputs")
    states, inputs = operands[: len(operands) - count], operands[len(operands) - count :]
    backward = call.get("directions") or [0] * count
    longest = inputs[0].shape[1]
    rows = []
    for row in range(inputs[0].shape[0]):
        length = longest if lengths is None else int(lengths[row])
        cut = [np.flip(x[row, :length], 0) if back else x[row, :length] for x, back in zip(inputs, backward, strict=True)]
        final, scanned = _scanned(call, body, [state[row] for state in states], cut, length)
        padded = [np.concatenate([x, np.zeros((longest - length, *x.shape[1:]), x.dtype)]) for x in map(np.stack, scanned)]
        rows.append([*final, *padded])
    return tuple(np.stack(values) for values in zip(*rows, strict=True))


@operator("Scan", since=9, keeps_types=True)
def scan(call: Call, *operands: Array) -> tuple[Array, ...]:
    body, count = call.get("body"), call.get("num_scan_inputs")
    states, inputs = operands[: len(operands) - count], operands[len(operands) - count :]
    axes, backward = call.get("scan_input_axes") or [0] * count, call.get("scan_input_directions") or [0] * count
    moved = [np.moveaxis(x, axis, 0) for x, axis in zip(inputs, axes, strict=True)]
    moved = [np.flip(x, 0) if back else x for x, back in zip(moved, backward, strict=True)]
    final, scanned = _scanned(call, body, list(states), moved, moved[0].shape[0])
    outs = len(scanned)
    out_axes, reverse = call.get("scan_output_axes") or [0] * outs, call.get("scan_output_directions") or [0] * outs
    results = []
    for place, (values, axis, back) in enumerate(zip(scanned, out_axes, reverse, strict=True)):
        stacked = _stacked(values[::-1] if back else values, body.empty_output(len(states) + place))
        results.append(np.moveaxis(stacked, 0, axis))
    return (*final, *results)


def _scanned(
    call: Call, body: Any, state: list[Any], inputs: Sequence[Array], length: int
) -> tuple[list[Any], list[list[Array]]]:  # fmt: skip
    frame = _frame(call)
    scanned: list[list[Array]] = [[] for _ in range(len(body.outputs) - len(state))]
    for step in range(length):
        frame.evaluation.turns.begin("Scan", call.name, step)
        results = frame.run(body, [*state, *(x[step] for x in inputs)])
        state = results[: len(state)]
        for values, value in zip(scanned, results[len(state) :], strict=True):
            values.append(value)
    return state, scanned


@operator("SequenceMap", keeps_types=True)
def sequence_map(call: Call, sequence: list[Any], *others: Any) -> tuple[list[Any], ...]:
    body, frame = call.get("body"), _frame(call)
    results: list[list[Any]] = [[] for _ in body.outputs]
    for index, item in enumerate(sequence):
        given = [other[index] if isinstance(other, list) else other for other in others]
        for values, value in zip(results, frame.run(body, [item, *given]), strict=True):
            values.append(value)
    return tuple(results)
