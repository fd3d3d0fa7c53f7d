"""Operators on whole tensors: arithmetic, reductions, shapes, indices, normalization, recurrence."""

from __future__ import annotations

from typing import Any

import numpy as np

from operator_sweep.case import Case
from operator_sweep.layers import Random, draw, given, maybe, pick
from operator_sweep.opinions import recurrent


def shape_of(random: Random, rank: int, low: int = 1, high: int = 6) -> list[int]:
    return [int(random.integers(low, high)) for _ in range(rank)]


def integers(random: Random, low: int, high: int, *shape: int, dtype: Any = np.int64) -> Any:
    return random.integers(low, high, shape).astype(dtype)


def reduction_case(random: Random) -> Case:
    name = pick(
        random,
        *(f"Reduce{kind}" for kind in ("Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp")),
    )
    opset = pick(random, 11, 13, 18)
    rank = int(random.integers(1, 5))
    x = draw(random, *shape_of(random, rank))
    x = np.abs(x) if name == "ReduceLogSum" else x
    dtype = (
        pick(random, None, None, np.int32, np.int64) if name in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd") else None
    )
    x = x if dtype is None else (x * 4).astype(dtype)
    axes = sorted(random.permutation(rank)[: int(random.integers(1, rank + 1))].tolist())
    axes = [axis - rank if random.random() < 0.3 else axis for axis in axes]
    attributes = given(keepdims=maybe(random, 0))
    if opset >= (13 if name == "ReduceSum" else 18):
        attributes |= given(noop_with_empty_axes=maybe(random, 1, 0.3))
        return Case(name, [x, maybe(random, np.array(axes), 0.7)], attributes, opset)
    return Case(name, [x], attributes | given(axes=maybe(random, axes, 0.7)), opset)


def arg_case(random: Random) -> Case:
    rank = int(random.integers(1, 4))
    attributes = given(axis=int(random.integers(-rank, rank)), keepdims=maybe(random, 0), select_last_index=maybe(random, 1))
    x = integers(random, 0, 4, *shape_of(random, rank)).astype(np.float32)
    return Case(pick(random, "ArgMax", "ArgMin"), [x], attributes, 13)


def softmax_case(random: Random) -> Case:
    rank = int(random.integers(2, 5))
    attributes = given(axis=maybe(random, int(random.integers(-rank, rank))))
    opset = pick(random, 9, 11, 12, 13)
    if opset < 11 and attributes.get("axis", 0) < 0:
        attributes = {"axis": attributes["axis"] + rank}
    return Case(pick(random, "Softmax", "LogSoftmax", "Hardmax"), [draw(random, *shape_of(random, rank, 2))], attributes, opset)


def norm_case(random: Random) -> Case:
    x = draw(random, 2, 6, *shape_of(random, int(random.integers(1, 4)), 2))
    epsilon = given(epsilon=pick(random, None, 1e-3, 1e-2))
    name = pick(
        random,
        "BatchNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LRN",
        "LpNormalization",
        "GroupNormalization",
        "RMSNormalization",
    )
    if name == "BatchNormalization":
        return Case(
            name,
            [x, draw(random, 6), draw(random, 6), draw(random, 6), np.abs(draw(random, 6)) + 0.1],
            epsilon,
            pick(random, 7, 9, 14, 15),
        )
    if name == "InstanceNormalization":
        return Case(name, [x, draw(random, 6), draw(random, 6)], epsilon, pick(random, 6, 18))
    if name == "LRN":
        attributes = given(
            size=int(random.integers(1, 6)),
            alpha=pick(random, None, 0.1),
            beta=pick(random, None, 0.5),
            bias=pick(random, None, 2.0),
        )
        return Case(name, [draw(random, 2, 6, 3, 4)], attributes, 13)
    if name == "LpNormalization":
        return Case(name, [x], given(axis=pick(random, None, 1, -1, 0), p=pick(random, 1, 2)), 13)
    if name == "GroupNormalization":
        return Case(name, [x, draw(random, 6), draw(random, 6)], epsilon | {"num_groups": pick(random, 1, 2, 3, 6)}, 21)
    axis = int(random.integers(-x.ndim + 1, x.ndim))
    axis = axis if axis % x.ndim else -1
    scale = draw(random, *x.shape[axis % x.ndim :])
    if name == "RMSNormalization":
        return Case(name, [x, scale], epsilon | {"axis": axis}, 23)
    return Case(name, [x, scale, maybe(random, draw(random, *scale.shape))], epsilon | {"axis": axis}, 17, pick(random, 1, 3))


