"""Settings of a preprocessing beside its own: those that training code and deployment most often differ in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from relu_deploy.preprocessing.description import Crop, Preprocess
from relu_deploy.verification.preprocess.report import Step

__all__ = ["Setting", "geometries", "normalizations"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = (104.0, 117.0, 123.0)
PAD_VALUES = (114, 0, 128)
#: shorter sides for an input of 224, before the center crop: none, and those of torchvision's weights
SIDES = (224, 232, 256)
#: interpolation, antialiasing (None where it has no meaning), coordinates and cubic coefficient
FILTERS = (
    ("bilinear", True, "half_pixel", -0.5),
    ("bilinear", False, "half_pixel", -0.5),
    ("bicubic", True, "half_pixel", -0.5),
    ("bicubic", False, "half_pixel", -0.75),
    ("bicubic", False, "half_pixel", -0.5),
    ("nearest", None, "asymmetric", -0.5),
    ("nearest", None, "half_pixel", -0.5),
    ("area", None, "half_pixel", -0.5),
)


@dataclass(frozen=True)
class Setting:
    """A preprocessing, and the steps in which it differs from that of the manifest.

    Attributes:
        as_stored: The picture is taken as the file stores it: not rotated by EXIF, transparency dropped.
    """

    steps: Preprocess
    differences: tuple[Step, ...] = ()
    as_stored: bool = False


def geometries(own: Preprocess, size: tuple[int, int], *, as_stored: bool) -> Iterator[Setting]:
    """Yield settings of resizing and cropping that give a size.

    Args:
        own: The manifest's preprocessing.
        size: Height and width of the given array.
        as_stored: Also take the picture as its file stores it.
    """
    for decoding in (False, True) if as_stored else (False,):
        first = (Step("orientation", "upright", "as stored"),) if decoding else ()
        for mode, moded in _modes(own, size):
            for filtering, filtered in _filters(moded):
                differences = first + mode + filtering
                yield Setting(filtered, differences, decoding)


def _modes(own: Preprocess, size: tuple[int, int]) -> Iterator[tuple[tuple[Step, ...], Preprocess]]:
    yield (), own
    ours = _mode(own)
    short = min(size)
    others = [("stretch", replace(own, resize=replace(own.resize, mode="stretch", size=size), crop=None))]
    for side in sorted({round(short * side / 224) for side in SIDES}):
        for rounding, offset in (("floor", "round"), ("round", "floor")):
            resize = replace(own.resize, mode="shortest_side", size=side, length_rounding=rounding)
            name = f"shorter side {side}, center crop {size[0]}x{size[1]}, lengths {rounding}ed".replace(
                "floored", "rounded down"
            )
            others.append((name, replace(own, resize=resize, crop=Crop(size, offset))))
    for value in PAD_VALUES:
        for alignment in ("center", "top_left"):
            resize = replace(
                own.resize, mode="letterbox", size=size, length_rounding="round", pad_value=value, alignment=alignment
            )
            others.append((f"letterbox {value}, {alignment}", replace(own, resize=resize, crop=None)))
    for name, steps in others:
        if (steps.resize, steps.crop) != (own.resize, own.crop):
            yield (Step("resize", ours, name),), steps


def _mode(steps: Preprocess) -> str:
    resize = steps.resize
    if resize.mode == "letterbox":
        return f"letterbox {resize.pad_value}, {resize.alignment}"
    crop = "" if steps.crop is None or steps.crop.size is None else f", center crop {steps.crop.size[0]}x{steps.crop.size[1]}"
    return f"shorter side {resize.size}{crop}" if resize.mode == "shortest_side" else f"stretch{crop}"


def _filters(own: Preprocess) -> Iterator[tuple[tuple[Step, ...], Preprocess]]:
    """Yield other interpolations, with antialiasing and without. Roundings differ by a gray level only."""
    yield (), own
    resize = own.resize
    for interpolation, antialias, coordinates, coefficient in FILTERS:
        filtered = replace(
            resize,
            interpolation=interpolation,
            antialias=resize.antialias if antialias is None else antialias,
            rounding="per_axis" if antialias or (coordinates == "half_pixel" and antialias is None) else "fixed_point",
            cubic_coefficient=coefficient,
            coordinates=coordinates,
        )
        differences = []
        if interpolation != resize.interpolation:
            differences.append(Step("interpolation", resize.interpolation, interpolation))
        if filtered.antialias != resize.antialias:
            words = {True: "antialiased", False: "not antialiased"}
            differences.append(Step("antialias", words[resize.antialias], words[filtered.antialias]))
        if not differences and interpolation == "nearest" and coordinates != resize.coordinates:
            differences.append(Step("coordinates", resize.coordinates, coordinates))
        if not differences and interpolation == "bicubic" and coefficient != resize.cubic_coefficient:
            differences.append(Step("cubic_coefficient", f"{resize.cubic_coefficient:g}", f"{coefficient:g}"))
        if differences:
            yield tuple(differences), replace(own, resize=filtered)


def normalizations(own: Preprocess) -> Iterator[Setting]:
    """Yield other orders of the channels, scales, means and standard deviations."""
    channels = len(own.mean)
    colors = [own.color]
    if channels == 3:
        colors.append("RGB" if own.color == "BGR" else "BGR")
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    known: list[tuple[float, tuple[float, ...], tuple[float, ...]]] = [
        (own.scale, own.mean, own.std),
        (own.scale, zeros, ones),
        (1.0, zeros, ones),
        (1 / 255, zeros, ones),
        (1.0, own.mean, own.std),
        (1 / 255, own.mean, own.std),
        (own.scale, own.mean, ones),
        (own.scale, zeros, own.std),
        (1 / 127.5, ones, ones),
    ]
    if channels == 3:
        known += [(1 / 255, *IMAGENET), (1.0, CAFFE, ones)]
    seen = set()
    for color in colors:
        swapped = color != own.color
        for scale, mean, std in known:
            # The means of the manifest are in the order of its channels.
            for order in (1, -1) if swapped and mean == own.mean and len(set(mean)) > 1 else (1,):
                steps = replace(own, color=color, scale=scale, mean=mean[::order], std=std[::order])
                if (key := (color, scale, steps.mean, steps.std)) in seen:
                    continue
                seen.add(key)
                yield Setting(steps, tuple(_value_steps(own, steps)))


def _value_steps(own: Preprocess, other: Preprocess) -> Iterator[Step]:
    if other.color != own.color:
        yield Step("color", own.color, other.color)
    if other.scale != own.scale:
        yield Step("scale", f"{own.scale:.6g}", f"{other.scale:.6g}")
    for name in ("mean", "std"):
        ours, theirs = getattr(own, name), getattr(other, name)
        if theirs not in (ours, ours[::-1] if other.color != own.color else ours):
            yield Step(name, _numbers(ours), _numbers(theirs))


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
