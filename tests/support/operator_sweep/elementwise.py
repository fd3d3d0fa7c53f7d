"""Arithmetic, activations and casts, element by element."""

from __future__ import annotations

import numpy as np

from operator_sweep.case import Case
from operator_sweep.layers import Random, draw, given, maybe, pick
from operator_sweep.tensors import integers, shape_of


def binary_case(random: Random) -> Case:
    name = pick(
        random,
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Mod",
        "Equal",
        "Less",
        "Greater",
        "LessOrEqual",
        "GreaterOrEqual",
        "Max",
        "Min",
    )
    shape = shape_of(random, 3)
    other = [pick(random, n, 1) for n in shape][int(random.integers(0, 3)) :]
    dtype = pick(random, np.float32, np.float32, np.int32, np.int64)
    attributes, opset = {}, pick(random, 13, 20)
    if dtype is np.float32:
        a, b = draw(random, *shape), draw(random, *other)
        if name == "Pow":
            a = np.abs(a)
        if name == "Mod":
            attributes["fmod"] = 1
    else:
        a, b = integers(random, -20, 20, *shape, dtype=dtype), integers(random, 1, 6, *other, dtype=dtype)
        b = b * pick(random, 1, -1) if name in ("Div", "Mod") else b
        if name == "Mod":
            attributes |= given(fmod=maybe(random, 1))
    return Case(name, [a, b], attributes, opset, fed=2)


def unary_case(random: Random) -> Case:
    plain = [
        "Abs",
        "Neg",
        "Exp",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Sin",
        "Cos",
        "Tan",
        "Atan",
        "Sinh",
        "Cosh",
        "Tanh",
        "Asinh",
        "Erf",
    ]
    plain += ["Sigmoid", "Softplus", "Softsign", "HardSwish", "Relu", "Identity", "Mish", "Reciprocal"]
    parameters: dict[str, list[str]] = {
        "LeakyRelu": ["alpha"], "Elu": ["alpha"], "Celu": ["alpha"], "Selu": ["alpha", "gamma"], "HardSigmoid": ["alpha", "beta"],
        "ThresholdedRelu": ["alpha"], "Shrink": ["lambd", "bias"],
    }  # fmt: skip
    x = draw(random, *shape_of(random, int(random.integers(0, 4)))) * np.float32(2)
    if random.random() < 0.6:
        return Case(pick(random, *plain), [x], {}, 20 if random.random() < 0.5 else 18)
    name = pick(random, *parameters, "Gelu")
    if name == "Gelu":
        return Case(name, [x], given(approximate=pick(random, None, "tanh")), 20)
    attributes = {key: float(random.uniform(0.1, 1.5)) for key in parameters[name] if random.random() < 0.6}
    return Case(name, [x], attributes, pick(random, 14, 16))


def clip_case(random: Random) -> Case:
    low, high = sorted(random.uniform(-1, 1, 2).tolist())
    x = draw(random, 3, 5)
    if random.random() < 0.3:
        return Case("Clip", [x], given(min=maybe(random, low), max=maybe(random, high)), pick(random, 6, 10))
    bounds = [maybe(random, np.float32(value), 0.7) for value in (low, high)]
    return Case("Clip", [x, *bounds], {}, pick(random, 11, 13))


def prelu_case(random: Random) -> Case:
    slope = pick(random, draw(random, 4, 1, 1), draw(random, 1), draw(random, 3, 4, 5, 5), draw(random, 5))
    return Case("PRelu", [draw(random, 3, 4, 5, 5), slope], {}, pick(random, 9, 16))


def cast_case(random: Random) -> Case:
    kinds = [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.bool_, np.uint16]
    source, target = pick(random, *kinds), pick(random, *kinds)
    x = (draw(random, 4, 5) * (1 if source is np.bool_ else 30)).astype(np.float32)
    x = np.abs(x) if np.dtype(target).kind == "u" or np.dtype(source).kind == "u" else x
    from onnx import helper

    return Case(
        "Cast",
        [x.astype(source)],
        {"to": helper.np_dtype_to_tensor_dtype(np.dtype(target))},
        pick(random, 13, 19),
        tolerance=1e-3,
    )


def logic_case(random: Random) -> Case:
    name = pick(random, "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "Sum", "Mean", "IsInf", "IsNaN")
    if name in ("Sum", "Mean"):
        return Case(name, [draw(random, 2, 3), draw(random, 3), draw(random, 2, 1)], {}, 13)
    if name in ("IsInf", "IsNaN"):
        x = np.array([1, np.inf, -np.inf, np.nan], np.float32)
        return Case(name, [x], given(detect_negative=maybe(random, 0)) if name == "IsInf" else {}, 20)
    if name == "BitShift":
        x = integers(random, 0, 200, 5, dtype=np.uint8)
        return Case(name, [x, integers(random, 0, 7, 5, dtype=np.uint8)], {"direction": pick(random, "LEFT", "RIGHT")}, 11)
    if name.startswith("Bitwise"):
        return Case(name, [integers(random, -99, 99, 3, 4, dtype=np.int32), integers(random, -99, 99, 4, dtype=np.int32)], {}, 18)
    return Case(name, [random.random((3, 4)) < 0.5, random.random(4) < 0.5], {}, 7)


def domain_case(random: Random) -> Case:
    name = pick(random, "Asin", "Acos", "Atanh", "Acosh", "Sqrt", "Log")
    x = random.uniform(-0.99, 0.99, (3, 4)).astype(np.float32)
    return Case(
        name, [np.abs(x) + 1 if name == "Acosh" else np.abs(x) if name in ("Sqrt", "Log") else x], {}, pick(random, 13, 18)
    )


ELEMENTWISE = {
    "Logic": logic_case,
    "BoundedDomain": domain_case,
    "Binary": binary_case,
    "Unary": unary_case,
    "Clip": clip_case,
    "PRelu": prelu_case,
    "Cast": cast_case,
}
