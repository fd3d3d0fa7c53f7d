"""Third opinions by PyTorch, in float64, on operators of whole tensors, found by the name of a case's operator."""

from __future__ import annotations

from typing import Any

import numpy as np

from operator_sweep.case import Case

__all__ = ["opinion_of"]

UNARY = {
    "Abs": "abs", "Neg": "neg", "Exp": "exp", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sign": "sign", "Sin": "sin",
    "Cos": "cos", "Tan": "tan", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Erf": "erf",
    "Sigmoid": "sigmoid", "Reciprocal": "reciprocal", "Relu": "relu", "Asin": "asin", "Acos": "acos", "Atanh": "atanh",
    "Acosh": "acosh", "Sqrt": "sqrt", "Log": "log", "IsNaN": "isnan", "Det": "det",
}  # fmt: skip
BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Pow": "pow", "Equal": "eq", "Less": "lt", "Greater": "gt", "LessOrEqual": "le",
    "GreaterOrEqual": "ge", "Max": "maximum", "Min": "minimum", "MatMul": "matmul", "And": "logical_and", "Or": "logical_or",
    "Xor": "logical_xor", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
}  # fmt: skip


def opinion_of(case: Case) -> Any | None:
    """Return PyTorch's first output for `case`, None where it has no such operator or the attributes mean something else."""
    import torch

    if case.domain:
        return None
    values = [None if value is None else _tensor(value) for value in case.operands]
    result = _elementwise(torch, case, values)
    for kind in (_reduced, _normalized, _selected, _shaped):
        if result is None:
            result = kind(torch, case, values)
    return None if result is None else result.numpy()


def _tensor(value: Any) -> Any:
    import torch

    array = np.array(value, order="C")
    return torch.from_numpy(array.astype(np.float64) if array.dtype.kind == "f" else array.copy())


def _elementwise(torch: Any, case: Case, values: list[Any]) -> Any:
    name, attributes, functions = case.operator, case.attributes, torch.nn.functional
    if name in UNARY:
        return getattr(torch, UNARY[name])(values[0])
    if name in BINARY:
        return getattr(torch, BINARY[name])(values[0], values[1])
    if name == "Div":
        return torch.div(values[0], values[1], rounding_mode=None if values[0].is_floating_point() else "trunc")
    if name == "Mod":
        return (torch.fmod if attributes.get("fmod") else torch.remainder)(values[0], values[1])
    activations = {
        "Softplus": functions.softplus,
        "Softsign": functions.softsign,
        "HardSwish": functions.hardswish,
        "Mish": functions.mish,
    }
    if name in activations:
        return activations[name](values[0])
    if name == "LeakyRelu":
        return functions.leaky_relu(values[0], attributes.get("alpha", 0.01))
    if name in ("Elu", "Celu"):
        return getattr(functions, name.lower())(values[0], attributes.get("alpha", 1.0))
    if name == "Gelu":
        return functions.gelu(values[0], approximate=attributes.get("approximate", "none"))
    if name == "Clip" and case.opset >= 11 and any(value is not None for value in values[1:]):
        return torch.clamp(values[0], *values[1:])
    if name == "PRelu":
        return torch.where(values[0] < 0, values[0] * values[1], values[0])
    return None


