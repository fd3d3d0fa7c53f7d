"""Layers with windows: convolutions, pools, resizing and sampling."""

from __future__ import annotations

from typing import Any

import numpy as np

from operator_sweep.case import Case
from operator_sweep.opinions import average_pool, conv, conv_transpose, grid_sample, interpolate, max_pool

Random = np.random.Generator


def draw(random: Random, *shape: int) -> Any:
    return random.standard_normal(shape).astype(np.float32)


def pick(random: Random, *values: Any) -> Any:
    return values[random.integers(len(values))]


def maybe(random: Random, value: Any, share: float = 0.5) -> Any:
    return value if random.random() < share else None


def given(**attributes: Any) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _window(random: Random, spatial: int, largest: int = 4) -> dict[str, Any]:
    kernel = [int(random.integers(1, largest)) for _ in range(spatial)]
    strides = maybe(random, [int(random.integers(1, 4)) for _ in range(spatial)])
    return given(kernel_shape=kernel, strides=strides)


def _pads(random: Random, kernel: list[int]) -> dict[str, Any]:
    auto = pick(random, None, None, None, "SAME_UPPER", "SAME_LOWER", "VALID")
    if auto:
        return {"auto_pad": auto}
    return given(pads=maybe(random, [int(random.integers(0, k)) for k in kernel * 2]))