def variance_case(random: Random) -> Case:
    attributes = given(axes=pick(random, None, [1], [2, 3], [0, 2, 3]))
    return Case("MeanVarianceNormalization", [draw(random, 3, 4, 5, 6)], attributes, pick(random, 9, 13))


def slice_case(random: Random) -> Case:
    rank = int(random.integers(1, 4))
    x = draw(random, *shape_of(random, rank, 1, 8))
    axes = random.permutation(rank)[: int(random.integers(1, rank + 1))]
    starts, ends = integers(random, -9, 10, len(axes)), integers(random, -9, 10, len(axes))
    ends = np.where(random.random(len(axes)) < 0.2, pick(random, 2**31 - 1, -(2**31)), ends)
    steps = np.array([pick(random, 1, 2, 3, -1, -2) for _ in axes])
    return Case("Slice", [x, starts, ends, axes, maybe(random, steps, 0.8)], {}, pick(random, 10, 13))


def pad_case(random: Random) -> Case:
    rank, mode = int(random.integers(1, 5)), pick(random, "constant", "reflect", "edge", "wrap")
    x = draw(random, *shape_of(random, rank, 4, 7))
    opset = 19 if mode == "wrap" else pick(random, 2, 11, 13, 18, 19)
    pads = integers(random, -1 if mode == "constant" else 0, 4, 2 * rank)
    if opset == 2:
        return Case("Pad", [x], given(pads=pads.tolist(), mode=mode, value=maybe(random, 1.5)), 2)
    operands: list[Any] = [x, pads, maybe(random, np.float32(1.5)) if mode == "constant" else None]
    if opset >= 18 and rank > 1 and random.random() < 0.5:
        axes = random.permutation(rank)[: rank - 1]
        operands[1] = pads[: 2 * len(axes)]
        operands.append(axes - rank * int(random.integers(0, 2)))
    return Case("Pad", operands, {"mode": mode}, opset)


def gather_case(random: Random) -> Case:
    name = pick(random, "Gather", "GatherElements", "GatherND")
    shape = shape_of(random, 3, 2)
    x = pick(random, draw(random, *shape), integers(random, 0, 9, *shape))
    axis = int(random.integers(-3, 3))
    if name == "Gather":
        index = integers(
            random,
            -shape[axis],
            shape[axis],
            *shape_of(random, int(random.integers(0, 3))),
            dtype=pick(random, np.int32, np.int64),
        )
        return Case(name, [x, index], {"axis": axis}, 13)
    if name == "GatherElements":
        smaller = [int(random.integers(1, n + 1)) for n in shape]
        return Case(name, [x, integers(random, -shape[axis], shape[axis], *smaller)], {"axis": axis}, 13)
    batch = int(random.integers(0, 2))
    depth = int(random.integers(1, 4 - batch))
    index = np.stack(
        [integers(random, -shape[batch + place], shape[batch + place], *shape[:batch], 4) for place in range(depth)], -1
    )
    return Case(name, [x, index], {"batch_dims": batch}, 13)