def _reduced(torch: Any, case: Case, values: list[Any]) -> Any:
    name, attributes = case.operator, case.attributes
    if name in ("ArgMax", "ArgMin") and not attributes.get("select_last_index"):
        # Of equal elements PyTorch may take any: NumPy-like keys make the first one unique.
        x = values[0]
        order = torch.arange(x.shape[attributes.get("axis", 0)], dtype=torch.float64) * 1e-6
        shape = [1] * x.dim()
        shape[attributes.get("axis", 0)] = -1
        keys = x - order.reshape(shape) if name == "ArgMax" else x + order.reshape(shape)
        return getattr(torch, name.lower())(keys, attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))
    if name == "CumSum" and not attributes.get("exclusive"):
        axis = int(values[1])
        x = values[0].flip(axis) if attributes.get("reverse") else values[0]
        y = torch.cumsum(x, axis)
        return y.flip(axis) if attributes.get("reverse") else y
    if not name.startswith("Reduce") or attributes.get("noop_with_empty_axes"):
        return None
    x, axes = values[0], attributes.get("axes")
    if len(values) > 1 and values[1] is not None:
        axes = values[1].tolist()
    axes = tuple(range(x.dim())) if not axes else tuple(axis % x.dim() for axis in axes)
    keep = bool(attributes.get("keepdims", 1))
    plain = {
        "ReduceSum": torch.sum,
        "ReduceMean": torch.mean,
        "ReduceMax": torch.amax,
        "ReduceMin": torch.amin,
        "ReduceLogSumExp": torch.logsumexp,
    }
    if name in plain:
        return plain[name](x, axes, keep)
    if name in ("ReduceL1", "ReduceL2"):
        return torch.linalg.vector_norm(x, int(name[-1]), axes, keep)
    if name == "ReduceSumSquare":
        return torch.sum(x * x, axes, keep)
    if name == "ReduceLogSum":
        return torch.log(torch.sum(x, axes, keep))
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _normalized(torch: Any, case: Case, values: list[Any]) -> Any:
    name, attributes, functions = case.operator, case.attributes, torch.nn.functional
    epsilon = attributes.get("epsilon", 1e-5)
    if name in ("Softmax", "LogSoftmax"):
        function = torch.softmax if name == "Softmax" else torch.log_softmax
        if case.opset >= 13:
            return function(values[0], attributes.get("axis", -1))
        axis = attributes.get("axis", 1) % values[0].dim()
        flat = values[0].flatten(axis) if axis else values[0].reshape(1, -1)
        return function(flat, -1).reshape(values[0].shape)
    if name == "BatchNormalization":
        x, scale, bias, mean, variance = values
        return functions.batch_norm(x, mean, variance, scale, bias, eps=epsilon)
    if name == "InstanceNormalization":
        return functions.instance_norm(values[0], weight=values[1], bias=values[2], eps=epsilon)
    if name == "LayerNormalization":
        x, scale, bias = (*values, None)[:3]
        return functions.layer_norm(x, scale.shape, scale, bias, epsilon)
    if name == "RMSNormalization":
        return functions.rms_norm(values[0], values[1].shape, values[1], epsilon)
    if name == "GroupNormalization":
        return functions.group_norm(values[0], attributes["num_groups"], values[1], values[2], epsilon)
    if name == "LRN" and attributes["size"] % 2:
        alpha, beta, k = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
        return functions.local_response_norm(values[0], attributes["size"], alpha, beta, k)
    if name == "LpNormalization":
        return functions.normalize(values[0], p=attributes.get("p", 2), dim=attributes.get("axis", -1))
    if name in ("GlobalAveragePool", "GlobalMaxPool"):
        axes = tuple(range(2, values[0].dim()))
        return (torch.mean if name == "GlobalAveragePool" else torch.amax)(values[0], axes, True)
    if name == "GlobalLpPool":
        return torch.linalg.vector_norm(values[0], attributes.get("p", 2), tuple(range(2, values[0].dim())), True)
    return None


def _selected(torch: Any, case: Case, values: list[Any]) -> Any:
    name, attributes = case.operator, case.attributes
    x = values[0]
    if name in ("GatherElements", "ScatterElements"):
        axis = attributes.get("axis", 0)
        index = values[1].where(values[1] >= 0, values[1] + x.shape[axis])
        if name == "GatherElements":
            return torch.gather(x, axis, index)
        kinds = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
        kind = kinds[attributes.get("reduction", "none")]
        return x.scatter(axis, index, values[2]) if kind is None else x.scatter_reduce(axis, index, values[2], kind)
    if name == "Gather":
        axis = attributes.get("axis", 0) % x.dim()
        index = values[1].long()
        index = index.where(index >= 0, index + x.shape[axis])
        y = torch.index_select(x, axis, index.reshape(-1))
        return y.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    if name == "ScatterND" and attributes.get("reduction", "none") == "none":
        return x.index_put((values[1][..., 0],), values[2])
    if name == "TopK":
        return torch.topk(x, int(values[1]), attributes.get("axis", -1), bool(attributes.get("largest", 1)))[0]
    if name == "Trilu":
        k = 0 if values[1] is None else int(values[1])
        return (torch.triu if attributes.get("upper", 1) else torch.tril)(x, k)
    if name == "NonZero":
        return torch.nonzero(x).T
    if name == "Where":
        return torch.where(*values)
    if name == "Einsum":
        return torch.einsum(attributes["equation"], *values)
    if name == "Gemm":
        a, b, c = (*values, None)[:3]
        y = attributes.get("alpha", 1.0) * ((a.T if attributes.get("transA") else a) @ (b.T if attributes.get("transB") else b))
        return y if c is None else y + attributes.get("beta", 1.0) * c
    return None


def _shaped(torch: Any, case: Case, values: list[Any]) -> Any:
    name, attributes, x = case.operator, case.attributes, values[0]
    if name == "Transpose":
        return x.permute(attributes.get("perm") or tuple(reversed(range(x.dim())))).contiguous()
    if name == "Tile":
        return x.repeat(tuple(values[1].tolist()))
    if name == "Concat":
        return torch.cat(values, attributes["axis"])
    if name == "DepthToSpace" and attributes.get("mode") == "CRD":
        return torch.nn.functional.pixel_shuffle(x, attributes["blocksize"])
    if name == "Pad" and case.opset >= 11 and attributes["mode"] == "constant" and len(values) < 4:
        pads, rank = values[1].tolist(), x.dim()
        sides = [pads[axis + end * rank] for axis in reversed(range(rank)) for end in (0, 1)]
        return torch.nn.functional.pad(x, sides, value=0.0 if values[2] is None else float(values[2]))
    return None
