"""RNN, GRU and LSTM: matrix products over the whole sequence for the inputs, one a step for the state.

Shapes with layout 0: X (T, N, I), W (D, gates * H, I), R (D, gates * H, H), B (D, 2 * gates * H), D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from relu_deploy.backends.reference.registry import Call, filled, operator
from relu_deploy.backends.reference.special import log1p_exp, sigmoid
from relu_deploy.tensors import Array

Activation = Callable[[Array], Array]

#: default alpha and beta of the activations that have them
DEFAULTS = {
    "leakyrelu": (0.01, 0.0), "thresholdedrelu": (1.0, 0.0), "elu": (1.0, 0.0), "hardsigmoid": (0.2, 0.5),
    "affine": (1.0, 0.0), "scaledtanh": (1.0, 1.0),
}  # fmt: skip
#: how many alphas and betas an activation takes from the attributes' lists
TAKES = {
    "leakyrelu": (1, 0),
    "thresholdedrelu": (1, 0),
    "elu": (1, 0),
    "hardsigmoid": (1, 1),
    "affine": (1, 1),
    "scaledtanh": (1, 1),
}


def _activation(name: str, alpha: float, beta: float) -> Activation:
    functions: dict[str, Activation] = {
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "leakyrelu": lambda x: np.where(x < 0, x.dtype.type(alpha) * x, x),
        "thresholdedrelu": lambda x: np.where(x > alpha, x, x.dtype.type(0)),
        "elu": lambda x: np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x),
        "hardsigmoid": lambda x: np.clip(x.dtype.type(alpha) * x + x.dtype.type(beta), 0, 1),
        "affine": lambda x: x.dtype.type(alpha) * x + x.dtype.type(beta),
        "scaledtanh": lambda x: x.dtype.type(alpha) * np.tanh(x.dtype.type(beta) * x),
        "softsign": lambda x: x / (1 + np.abs(x)),
        "softplus": log1p_exp,
    }
    if name not in functions:
        raise ValueError(f"unknown activation {name!r}")
    return functions[name]


def _activations(call: Call, defaults: Sequence[str], directions: int) -> list[Activation]:
    """Return the activations of all directions; alphas and betas go to those that take some, in order."""
    names = [name.lower() for name in call.get("activations") or list(defaults) * directions]
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    result = []
    for name in names:
        alpha, beta = (float(np.float32(value)) for value in DEFAULTS.get(name, (0.0, 0.0)))
        takes_alpha, takes_beta = TAKES.get(name, (0, 0))
        if takes_alpha and alphas:
            alpha = alphas.pop(0)
        if takes_beta and betas:
            beta = betas.pop(0)
        result.append(_activation(name, alpha, beta))
    return result


@dataclass
class Direction:
    """One direction of a recurrent layer. x: (T, N, I), already reversed for the backward one; valid: (T, N, 1)."""

    x: Array
    w: Array
    r: Array
    bias_w: Array
    bias_r: Array
    valid: Array | None
    functions: Sequence[Activation]
    clip: float | None

    @property
    def is_plain(self) -> bool:
        """Whether every sequence has all steps and no argument of an activation is bounded."""
        return self.valid is None and self.clip is None

    def clipped(self, x: Array) -> Array:
        """Return the argument of an activation within ±clip."""
        return x if self.clip is None else np.clip(x, -self.clip, self.clip)

    def keep(self, step: int, new: Array, old: Array) -> Array:
        """Return the new state where the sequence still runs at `step`."""
        return new if self.valid is None else np.where(self.valid[step], new, old)


def _run(
    call: Call, operands: Sequence[Array | None], defaults: Sequence[str], step: Callable[..., tuple[Array, Array, Array]]
) -> tuple[Array, ...]:
    """Run `step` (direction, h, c, peephole) over all directions and return Y, Y_h, Y_c."""
    padded = filled(tuple(operands), 8)
    x, w, r, b, lengths, initial_h, initial_c, peephole = padded
    if x is None or w is None or r is None:
        raise ValueError("the inputs X, W and R are required")
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x = x.swapaxes(0, 1)
    hidden, gates = r.shape[-1], len(r[0]) // r.shape[-1]
    way = call.get("direction", "forward")
    ways = ["forward", "reverse"] if way == "bidirectional" else [way]
    functions = _activations(call, defaults, len(ways))
    each = len(functions) // len(ways)
    outputs = []
    for index, direction in enumerate(ways):
        order = _order(x, lengths, reverse=direction == "reverse")
        valid = None if lengths is None else np.arange(x.shape[0])[:, None, None] < lengths.reshape(1, -1, 1)
        bias = np.zeros(2 * gates * hidden, x.dtype) if b is None else b[index]
        part = Direction(
            np.take_along_axis(x, order[:, :, None], 0) if order is not None else x, w[index], r[index],
            bias[: gates * hidden], bias[gates * hidden :], valid,
            functions[index * each : (index + 1) * each], call.get("clip"),
        )  # fmt: skip
        zero = np.zeros((x.shape[1], hidden), x.dtype)
        start_h, start_c = (_initial(value, index, zero, batch_first) for value in (initial_h, initial_c))
        y, h, c = step(part, start_h, start_c, None if peephole is None else peephole[index])
        if valid is not None:
            y = np.where(valid, y, y.dtype.type(0))
        if order is not None:
            y = np.take_along_axis(y, order[:, :, None], 0)
        outputs.append((y, h, c))
    ys, hs, cs = (np.stack(parts, axis) for parts, axis in zip(zip(*outputs, strict=True), (1, 0, 0), strict=True))
    if batch_first:
        return ys.transpose(2, 0, 1, 3), hs.swapaxes(0, 1), cs.swapaxes(0, 1)
    return ys, hs, cs


def _initial(value: Array | None, index: int, zero: Array, batch_first: bool) -> Array:
    if value is None:
        return zero
    return np.asarray(value[:, index] if batch_first else value[index])


def _order(x: Array, lengths: Array | None, *, reverse: bool) -> Array | None:
    """Return (T, N) places that turn each sequence round within its own length; it is its own inverse."""
    if not reverse:
        return None
    steps = np.arange(x.shape[0])[:, None]
    counts = np.full(x.shape[1], x.shape[0]) if lengths is None else lengths.astype(np.int64)
    return np.where(steps < counts, counts - 1 - steps, steps)


@operator("RNN")
def rnn(call: Call, *operands: Array | None) -> tuple[Array, ...]:
    def step(part: Direction, h: Array, c: Array, _: Array | None) -> tuple[Array, Array, Array]:
        (f,) = part.functions
        inputs = part.x @ part.w.T + (part.bias_w + part.bias_r)
        ys, recurrent = np.empty((*part.x.shape[:2], h.shape[1]), h.dtype), part.r.T
        for time, incoming in enumerate(inputs):
            h = part.keep(time, f(part.clipped(incoming + h @ recurrent)), h)
            ys[time] = h
        return ys, h, c

    return _run(call, operands, ["Tanh"], step)[:2]


@operator("GRU")
def gru(call: Call, *operands: Array | None) -> tuple[Array, ...]:
    """Gates in the order z (update), r (reset), h (hidden)."""
    reset_after = bool(call.get("linear_before_reset", 0))

    def step(part: Direction, h: Array, c: Array, _: Array | None) -> tuple[Array, Array, Array]:
        f, g = part.functions
        n = h.shape[1]
        bias = part.bias_w.copy()
        bias[: 2 * n] += part.bias_r[: 2 * n]
        if not reset_after:
            bias[2 * n :] += part.bias_r[2 * n :]
        inputs = part.x @ part.w.T + bias
        gates, hidden, hidden_bias = part.r[: 2 * n].T, part.r[2 * n :].T, part.bias_r[2 * n :]
        ys = np.empty((*part.x.shape[:2], n), h.dtype)
        for time, incoming in enumerate(inputs):
            zr = f(part.clipped(incoming[:, : 2 * n] + h @ gates))
            z, r = zr[:, :n], zr[:, n:]
            inner = r * (h @ hidden + hidden_bias) if reset_after else (r * h) @ hidden
            new = g(part.clipped(incoming[:, 2 * n :] + inner))
            h = part.keep(time, (1 - z) * new + z * h, h)
            ys[time] = h
        return ys, h, c

    return _run(call, operands, ["Sigmoid", "Tanh"], step)[:2]


@operator("LSTM")
def lstm(call: Call, *operands: Array | None) -> tuple[Array, ...]:
    """Gates in the order i (input), o (output), f (forget), c (cell); peepholes in the order i, o, f."""
    coupled = bool(call.get("input_forget", 0))

    def step(part: Direction, h: Array, c: Array, peephole: Array | None) -> tuple[Array, Array, Array]:
        f, g, last = part.functions
        n = h.shape[1]
        inputs = part.x @ part.w.T + (part.bias_w + part.bias_r)
        ys, recurrent = np.empty((*part.x.shape[:2], n), h.dtype), part.r.T
        zero = h.dtype.type(0)
        p_i, p_o, p_f = (zero, zero, zero) if peephole is None else np.split(peephole, 3)
        if peephole is None and not coupled and part.is_plain and (f, g, last) == (sigmoid, np.tanh, np.tanh):
            return _plain_lstm(inputs, recurrent, h, c)
        for time, incoming in enumerate(inputs):
            gates = h @ recurrent
            gates += incoming
            i = f(part.clipped(gates[:, :n] + p_i * c))
            forget = 1 - i if coupled else f(part.clipped(gates[:, 2 * n : 3 * n] + p_f * c))
            new_c = forget * c + i * g(part.clipped(gates[:, 3 * n :]))
            o = f(part.clipped(gates[:, n : 2 * n] + p_o * new_c))
            # The clip bounds the sums of the gates. The cell's own activation takes the cell as it is, as ONNX Runtime does.
            new_h = o * last(new_c)
            h, c = part.keep(time, new_h, h), part.keep(time, new_c, c)
            ys[time] = h
        return ys, h, c

    return _run(call, operands, ["Sigmoid", "Tanh", "Tanh"], step)


def _plain_lstm(inputs: Array, recurrent: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    """Return Y, the last h and the last c of an LSTM with the default activations and nothing else.

    A step of a small layer takes as long as its calls do: each gate has its place in one array, which is computed in place.

    Args:
        inputs: What the inputs and the biases add to the gates, (T, N, 4 * H).
        recurrent: (H, 4 * H).
        h: The first state, (N, H).
        c: The first cell, (N, H).
    """
    n = h.shape[1]
    gates, c, ys = np.empty(inputs.shape[1:], h.dtype), c.copy(), np.empty((*inputs.shape[:2], n), h.dtype)
    opened, new = gates[:, : 3 * n], gates[:, 3 * n :]
    i, o, forget = opened[:, :n], opened[:, n : 2 * n], opened[:, 2 * n :]
    # The sign of what exp takes in 1 / (1 + exp(-x)) is turned once and not in every step.
    turned = np.where(np.arange(4 * n) < 3 * n, -1, 1).astype(h.dtype)
    inputs, recurrent = inputs * turned, recurrent * turned
    for incoming, y in zip(inputs, ys, strict=True):
        np.matmul(h, recurrent, out=gates)
        np.add(gates, incoming, out=gates)
        np.exp(opened, out=opened)
        np.add(opened, 1, out=opened)
        np.reciprocal(opened, out=opened)
        np.tanh(new, out=new)
        np.multiply(c, forget, out=c)
        np.multiply(new, i, out=new)
        np.add(c, new, out=c)
        np.tanh(c, out=y)
        np.multiply(y, o, out=y)
        h = y
    return ys, h, c
