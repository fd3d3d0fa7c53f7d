"""The description of a picture's preprocessing: color order, resize, crop, normalization, layout and dtype.

It is the object `preprocess` of a manifest. Older manifests have only `resize` and `crop` as numbers: the shorter side is resized to
`resize`, the center is cropped to `crop`, and without `crop` the picture is stretched to the input, in all cases with Pillow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from relu_deploy.errors import InputError, nearest
from relu_deploy.tensors import Dim, TensorSpec

__all__ = ["Crop", "Preprocess", "Resize", "plane_of"]

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
#: sides of the presets where the input's own are not known
DEFAULT_RESIZE, DEFAULT_CROP = 256, 224
#: largest side that a description may have
MAX_SIZE = 65_535


@dataclass(frozen=True)
class Resize:
    """How a picture is resized.

    Attributes:
        mode: "stretch" to `size`; "shortest_side" to `size`, keeping the aspect ratio; "letterbox" into `size`, keeping the aspect
            ratio, with a border of `pad_value`.
        size: (height, width), or the shorter side for "shortest_side". None takes that of the input.
        interpolation: "nearest", "bilinear", "bicubic" or "area".
        antialias: Widen the filter of "bilinear" and "bicubic" by the factor that the picture shrinks by.
        coordinates: Position of an output pixel in the picture: "half_pixel" is (i + 0.5) * factor - 0.5, "asymmetric" is
            i * factor, as ONNX's Resize calls them.
        cubic_coefficient: The parameter a of "bicubic" (Keys, 1981).
        rounding: "per_axis" rounds to 8 bits after the rows and again after the columns, as Pillow does; "fixed_point" uses
            weights of 11 bits, as OpenCV does; "once" rounds the result, half to even; "none" keeps it in floating point.
        length_rounding: Rounding of the sides that follow from the aspect ratio.
        pad_value: Gray level of the border of "letterbox".
        alignment: Position of the picture within the border: "center" or "top_left".
    """

    mode: str = "stretch"
    size: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    coordinates: str = "half_pixel"
    cubic_coefficient: float = -0.5
    rounding: str = "per_axis"
    length_rounding: str = "floor"
    pad_value: int = 0
    alignment: str = "center"

    @property
    def is_filtered(self) -> bool:
        """Return whether an output pixel is a weighted sum, for which antialiasing has a meaning."""
        return self.interpolation in ("bilinear", "bicubic")

    def to_json(self) -> dict[str, Any]:
        """Return the fields that have a meaning for this mode and interpolation."""
        fields: dict[str, Any] = {"mode": self.mode}
        if self.size is not None:
            fields["size"] = self.size if isinstance(self.size, int) else list(self.size)
        fields["interpolation"] = self.interpolation
        if self.is_filtered:
            fields["antialias"] = self.antialias
        if self.interpolation != "area":
            fields["coordinates"] = self.coordinates
        if self.interpolation == "bicubic":
            fields["cubic_coefficient"] = self.cubic_coefficient
        fields["rounding"] = self.rounding
        if self.mode != "stretch":
            fields["length_rounding"] = self.length_rounding
        if self.mode == "letterbox":
            fields |= {"pad_value": self.pad_value, "alignment": self.alignment}
        return fields


@dataclass(frozen=True)
class Crop:
    """The part of a resized picture that the model gets: its center.

    Attributes:
        size: (height, width); None takes that of the input.
        offset: Rounding of the left and upper border where they are not whole: "floor", or "round" (half to even).
    """

    size: tuple[int, int] | None = None
    offset: str = "round"

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {**({} if self.size is None else {"size": list(self.size)}), "offset": self.offset}


@dataclass(frozen=True)
class Preprocess:
    """From a decoded picture to a model's input: resize, crop, reorder the channels, then (x * scale - mean) / std.

    Attributes:
        color: Order of the channels: "RGB", "BGR", or "L" for gray.
        resize: How the picture is resized.
        crop: What is cropped from it, None for nothing.
        scale: Factor of the pixels, which are 0 to 255.
        mean: One number a channel in the order of `color`, in units of the scaled pixels. Empty stands for zeros.
        std: As `mean`. Empty stands for ones.
        layout: "NCHW" or "NHWC".
        dtype: Of the input.
        embedded: The graph itself reorders, normalizes and transposes; it takes the resized pixels, uint8 NHWC.
        preset: Name of the preset that it was made from, "" for none.
    """

    color: str = "RGB"
    resize: Resize = field(default_factory=Resize)
    crop: Crop | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    dtype: str = "float32"
    embedded: bool = False
    preset: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object `preprocess` of a manifest."""
        return {
            **({"preset": self.preset} if self.preset else {}),
            "color": self.color,
            "resize": self.resize.to_json(),
            **({} if self.crop is None else {"crop": self.crop.to_json()}),
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "layout": self.layout,
            "dtype": self.dtype,
            "embedded": self.embedded,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], where: str = "preprocess", *, strict: bool = False) -> Preprocess:
        """Return the description in `fields`, of this version or older.

        Args:
            fields: The object; what it leaves out has the defaults of the attributes.
            where: Name of the object in errors.
            strict: Refuse unknown fields.

        Raises:
            InputError: If a value is not valid, or a field unknown.
        """
        return _Reader(where, strict).preprocess(fields)

    def fitted(self, spec: TensorSpec) -> Preprocess:
        """Return the description with the sizes that follow from an input, and its number of channels and dtype."""
        channels, *sides = plane_of(spec, {"layout": self.layout, "embedded": self.embedded})
        count = channels if isinstance(channels, int) and channels else len(self.mean) or (1 if self.color == "L" else 3)
        own = (sides[0], sides[1]) if isinstance(sides[0], int) and isinstance(sides[1], int) and min(sides) > 0 else None
        crop, resize = self.crop, self.resize
        if crop is not None and crop.size is None:
            crop = replace(crop, size=own or (DEFAULT_CROP, DEFAULT_CROP))
        if resize.mode == "shortest_side" and resize.size is None:
            shown = crop.size if crop is not None and crop.size is not None else own
            side = DEFAULT_RESIZE if shown is None else round(min(shown) * DEFAULT_RESIZE / DEFAULT_CROP)
            resize = replace(resize, size=side if crop is not None or shown is None else min(shown))
        return replace(
            self,
            color="L" if count == 1 else "RGB" if self.color == "L" else self.color,
            resize=resize,
            crop=crop,
            mean=self.mean or (0.0,) * count,
            std=self.std or (1.0,) * count,
            dtype=spec.dtype,
        )


def plane_of(spec: TensorSpec, steps: Mapping[str, Any]) -> tuple[Dim, Dim, Dim]:
    """Return channels, height and width of a picture input, names for those that vary; 0, 0, 0 for any other input.

    Args:
        spec: Specification of the input.
        steps: The manifest's `preprocess`.
    """
    if len(spec.shape) != 4:
        return 0, 0, 0
    layout = steps.get("layout") or ("NHWC" if spec.dtype == "uint8" else "NCHW")
    _, *sizes = spec.shape
    if layout == "NHWC" or steps.get("embedded"):
        return sizes[2], sizes[0], sizes[1]
    return sizes[0], sizes[1], sizes[2]


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