def scatter_case(random: Random) -> Case:
    shape = shape_of(random, 3, 2)
    x, opset = draw(random, *shape), pick(random, 11, 16, 18)
    kinds = {11: ["none"], 16: ["none", "add", "mul"], 18: ["none", "add", "mul", "max", "min"]}[opset]
    reduction = pick(random, *kinds)
    attributes = {} if opset == 11 else {"reduction": reduction}
    if random.random() < 0.5:
        axis = int(random.integers(-3, 3))
        smaller = list(shape)
        smaller[axis] = int(random.integers(1, shape[axis] + 1))
        # Places that are written once, where the order of writing would matter.
        index = np.argsort(random.random(shape), axis)
        index = np.take(index, range(smaller[axis]), axis)
        index = np.where(random.random(index.shape) < 0.3, index - shape[axis], index)
        return Case("ScatterElements", [x, index, draw(random, *smaller)], attributes | {"axis": axis}, opset)
    rows = random.permutation(shape[0])[: int(random.integers(1, shape[0] + 1)), None]
    return Case("ScatterND", [x, rows, draw(random, len(rows), *shape[1:])], attributes, opset)


def selection_case(random: Random) -> Case:
    name = pick(random, "TopK", "TopK", "OneHot", "Compress", "NonZero", "Trilu", "ReverseSequence", "Unique", "CumSum")
    x = draw(random, 4, 5)
    axis = int(random.integers(-2, 2))
    if name == "TopK":
        attributes = given(axis=axis, largest=maybe(random, 0))
        return Case(name, [x, np.array([int(random.integers(1, 5))])], attributes, 11, 2)
    if name == "OneHot":
        values = pick(random, np.array([0, 1], np.float32), np.array([-1, 5]))
        return Case(name, [integers(random, -6, 7, 2, 3), np.array(5), values], {"axis": int(random.integers(-3, 3))}, 11)
    if name == "Compress":
        way = maybe(random, axis)
        return Case(name, [x, random.random(int(random.integers(1, 5))) < 0.5], given(axis=way), 11)
    if name == "NonZero":
        return Case(name, [np.where(random.random((3, 4)) < 0.5, 0, 1).astype(np.float32)], {}, 13)
    if name == "Trilu":
        return Case(
            name, [draw(random, 2, 4, 5), maybe(random, np.array(int(random.integers(-3, 4))))], given(upper=maybe(random, 0)), 14
        )
    if name == "ReverseSequence":
        time = int(random.integers(0, 2))
        lengths = integers(random, 1, 6 if time == 0 else 5, 4 if time == 0 else 5)
        return Case(
            name,
            [draw(random, *((5, 4) if time == 0 else (5, 4)[::1]), 2), np.minimum(lengths, (5, 4)[time])],
            {"time_axis": time, "batch_axis": 1 - time},
            10,
        )
    if name == "Unique":
        return Case(
            name,
            [integers(random, 0, 5, 4, 5).astype(np.float32)],
            given(axis=pick(random, None, 0, 1), sorted=maybe(random, 0)),
            11,
            4,
        )
    return Case(name, [x, np.array(axis)], given(exclusive=maybe(random, 1), reverse=maybe(random, 1)), 14)