def conv_case(random: Random) -> Case:
    spatial, group = pick(random, 1, 2, 2, 3), pick(random, 1, 1, 2, 3)
    attributes = _window(random, spatial)
    inputs, outputs = group * int(random.integers(1, 3)), group * int(random.integers(1, 3))
    size = [int(random.integers(7, 12)) for _ in range(spatial)]
    attributes |= _pads(random, attributes["kernel_shape"])
    if "auto_pad" not in attributes:
        attributes |= given(dilations=maybe(random, [int(random.integers(1, 3)) for _ in range(spatial)]))
    x, w = draw(random, 2, inputs, *size), draw(random, outputs, inputs // group, *attributes["kernel_shape"])
    b = maybe(random, draw(random, outputs))
    attributes["group"] = group
    return Case("Conv", [x, w, b], attributes, pick(random, 11, 22), third=conv(x, w, b, attributes))


def conv_transpose_case(random: Random) -> Case:
    spatial, group = pick(random, 1, 2, 2, 3), pick(random, 1, 2, 4)
    attributes = _window(random, spatial)
    strides = attributes.get("strides", [1] * spatial)
    inputs, outputs = group * int(random.integers(1, 3)), int(random.integers(1, 3))
    size = [int(random.integers(3, 7)) for _ in range(spatial)]
    attributes |= given(dilations=maybe(random, [int(random.integers(1, 3)) for _ in range(spatial)]))
    dilations = attributes.get("dilations", [1] * spatial)
    way = pick(random, "pads", "pads", "output_shape", "VALID")
    if way == "pads":
        attributes |= given(pads=maybe(random, [int(random.integers(0, 2)) for _ in range(2 * spatial)]))
        attributes |= given(
            output_padding=maybe(random, [int(random.integers(0, max(s, d))) for s, d in zip(strides, dilations, strict=True)])
        )
    elif way == "output_shape":
        full = [
            (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, strides, attributes["kernel_shape"], dilations, strict=True)
        ]
        attributes["output_shape"] = [max(1, n - int(random.integers(0, 3))) for n in full]
    else:
        attributes["auto_pad"] = "VALID"
    x, w = draw(random, 2, inputs, *size), draw(random, inputs, outputs, *attributes["kernel_shape"])
    b = maybe(random, draw(random, outputs * group))
    attributes["group"] = group
    return Case("ConvTranspose", [x, w, b], attributes, pick(random, 11, 22), third=conv_transpose(x, w, b, attributes))


def max_pool_case(random: Random) -> Case:
    spatial = pick(random, 1, 2, 2, 3)
    attributes = _window(random, spatial)
    attributes |= _pads(random, attributes["kernel_shape"])
    x = draw(random, 2, 3, *[int(random.integers(6, 11)) for _ in range(spatial)])
    if "auto_pad" not in attributes:
        attributes |= given(
            ceil_mode=maybe(random, 1), dilations=maybe(random, [int(random.integers(1, 3)) for _ in range(spatial)])
        )
    outputs = pick(random, 1, 2)
    attributes |= given(storage_order=maybe(random, 1, 0.3) if outputs == 2 else None)
    return Case("MaxPool", [x], attributes, pick(random, 11, 12, 22), outputs, third=max_pool(x, attributes))


def average_pool_case(random: Random) -> Case:
    spatial = pick(random, 1, 2, 2, 3)
    attributes = _window(random, spatial)
    attributes |= _pads(random, attributes["kernel_shape"])
    x = draw(random, 2, 3, *[int(random.integers(6, 11)) for _ in range(spatial)])
    attributes |= given(count_include_pad=maybe(random, 1))
    opset = pick(random, 11, 19, 22)
    if "auto_pad" not in attributes:
        attributes |= given(ceil_mode=maybe(random, 1))
        if opset >= 19:
            attributes |= given(dilations=maybe(random, [int(random.integers(1, 3)) for _ in range(spatial)]))
    return Case("AveragePool", [x], attributes, opset, third=average_pool(x, attributes))


def lp_pool_case(random: Random) -> Case:
    spatial = pick(random, 1, 2, 2, 3)
    attributes = _window(random, spatial)
    attributes |= _pads(random, attributes["kernel_shape"])
    attributes |= given(p=pick(random, None, 1, 2, 3))
    opset = pick(random, 11, 18, 22)
    if opset >= 18 and "auto_pad" not in attributes:
        attributes |= given(
            ceil_mode=maybe(random, 1), dilations=maybe(random, [int(random.integers(1, 3)) for _ in range(spatial)])
        )
    return Case("LpPool", [draw(random, 2, 3, *[int(random.integers(6, 11)) for _ in range(spatial)])], attributes, opset)


def global_pool_case(random: Random) -> Case:
    name = pick(random, "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    attributes = given(p=pick(random, None, 1, 3)) if name == "GlobalLpPool" else {}
    spatial = [int(random.integers(1, 6)) for _ in range(pick(random, 1, 2, 3))]
    return Case(name, [draw(random, 2, 3, *spatial)], attributes, pick(random, 11, 22))


def max_unpool_case(random: Random) -> Case:
    x = draw(random, 1, 2, 3, 3)
    columns = np.stack([random.permutation(36)[:9] for _ in range(2)]) + np.array([[0], [36]])
    return Case("MaxUnpool", [x, columns.reshape(1, 2, 3, 3)], {"kernel_shape": [2, 2], "strides": [2, 2]}, 11)


def resize_case(random: Random) -> Case:
    opset = pick(random, 11, 13, 18, 19)
    mode = pick(random, "nearest", "linear", "cubic")
    kinds = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    if opset >= 19:
        kinds.append("half_pixel_symmetric")
    if opset < 13 and mode == "nearest":
        kinds.append("tf_half_pixel_for_nn")
    transformation = pick(random, *kinds)
    size = [int(random.integers(4, 9)) for _ in range(2)]
    x = draw(random, 1, 2, *size)
    attributes = given(mode=mode, coordinate_transformation_mode=transformation)
    if mode == "nearest":
        attributes["nearest_mode"] = pick(random, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if mode == "cubic":
        attributes |= given(cubic_coeff_a=pick(random, None, -0.5), exclude_outside=maybe(random, 1))
    if opset >= 18 and mode != "nearest":
        attributes |= given(antialias=maybe(random, 1, 0.3))
    if random.random() < 0.5:
        # Multiples, so that the length is the product exactly: what the last element of a fraction means is not agreed upon.
        lengths = [int(random.integers(2, 20)) for _ in range(2)]
        operands = [x, None, None, np.array([1, 2, *lengths])]
        factors = None
    else:
        factors = [pick(random, 0.5, 1.0, 2.0, 3.0) for _ in range(2)]
        size = [2 * (n // 2) for n in size]
        x = np.ascontiguousarray(x[:, :, : size[0], : size[1]])
        lengths = [int(n * f) for n, f in zip(size, factors, strict=True)]
        operands = [x, None, np.array([1, 1, *factors], np.float32)]
    if opset < 13:
        operands[1] = np.zeros(0, np.float32)
        if len(operands) == 4:
            operands[2] = np.zeros(0, np.float32)
    return Case("Resize", operands, attributes, opset, third=interpolate(x, lengths, factors, attributes))


def old_resize_case(random: Random) -> Case:
    factors = np.array([1, 1, pick(random, 1, 2, 3), pick(random, 1, 2, 3)], np.float32)
    mode, x = pick(random, "nearest", "linear"), draw(random, 1, 2, 4, 5)
    name, opset = pick(random, ("Resize", 10), ("Upsample", 9), ("Upsample", 7))
    if opset == 7:
        return Case(name, [x], {"mode": mode, "scales": factors.tolist()}, opset)
    return Case(name, [x, factors], {"mode": mode}, opset)


def grid_sample_case(random: Random) -> Case:
    opset, spatial = pick(random, (16, 2), (20, 2), (20, 3), (22, 2))
    mode = pick(random, *(("bilinear", "nearest", "bicubic") if opset == 16 else ("linear", "nearest", "cubic")))
    if spatial == 3 and mode == "cubic":
        mode = "linear"
    attributes = given(mode=mode, padding_mode=pick(random, None, "border", "reflection"), align_corners=maybe(random, 1))
    x = draw(random, 2, 3, *[int(random.integers(2, 7)) for _ in range(spatial)])
    out = [int(random.integers(2, 6)) for _ in range(spatial)]
    grid = random.uniform(-1.6, 1.6, (2, *out, spatial)).astype(np.float32)
    return Case("GridSample", [x, grid], attributes, opset, third=grid_sample(x, grid, attributes))


def roi_align_case(random: Random) -> Case:
    opset = pick(random, 10, 16, 22)
    attributes: dict[str, Any] = {"output_height": int(random.integers(1, 5)), "output_width": int(random.integers(1, 5))}
    attributes |= given(sampling_ratio=pick(random, None, 1, 2, 3), spatial_scale=pick(random, None, 0.5, 0.25))
    attributes |= given(mode=pick(random, None, None, "max"))
    if opset >= 16:
        attributes |= given(coordinate_transformation_mode=pick(random, None, "half_pixel", "output_half_pixel"))
    corner = random.uniform(-2, 10, (5, 2))
    rois = np.concatenate([corner, corner + random.uniform(0.5, 12, (5, 2))], 1).astype(np.float32)
    return Case("RoiAlign", [draw(random, 2, 3, 9, 10), rois, random.integers(0, 2, 5)], attributes, opset)


def max_roi_pool_case(random: Random) -> Case:
    corner = random.integers(0, 6, (4, 2))
    rois = np.concatenate([random.integers(0, 2, (4, 1)), corner, corner + random.integers(0, 6, (4, 2))], 1).astype(np.float32)
    attributes = given(pooled_shape=[int(random.integers(1, 4)) for _ in range(2)], spatial_scale=pick(random, None, 0.5))
    return Case("MaxRoiPool", [draw(random, 2, 3, 10, 10), rois], attributes, pick(random, 11, 22))


def deform_conv_case(random: Random) -> Case:
    group, offsets = pick(random, 1, 2), pick(random, 1, 2)
    attributes: dict[str, Any] = {"kernel_shape": [2, 3], "group": group, "offset_group": offsets, "pads": [1, 0, 1, 0]}
    x, w = draw(random, 1, 4, 6, 7), draw(random, 2, 4 // group, 2, 3)
    offset = draw(random, 1, offsets * 12, 7, 5)
    mask = maybe(random, draw(random, 1, offsets * 6, 7, 5))
    return Case("DeformConv", [x, w, offset, maybe(random, draw(random, 2)), mask], attributes, pick(random, 19, 22))


LAYERS = {
    "Conv": conv_case, "ConvTranspose": conv_transpose_case, "MaxPool": max_pool_case, "AveragePool": average_pool_case,
    "LpPool": lp_pool_case, "GlobalPools": global_pool_case, "MaxUnpool": max_unpool_case, "Resize": resize_case,
    "Upsample": old_resize_case, "GridSample": grid_sample_case, "RoiAlign": roi_align_case, "MaxRoiPool": max_roi_pool_case,
    "DeformConv": deform_conv_case,
}  # fmt: skip
