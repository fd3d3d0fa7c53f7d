"""Reads the description of a preprocessing from JSON: a manifest's `preprocess`, of this version or older, or a user's file.

Older manifests have only `resize` and `crop` as numbers: the shorter side is resized to `resize`, the center is cropped to `crop`, and
without `crop` the picture is stretched to the input, in all cases with Pillow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from relu_deploy.errors import InputError, nearest
from relu_deploy.preprocessing.description import Crop, Preprocess, Resize

__all__ = ["read_preprocess"]

CHOICES = {
    "color": ("RGB", "BGR", "L"),
    "layout": ("NCHW", "NHWC"),
    "mode": ("stretch", "shortest_side", "letterbox"),
    "interpolation": ("nearest", "bilinear", "bicubic", "area"),
    "coordinates": ("half_pixel", "asymmetric"),
    "rounding": ("per_axis", "fixed_point", "once", "none"),
    "length_rounding": ("floor", "round"),
    "alignment": ("center", "top_left"),
    "offset": ("floor", "round"),
}
#: largest side that a description may have
MAX_SIZE = 65_535


def read_preprocess(fields: Mapping[str, Any], where: str = "preprocess", *, strict: bool = False) -> Preprocess:
    """Return the description in a JSON object.

    Args:
        fields: The object; what it leaves out has the defaults of `Preprocess`.
        where: Name of the object in errors.
        strict: Refuse unknown fields.

    Raises:
        InputError: If a value is not valid, or a field unknown.
    """
    return _Reader(where, strict).preprocess(fields)


class _Reader:
    """Reads a description from JSON; `where` names the object in errors."""

    def __init__(self, where: str, strict: bool) -> None:
        self._where, self._strict = where, strict

    def preprocess(self, fields: Mapping[str, Any]) -> Preprocess:
        readers: dict[str, Callable[[str, Any], Any]] = {
            "color": self._choice,
            "scale": self._number,
            "mean": self._numbers,
            "std": self._numbers,
            "layout": self._choice,
            "dtype": self._text,
            "embedded": self._flag,
            "preset": self._text,
        }
        self._refuse_unknown(fields, {*readers, "resize", "crop"}, "")
        made = {name: read(name, fields[name]) for name, read in readers.items() if fields.get(name) is not None}
        if any(one <= 0 for one in made.get("std", ())):
            raise self._error("std", "must be positive", "give the standard deviation of each channel")
        lengths = {len(made[name]) for name in ("mean", "std") if made.get(name)}
        if len(lengths) > 1:
            raise self._error("mean and std", "have different lengths", "give one number for each channel")
        resize, crop = self._geometry(fields.get("resize"), fields.get("crop"))
        return Preprocess(resize=resize, crop=crop, **made)

    def _geometry(self, resize: Any, crop: Any) -> tuple[Resize, Crop | None]:
        if not isinstance(resize, Mapping) and not isinstance(crop, Mapping | list | tuple):
            return self._old_geometry(resize, crop)
        made = self._resize(resize if isinstance(resize, Mapping) else {} if resize is None else {"size": resize})
        return made, None if crop is None else self._crop(crop)

    def _old_geometry(self, resize: Any, crop: Any) -> tuple[Resize, Crop | None]:
        """Return the geometry of an older manifest: numbers, which are Pillow's shorter side and the center of it."""
        sides = {name: self._side(name, value) for name, value in (("resize", resize), ("crop", crop)) if value is not None}
        if "crop" not in sides:
            return Resize(), None
        side = sides["crop"]
        return Resize("shortest_side", sides.get("resize", side), length_rounding="round"), Crop((side, side), "floor")

    def _resize(self, fields: Mapping[str, Any]) -> Resize:
        names = ("mode", "interpolation", "coordinates", "rounding", "length_rounding", "alignment")
        readers: dict[str, Callable[[str, Any], Any]] = {
            **dict.fromkeys(names, self._choice),
            "antialias": self._flag,
            "cubic_coefficient": self._number,
            "pad_value": self._level,
            "size": self._size,
        }
        self._refuse_unknown(fields, set(readers), "resize.")
        made = {name: read(name, fields[name]) for name, read in readers.items() if fields.get(name) is not None}
        resize = Resize(**made)
        if resize.mode == "shortest_side" and isinstance(resize.size, tuple):
            raise self._error("resize.size", "must be one number for shortest_side", "give the length of the shorter side")
        if resize.mode != "shortest_side" and isinstance(resize.size, int):
            resize = replace(resize, size=(resize.size, resize.size))
        return resize

    def _crop(self, value: Any) -> Crop:
        if not isinstance(value, Mapping):
            return Crop(self._pair("crop", value))
        self._refuse_unknown(value, {"size", "offset"}, "crop.")
        size = None if value.get("size") is None else self._pair("crop.size", value["size"])
        return Crop(size, self._choice("offset", value.get("offset", "round")))

    def _refuse_unknown(self, fields: Mapping[str, Any], known: set[str], prefix: str) -> None:
        if self._strict and (unknown := next((name for name in fields if name not in known), None)):
            raise self._error(f"{prefix}{unknown}", "is not a field of a preprocessing", nearest(str(unknown), known))

    def _choice(self, name: str, value: Any) -> str:
        if value not in CHOICES[name]:
            raise self._error(name, f"cannot be {str(value)[:40]!r}", f"one of: {', '.join(CHOICES[name])}")
        return str(value)

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise self._error(name, "is not a number", "for instance 0.5")
        return float(value)

    def _numbers(self, name: str, value: Any) -> tuple[float, ...]:
        if not isinstance(value, list | tuple):
            raise self._error(name, "is not a list of numbers", "give one number for each channel, such as [0.5, 0.5, 0.5]")
        return tuple(self._number(name, one) for one in value)

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._error(name, "is not a text", "put it in quotes")
        return value

    def _flag(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._error(name, "is neither true nor false", "write true or false")
        return value

    def _side(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise self._error(name, f"must be a number of pixels from 1 to {MAX_SIZE}", "for instance 224")
        return value

    def _level(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
            raise self._error(name, "must be a gray level from 0 to 255", "for instance 114")
        return value

    def _pair(self, name: str, value: Any) -> tuple[int, int]:
        if isinstance(value, list | tuple):
            if len(value) != 2:
                raise self._error(name, "must be height and width", "for instance [224, 224]")
            return self._side(name, value[0]), self._side(name, value[1])
        return (self._side(name, value),) * 2

    def _size(self, name: str, value: Any) -> int | tuple[int, int]:
        return self._pair(name, value) if isinstance(value, list | tuple) else self._side(name, value)

    def _error(self, name: str, message: str, hint: str) -> InputError:
        return InputError(f"{self._where}: {name} {message}", hint)