def shape_case(random: Random) -> Case:
    name = pick(
        random,
        "Transpose",
        "Tile",
        "Expand",
        "Concat",
        "Split",
        "DepthToSpace",
        "SpaceToDepth",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Where",
        "Shape",
    )
    x = draw(random, 2, 3, 4)
    if name == "Transpose":
        return Case(name, [x], given(perm=maybe(random, random.permutation(3).tolist())), 13)
    if name == "Tile":
        return Case(name, [x, integers(random, 0, 4, 3)], {}, 13)
    if name == "Expand":
        return Case(name, [draw(random, 3, 1), np.array(pick(random, [3, 4], [2, 1, 4], [1], [1, 1]))], {}, 13)
    if name == "Concat":
        axis = int(random.integers(-3, 3))
        shape = [2, 3, 4]
        shape[axis] = int(random.integers(1, 5))
        return Case(name, [x, draw(random, *shape)], {"axis": axis}, 13)
    if name == "Split":
        if random.random() < 0.5:
            return Case(name, [draw(random, 7, 2)], {"num_outputs": 3}, 18, 3)
        return Case(name, [draw(random, 2, 7), np.array([2, 0, 5])], {"axis": -1}, pick(random, 13), 3)
    if name == "DepthToSpace":
        return Case(name, [draw(random, 2, 8, 2, 3)], given(blocksize=2, mode=pick(random, None, "CRD", "DCR")), 13)
    if name == "SpaceToDepth":
        return Case(name, [draw(random, 2, 2, 4, 6)], {"blocksize": 2}, 13)
    if name == "Flatten":
        return Case(name, [x], {"axis": int(random.integers(-3, 4))}, 13)
    if name == "Squeeze":
        y = draw(random, 1, 3, 1)
        return (
            Case(name, [y, np.array(pick(random, [0], [2], [-1, 0]))], {}, 13)
            if random.random() < 0.5
            else Case(name, [y], given(axes=pick(random, None, [0], [2])), 11)
        )
    if name == "Unsqueeze":
        return Case(name, [x, np.array(pick(random, [0], [-1], [4, 0], [1, 2]))], {}, 13)
    if name == "Reshape":
        return Case(name, [x, np.array(pick(random, [0, -1], [4, 3, 2], [-1], [2, 0, 2, 2]))], {}, 14)
    if name == "Where":
        return Case(name, [random.random((3, 1)) < 0.5, draw(random, 1, 4), draw(random, 3, 4)], {}, 16)
    return Case(name, [x], given(start=pick(random, None, 1, -2, 5), end=pick(random, None, 2, -1, -7)), 15)


