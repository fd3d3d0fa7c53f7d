"""Quantized operators of ai.onnx and com.microsoft, and the fused ones that ONNX Runtime's optimizer writes."""

from __future__ import annotations

from typing import Any

import numpy as np

from operator_sweep.case import Case
from operator_sweep.layers import Random, draw, given, maybe, pick

CONTRIB = "com.microsoft"


def _levels(random: Random, dtype: Any, *shape: int) -> Any:
    low, high = (0, 200) if np.dtype(dtype).kind == "u" else (-100, 100)
    return random.integers(low, high, shape).astype(dtype)


def _scale(random: Random, *shape: int) -> Any:
    return random.uniform(0.01, 0.1, shape).astype(np.float32)


def _zero(random: Random, dtype: Any, *shape: int) -> Any:
    return (random.integers(100, 140, shape) if np.dtype(dtype).kind == "u" else random.integers(-5, 6, shape)).astype(dtype)


def quantize_case(random: Random) -> Case:
    name, opset = pick(random, "QuantizeLinear", "DequantizeLinear"), pick(random, 10, 13, 19, 21)
    dtype = pick(random, np.int8, np.uint8) if opset < 21 else pick(random, np.int8, np.uint8, np.int16, np.uint16)
    shape = (3, 4, 6)
    x = draw(random, *shape) if name == "QuantizeLinear" else _levels(random, dtype, *shape)
    way = pick(random, "tensor", "axis", "block") if opset >= 21 else pick(random, "tensor", "axis") if opset >= 13 else "tensor"
    attributes: dict[str, Any] = {}
    sizes: tuple[int, ...] = ()
    if way == "axis":
        axis = int(random.integers(-3, 3))
        attributes, sizes = {"axis": axis}, (shape[axis],)
    if way == "block":
        attributes, sizes = {"axis": 2, "block_size": 2}, (3, 4, 3)
    zero = maybe(random, _zero(random, dtype, *sizes), 0.8)
    if zero is None and name == "DequantizeLinear" and dtype not in (np.int8, np.uint8):
        zero = _zero(random, dtype, *sizes)
    return Case(name, [x, _scale(random, *sizes), zero], attributes, opset, steps=0.05)


def dynamic_case(random: Random) -> Case:
    return Case("DynamicQuantizeLinear", [draw(random, 3, 5) * np.float32(random.uniform(0.1, 9))], {}, 11, 3, steps=0.1)


