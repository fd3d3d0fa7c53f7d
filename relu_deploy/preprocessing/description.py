"""The description of a picture's preprocessing: color order, resize, crop, normalization, layout and dtype.

It is the object `preprocess` of a manifest; `reading` makes it from JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from relu_deploy.tensors import Dim, TensorSpec

__all__ = ["Crop", "Preprocess", "Resize", "plane_of"]

#: sides of the presets where the input's own are not known
DEFAULT_RESIZE, DEFAULT_CROP = 256, 224


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

    def fitted(self, spec: TensorSpec) -> Preprocess:
        """Return the description with the sizes that follow from an input, and its number of channels and dtype."""
        channels, *sides = plane_of(spec, {"layout": self.layout, "embedded": self.embedded})
        count = channels if isinstance(channels, int) and channels else len(self.mean) or (1 if self.color == "L" else 3)
        height, width = sides
        own = (height, width) if isinstance(height, int) and isinstance(width, int) and height * width > 0 else None
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
