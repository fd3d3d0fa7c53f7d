"""The optimizers of ai.onnx.preview.training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array

TRAINING = "ai.onnx.preview.training"


def _each(call: Call, operands: tuple[Any, ...], step: Callable[..., tuple[Array, ...]]) -> tuple[Array, ...]:
    """Run `step` for each tensor: operands are the rate, the count, then all tensors, gradients and states in turn."""
    rate, count, *rest = operands
    kinds = len(rest) // _tensors(call, len(rest))
    number = len(rest) // kinds
    columns = [rest[kind * number : (kind + 1) * number] for kind in range(kinds)]
    results = [step(rate, count, *values) for values in zip(*columns, strict=True)]
    return tuple(value for values in zip(*results, strict=True) for value in values)


def _tensors(call: Call, operands: int) -> int:
    """Return how many tensors are optimized: outputs are the tensors and their states, operands have gradients besides."""
    return operands - len(call.outputs)


@operator("Adagrad", domain=TRAINING)
def adagrad(call: Call, *operands: Any) -> tuple[Array, ...]:
    def step(rate: Array, count: Array, x: Array, gradient: Array, squares: Array) -> tuple[Array, ...]:
        rate = rate / (1 + count * call.float("decay_factor", 0.0))
        g = x.dtype.type(call.float("norm_coefficient", 0.0)) * x + gradient
        squares = squares + g * g
        return (x - rate * g / (np.sqrt(squares) + x.dtype.type(call.float("epsilon", 1e-6)))).astype(x.dtype), squares

    return _each(call, operands, step)


@operator("Momentum", domain=TRAINING)
def momentum(call: Call, *operands: Any) -> tuple[Array, ...]:
    alpha, beta = call.float("alpha", 0.0), call.float("beta", 0.0)

    def step(rate: Array, count: Array, x: Array, gradient: Array, v: Array) -> tuple[Array, ...]:
        g = x.dtype.type(call.float("norm_coefficient", 0.0)) * x + gradient
        v = x.dtype.type(alpha) * v + x.dtype.type(beta if count > 0 else 1.0) * g
        direction = g + x.dtype.type(alpha) * v if call.get("mode") == "nesterov" else v
        return (x - rate * direction).astype(x.dtype), v

    return _each(call, operands, step)


@operator("Adam", domain=TRAINING)
def adam(call: Call, *operands: Any) -> tuple[Array, ...]:
    alpha, beta = call.float("alpha", 0.9), call.float("beta", 0.999)

    def step(rate: Array, count: Array, x: Array, gradient: Array, v: Array, h: Array) -> tuple[Array, ...]:
        kind = x.dtype.type
        g = kind(call.float("norm_coefficient", 0.0)) * x + gradient
        v, h = kind(alpha) * v + kind(1 - alpha) * g, kind(beta) * h + kind(1 - beta) * g * g
        if count > 0:
            rate = rate * np.sqrt(1 - kind(beta) ** count) / (1 - kind(alpha) ** count)
        moved = x - rate * v / (np.sqrt(h) + kind(call.float("epsilon", 1e-6)))
        return (kind(1 - call.float("norm_coefficient_post", 0.0)) * moved).astype(x.dtype), v, h

    return _each(call, operands, step)
