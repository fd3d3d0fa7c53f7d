"""Preprocessings by the name of the library whose arithmetic they reproduce.

torchvision          shorter side 256 for 224, center crop, antialiased, on Pillow images: its classification presets
torchvision-tensor   the same on tensors with antialias=False
opencv               `cv2.resize` to the input, INTER_LINEAR
ultralytics          `LetterBox`: aspect ratio kept, centered on gray 114, INTER_LINEAR
keras, tensorflow    `tf.image.resize`: bilinear with half-pixel centers, in floating point, then x / 127.5 - 1
caffe                `cv2.dnn.blobFromImage(picture, 1, size, (104, 117, 123))`: BGR minus the mean
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.preprocessing.description import Crop, Preprocess, Resize
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.storage.files import read_regular
from relu_deploy.storage.json_files import parse_json

__all__ = ["PRESETS", "load_preprocess"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: presets of libraries whose nearest neighbor is the pixel at i * factor
ASYMMETRIC_NEAREST = ("torchvision-tensor", "opencv", "ultralytics", "caffe")
#: largest FILE.json, in bytes
MAX_FILE = 2**20

_PILLOW = Resize("shortest_side")
_OPENCV = Resize("stretch", antialias=False, cubic_coefficient=-0.75, rounding="fixed_point")
_TENSOR = Resize("shortest_side", antialias=False, cubic_coefficient=-0.75, rounding="per_axis")
_LETTERBOX = Resize(
    "letterbox",
    antialias=False,
    cubic_coefficient=-0.75,
    rounding="fixed_point",
    length_rounding="round",
    pad_value=114,
)
_TENSORFLOW = Resize("stretch", antialias=False, rounding="none")
#: tf.keras.applications.imagenet_utils.preprocess_input(mode="tf")
_KERAS = {"resize": _TENSORFLOW, "scale": 1 / 127.5, "mean": (1.0,) * 3, "std": (1.0,) * 3, "layout": "NHWC"}

PRESETS: dict[str, Preprocess] = {
    "torchvision": Preprocess(preset="torchvision", resize=_PILLOW, crop=Crop(), mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "torchvision-tensor": Preprocess(
        preset="torchvision-tensor", resize=_TENSOR, crop=Crop(), mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "opencv": Preprocess(preset="opencv", resize=_OPENCV),
    "ultralytics": Preprocess(preset="ultralytics", resize=_LETTERBOX),
    "keras": Preprocess(preset="keras", **_KERAS),  # type: ignore[arg-type]
    "tensorflow": Preprocess(preset="tensorflow", **_KERAS),  # type: ignore[arg-type]
    "caffe": Preprocess(preset="caffe", color="BGR", resize=_OPENCV, scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0)),
}


def load_preprocess(source: str | os.PathLike[str] | Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing that `source` names or holds.

    Args:
        source: Name of a preset, a JSON file, or its content. With the field `preset` it changes that preset.

    Raises:
        UsageError: If there is no such preset or file.
        InputError: If the file is not valid.
    """
    if isinstance(source, Mapping):
        return _from_fields(source, "preprocess")
    text = os.fspath(source)
    if text in PRESETS:
        return PRESETS[text]
    file = Path(text)
    if not file.exists():
        if file.suffix == ".json":
            raise UsageError(f"--preprocess: {text} does not exist", f"give a JSON file or a preset: {', '.join(PRESETS)}")
        raise UsageError(f"--preprocess: there is no preset {text[:100]!r}", nearest(text, PRESETS))
    try:
        fields = parse_json(read_regular(file, MAX_FILE))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}", 'write a JSON object such as {"preset": "opencv"}') from None
    if not isinstance(fields, dict):
        raise InputError(f"{file} does not hold a JSON object", 'write one such as {"preset": "opencv"}')
    return _from_fields(fields, str(file))


def _from_fields(fields: Mapping[str, Any], where: str) -> Preprocess:
    """Return the description in `fields`, on top of the preset that they name."""
    name = fields.get("preset")
    if name is None:
        return read_preprocess(fields, where, strict=True)
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"{where}: there is no preset {str(name)[:40]!r}", nearest(str(name), PRESETS))
    base = PRESETS[name].to_json()
    merged = {**base, **fields}
    for part in ("resize", "crop"):
        changes = {"size": fields[part]} if isinstance(fields.get(part), int | list) else fields.get(part)
        if isinstance(changes, Mapping) and isinstance(base.get(part), Mapping):
            merged[part] = {**_all_fields(PRESETS[name], part), **changes}
    resize = merged["resize"]
    if isinstance(resize, Mapping) and resize.get("interpolation") == "nearest" and name in ASYMMETRIC_NEAREST:
        given = fields.get("resize")
        coordinates = given.get("coordinates", "asymmetric") if isinstance(given, Mapping) else "asymmetric"
        merged["resize"] = {**resize, "coordinates": coordinates}
    return read_preprocess({key: value for key, value in merged.items() if value is not None}, where, strict=True)


def _all_fields(preset: Preprocess, part: str) -> dict[str, Any]:
    """Return every field of a preset's resize or crop, also those that its own interpolation does not need."""
    return {key: value for key, value in vars(getattr(preset, part)).items() if value is not None}