def product_case(random: Random) -> Case:
    name = pick(random, "MatMul", "Gemm", "Einsum", "Det")
    if name == "MatMul":
        a, b = pick(random, ((3, 4), (4, 5)), ((4,), (4, 5)), ((2, 3, 4), (4,)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (4,)))
        return Case(name, [draw(random, *a), draw(random, *b)], {}, 13)
    if name == "Gemm":
        ta, tb = int(random.integers(0, 2)), int(random.integers(0, 2))
        a, b = draw(random, *((4, 3) if ta else (3, 4))), draw(random, *((5, 4) if tb else (4, 5)))
        c = pick(random, None, draw(random, 5), draw(random, 3, 1), draw(random, 3, 5), draw(random, 1))
        return Case(name, [a, b, c], given(transA=ta, transB=tb, alpha=pick(random, None, 0.3), beta=pick(random, None, 2.0)), 13)
    if name == "Einsum":
        equation, *shapes = pick(
            random,
            ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
            ("ij->ji", (3, 4)),
            ("...ii->...i", (2, 3, 3)),
            ("i,j->ij", (3,), (4,)),
            ("bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 5, 4)),
            ("ij,jk", (3, 4), (4, 5)),
        )
        return Case(name, [draw(random, *shape) for shape in shapes], {"equation": equation}, 12)
    return Case(name, [draw(random, *pick(random, (3, 3), (2, 4, 4)))], {}, 11)


def recurrent_case(random: Random) -> Case:
    kind = pick(random, "LSTM", "GRU", "RNN")
    gates, hidden, steps, batch, size = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 4, 5, 3, 2
    direction = pick(random, "forward", "reverse", "bidirectional")
    ways = 2 if direction == "bidirectional" else 1
    functions = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[kind]
    others = ["Relu", "Tanh", "Sigmoid", "Softsign", "HardSigmoid", "LeakyRelu", "ScaledTanh", "Elu", "Affine"]
    attributes = given(hidden_size=hidden, direction=direction, clip=maybe(random, 0.4, 0.3))
    if random.random() < 0.4:
        names = [pick(random, *others) for _ in functions * ways]
        takes = [("LeakyRelu", "HardSigmoid", "ScaledTanh", "Elu", "Affine"), ("HardSigmoid", "ScaledTanh", "Affine")]
        attributes["activations"] = names
        alphas, betas = ([float(random.uniform(0.1, 0.6)) for name in names if name in those] for those in takes)
        attributes |= given(activation_alpha=alphas or None, activation_beta=betas or None)
    operands: list[Any] = [
        draw(random, steps, batch, size), draw(random, ways, gates * hidden, size), draw(random, ways, gates * hidden, hidden) / 2,
        maybe(random, draw(random, ways, 2 * gates * hidden)), maybe(random, random.integers(1, steps + 1, batch).astype(np.int32)),
        maybe(random, draw(random, ways, batch, hidden)),
    ]  # fmt: skip
    if kind == "LSTM":
        operands += [maybe(random, draw(random, ways, batch, hidden)), maybe(random, draw(random, ways, 3 * hidden), 0.3)]
        attributes |= given(input_forget=maybe(random, 1, 0.2))
    if kind == "GRU":
        attributes |= given(linear_before_reset=maybe(random, 1))
    return Case(
        kind,
        operands,
        attributes,
        pick(random, 7, 14),
        3 if kind == "LSTM" else 2,
        third=recurrent(kind, operands, attributes),
        tolerance=1e-3,
    )


def suppression_case(random: Random) -> Case:
    centers = random.integers(0, 6, (2, 12, 2)) + random.uniform(0, 0.3, (2, 12, 2))
    sizes = random.uniform(1, 3, (2, 12, 2))
    centered = int(random.integers(0, 2))
    boxes = np.concatenate([centers, sizes] if centered else [centers, centers + sizes], -1).astype(np.float32)
    limits = [np.array([int(random.integers(0, 6))]), np.array([0.3], np.float32), maybe(random, np.array([0.2], np.float32))]
    scores = random.random((2, 3, 12)).astype(np.float32)
    return Case("NonMaxSuppression", [boxes, scores, *limits], {"center_point_box": centered}, 11)


def signal_case(random: Random) -> Case:
    name = pick(random, "DFT", "STFT", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")
    if name == "DFT":
        x, axis = draw(random, 2, 8, 6, int(random.integers(1, 3))), pick(random, 1, 2, -2, -3)
        way = pick(random, {}, {"inverse": 1}, {"onesided": 1})
        x = x[..., :1] if "onesided" in way else x
        x = np.ascontiguousarray(x)
        length = maybe(random, np.array(pick(random, 5, 8, 10)), 0.3)
        if random.random() < 0.5:
            return Case(name, [x, length], way | {"axis": axis}, 17)
        return Case(name, [x, length, np.array(axis)], way, 20)
    if name == "STFT":
        window = pick(random, np.hanning(8).astype(np.float32), None)
        return Case(
            name,
            [draw(random, 1, 32, 1), np.array(pick(random, 2, 4)), window, np.array(8)],
            given(onesided=maybe(random, 0)),
            17,
        )
    if name == "MelWeightMatrix":
        operands = [np.array(8), np.array(64), np.array(16000), np.float32(20), np.float32(7000)]
        return Case(name, operands, {}, 17, fed=5)
    return Case(name, [np.array(int(random.integers(3, 12)))], given(periodic=maybe(random, 0)), 17)


TENSORS = {
    "Reduce": reduction_case,
    "ArgMax": arg_case, "Softmax": softmax_case, "Normalization": norm_case, "MeanVarianceNormalization": variance_case,
    "Slice": slice_case, "Pad": pad_case, "Gather": gather_case, "Scatter": scatter_case, "Selection": selection_case,
    "Shape": shape_case, "Product": product_case, "Recurrent": recurrent_case, "NonMaxSuppression": suppression_case,
    "Signal": signal_case,
}  # fmt: skip