def integer_product_case(random: Random) -> Case:
    name = pick(random, "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")
    kind = pick(random, np.uint8, np.int8)
    if name == "MatMulInteger":
        a_zero, b_zero = maybe(random, _zero(random, np.uint8)), maybe(random, _zero(random, kind, *pick(random, (), (5,))))
        return Case(name, [_levels(random, np.uint8, 3, 4), _levels(random, kind, 4, 5), a_zero, b_zero], {}, 10)
    if name == "QLinearMatMul":
        b_scale, b_zero = pick(random, (_scale(random), _zero(random, kind)), (_scale(random, 5), _zero(random, kind, 5)))
        operands = [
            _levels(random, np.uint8, 3, 4),
            _scale(random),
            _zero(random, np.uint8),
            _levels(random, kind, 4, 5),
            b_scale,
            b_zero,
        ]
        return Case(name, [*operands, np.float32(0.5), _zero(random, np.uint8)], {}, 10, steps=0.1)
    group = pick(random, 1, 2, 4)
    attributes = given(
        group=group, pads=maybe(random, [1, 0, 1, 1]), strides=maybe(random, [2, 1]), dilations=maybe(random, [1, 2])
    )
    x, w = (
        _levels(random, np.uint8, 2, 4, 6, 7),
        _levels(random, np.uint8 if name == "ConvInteger" else kind, 4, 4 // group, 3, 2),
    )
    if name == "ConvInteger":
        return Case(name, [x, w, maybe(random, _zero(random, np.uint8)), maybe(random, _zero(random, np.uint8))], attributes, 10)
    sizes = pick(random, (), (4,))
    zeros = (
        _zero(random, kind, *sizes)
        if kind is np.uint8 and sizes == ()
        else np.zeros(sizes, kind)
        if kind is np.int8
        else np.full(sizes, 128, kind)
    )
    bias = maybe(random, _levels(random, np.int32, 4))
    return Case(
        name,
        [
            x,
            _scale(random),
            _zero(random, np.uint8),
            w,
            _scale(random, *sizes),
            zeros,
            np.float32(2.0),
            _zero(random, np.uint8),
            bias,
        ],
        attributes,
        10,
        steps=0.05,
    )


def qlinear_case(random: Random) -> Case:
    kind = pick(random, np.uint8, np.int8)
    name = pick(
        random,
        "QLinearAdd",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
        "QLinearConcat",
        "QLinearSoftmax",
        "QLinearWhere",
    )
    out = [np.float32(0.1), _zero(random, kind)]

    def stored(*shape: int) -> list[Any]:
        return [_levels(random, kind, *shape), _scale(random), _zero(random, kind)]

    common: dict[str, Any] = {"domain": CONTRIB, "opset": 17, "steps": 0.15}
    if name in ("QLinearAdd", "QLinearMul"):
        return Case(name, [*stored(3, 4, 5), *stored(*pick(random, (3, 4, 5), (5,), (4, 1))), *out], {}, **common)
    if name == "QLinearConcat":
        return Case(name, [*out, *stored(2, 3), *stored(2, 4)], {"axis": 1}, fed=3, **common)
    if name == "QLinearWhere":
        return Case(name, [random.random((3, 4)) < 0.5, *stored(3, 4), *stored(3, 4), *out], {}, **common)
    x = stored(2, 3, 6, 7)
    if name == "QLinearGlobalAveragePool":
        last = int(random.integers(0, 2))
        return Case(name, [*x, *out], {"channels_last": last}, **common)
    if name == "QLinearAveragePool":
        attributes = given(
            kernel_shape=[2, 3],
            pads=maybe(random, [1, 0, 0, 1]),
            strides=maybe(random, [2, 1]),
            count_include_pad=maybe(random, 1),
            ceil_mode=maybe(random, 1),
        )
        return Case(name, [*x, *out], attributes, **common)
    if name == "QLinearSoftmax":
        scale = np.float32(1 / 256)
        zero = np.array(0 if kind is np.uint8 else -128, kind)
        return Case(name, [*x, scale, zero], {"axis": pick(random, 1, -1), "opset": pick(random, 11, 13)}, **common)
    attributes = given(alpha=maybe(random, 0.3)) if name == "QLinearLeakyRelu" else {}
    return Case(name, [*x, *out], attributes, **common)


def qproduct_case(random: Random) -> Case:
    name = pick(random, "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")
    common: dict[str, Any] = {"domain": CONTRIB, "opset": 17}
    kind = pick(random, np.uint8, np.int8)
    sizes = pick(random, (), (5,))
    if name == "QGemm":
        ta, tb = int(random.integers(0, 2)), int(random.integers(0, 2))
        a, b = _levels(random, np.uint8, *((4, 3) if ta else (3, 4))), _levels(random, kind, *((5, 4) if tb else (4, 5)))
        c = maybe(random, _levels(random, np.int32, 5))
        out = [np.float32(1.0), _zero(random, np.uint8)] if random.random() < 0.5 else []
        operands = [a, _scale(random), _zero(random, np.uint8), b, _scale(random, *sizes), np.zeros(sizes, kind), c, *out]
        return Case(name, operands, {"transA": ta, "transB": tb, "alpha": 1.0}, steps=0.1, **common)
    if name == "MatMulIntegerToFloat":
        operands = [
            _levels(random, np.uint8, 3, 4),
            _levels(random, kind, 4, 5),
            _scale(random),
            _scale(random, *sizes),
            _zero(random, np.uint8),
            _zero(random, kind, *sizes),
            maybe(random, draw(random, 5)),
        ]
        return Case(name, operands, {}, **common)
    if name == "DynamicQuantizeMatMul":
        operands = [
            draw(random, 3, 4),
            _levels(random, kind, 4, 5),
            _scale(random, *sizes),
            _zero(random, kind, *sizes),
            maybe(random, draw(random, 5)),
        ]
        return Case(name, operands, {}, tolerance=1e-2, **common)
    depth, rows, block = pick(random, 32, 40), 6, 16
    blocks = -(-depth // block)
    packed = random.integers(0, 256, (rows, blocks, block // 2)).astype(np.uint8)
    zeros = maybe(random, random.integers(0, 256, rows * (-(-blocks // 2))).astype(np.uint8))
    attributes = {"K": depth, "N": rows, "bits": 4, "block_size": block}
    return Case(
        name, [draw(random, 3, depth), packed, _scale(random, rows * blocks), zeros], attributes, tolerance=1e-3, **common
    )


def fused_case(random: Random) -> Case:
    name = pick(
        random,
        "FusedConv",
        "FusedMatMul",
        "FusedGemm",
        "Gelu",
        "BiasGelu",
        "FastGelu",
        "QuickGelu",
        "SkipLayerNormalization",
        "SimplifiedLayerNormalization",
        "NhwcMaxPool",
        "EmbedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    )
    common: dict[str, Any] = {"domain": CONTRIB, "opset": 17}
    x = draw(random, 2, 3, 8)
    activation, parameters = pick(
        random,
        ("Relu", None),
        ("LeakyRelu", [0.2]),
        ("Clip", [0.0, 6.0]),
        ("HardSigmoid", [0.2, 0.5]),
        ("Tanh", None),
        ("Sigmoid", None),
    )
    if name == "FusedConv":
        operands = [draw(random, 1, 4, 6, 6), draw(random, 4, 4, 3, 3), maybe(random, draw(random, 4)), None]
        attributes = given(activation=activation, activation_params=parameters, pads=maybe(random, [1] * 4))
        if operands[2] is not None and activation == "Relu":
            operands[3] = maybe(random, draw(random, 1, 4, *((6, 6) if "pads" in attributes else (4, 4))))
        return Case(name, operands, attributes, **common)
    if name == "FusedGemm":
        attributes = given(activation=activation, alpha=pick(random, None, 0.5), transB=1)
        if parameters:
            attributes |= {"activation_alpha": parameters[0]} | (
                {"activation_beta": parameters[1]} if len(parameters) > 1 else {}
            )
        if activation == "Clip":
            attributes["activation"] = "Relu"
        return Case(name, [draw(random, 3, 4), draw(random, 5, 4), draw(random, 5)], attributes, **common)
    if name == "FusedMatMul":
        ta, tb = int(random.integers(0, 2)), int(random.integers(0, 2))
        ba, bb = pick(random, (0, 0), (0, 0), (1, 1), (1, 0))
        a = {(0, 0): (2, 3, 4), (1, 0): (2, 4, 3), (0, 1): (3, 2, 4), (1, 1): (4, 2, 3)}[ta, ba]
        b = {(0, 0): (2, 4, 5), (1, 0): (2, 5, 4), (0, 1): (4, 2, 5), (1, 1): (5, 2, 4)}[tb, bb]
        return Case(
            name,
            [draw(random, *a), draw(random, *b)],
            {"transA": ta, "transB": tb, "transBatchA": ba, "transBatchB": bb, "alpha": 0.5},
            **common,
        )
    if name == "NhwcMaxPool":
        x = _levels(random, np.uint8, 1, 6, 6, 4)
        return Case(name, [x], given(kernel_shape=[3, 2], strides=[2, 2], pads=maybe(random, [1, 0, 1, 1])), **common)
    if name == "SkipLayerNormalization":
        operands = [x, draw(random, 2, 3, 8), draw(random, 8), maybe(random, draw(random, 8)), maybe(random, draw(random, 8))]
        return Case(name, operands, given(epsilon=1e-5), **common)
    if name == "SimplifiedLayerNormalization":
        return Case(name, [x, draw(random, 8)], {"axis": -1}, opset=17)
    if name == "EmbedLayerNormalization":
        ids, segments = (random.integers(0, 4, (2, 3)).astype(np.int32) for _ in range(2))
        mask = random.integers(0, 2, (2, 3)).astype(np.int32)
        tables = [draw(random, 5, 8), draw(random, 6, 8), draw(random, 4, 8)]
        return Case(
            name, [ids, segments, *tables, draw(random, 8), draw(random, 8), mask], {"epsilon": 1e-5}, outputs=2, **common
        )
    if name == "SkipSimplifiedLayerNormalization":
        return Case(
            name, [x, draw(random, 2, 3, 8), draw(random, 8), maybe(random, draw(random, 8))], given(epsilon=1e-5), **common
        )
    operands = [x]
    if name == "BiasGelu" or (name == "FastGelu" and random.random() < 0.5):
        operands.append(draw(random, 8))
    return Case(name, operands, given(alpha=maybe(random, 1.3)) if name == "QuickGelu" else {}, **common)


def attention_case(random: Random) -> Case:
    name = pick(random, "Attention", "MultiHeadAttention")
    common: dict[str, Any] = {"domain": CONTRIB, "opset": 17, "tolerance": 1e-3}
    attributes = given(num_heads=2, scale=maybe(random, 0.3, 0.3))
    if name == "Attention":
        mask = pick(random, None, random.integers(1, 6, 2).astype(np.int32), (random.random((2, 5)) < 0.7).astype(np.int32))
        attributes |= given(unidirectional=maybe(random, 1, 0.3))
        return Case(name, [draw(random, 2, 5, 6), draw(random, 6, 24), draw(random, 24), mask], attributes, **common)
    q, k, v = draw(random, 2, 3, 8), draw(random, 2, 5, 8), draw(random, 2, 5, 8)
    mask = pick(random, None, (random.random((2, 5)) < 0.7).astype(np.int32))
    return Case(
        name, [q, k, v, maybe(random, draw(random, 24)), mask, maybe(random, draw(random, 2, 2, 3, 5))], attributes, **common
    )


QUANTIZED = {
    "QuantizeLinear": quantize_case, "DynamicQuantizeLinear": dynamic_case, "IntegerProducts": integer_product_case,
    "QLinear": qlinear_case, "QuantizedProducts": qproduct_case, "Fused": fused_case, "ContribAttention": attention_case,
}  # fmt: skip
