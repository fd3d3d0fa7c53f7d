"""How an engine stores its tensors, in the words of TensorRT's inspector.

    format, as the inspector writes it                        order of a tensor (N, C, H, W)
    Row major linear FP32 · Row major Int8 format · Half      [N][C][H][W]
    Thirty-two wide channel vectorized row major Int8 format  [N][ceil(C/32)][H][W][32]
    Channel major FP16 format where channel % 8 == 0          [N][H][W][ceil(C/8)*8]

The formats are those that NVIDIA documents for `TensorFormat`. Any other format (with a stride in H, or "N/A due to dynamic
shapes") is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["DTYPES", "channel_order", "format_of", "formats_by_tensor", "stored_shape"]

#: element types as the inspector writes them, the longer names first
DTYPES = {
    "bfloat16": r"bf16|bfloat16",
    "float16": r"fp16|half|float16",
    "float8": r"fp8\w*|float8\w*",
    "float32": r"fp32|float|float32",
    "uint8": r"uint8",
    "int8": r"int8",
    "int32": r"int32",
    "int64": r"int64",
    "bool": r"bool",
}
WIDTHS = {"two": 2, "four": 4, "eight": 8, "sixteen": 16, "thirty-two": 32}
#: a type without a format, as Myelin writes it
BARE = re.compile(rf"k?(?:{'|'.join(DTYPES.values())})", re.IGNORECASE)


def channel_order(layout: str) -> tuple[bool, int] | None:
    """Return whether channels come last, and the width of a vector of channels; (False, 1) for C order, None for an unknown format."""
    text = layout.strip().rstrip(".").lower()
    if BARE.fullmatch(text) or text in ("linear", "klinear"):
        return False, 1
    if "stride" in text:
        return None
    if found := re.fullmatch(r"k?(chw|hwc)(\d*)", text):
        return found[1] == "hwc", int(found[2] or 1)
    if found := re.search(r"([\w-]+) wide channel vectorized row major", text):
        return (False, WIDTHS[found[1]]) if found[1] in WIDTHS else None
    if "channel major" in text:
        found = re.search(r"(?:channel|\bc) % (\d+) == 0", text)
        return (True, int(found[1]) if found else 1) if found or "where" not in text else None
    return (False, 1) if "row major" in text and "vectorized" not in text else None


def stored_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...] | None:
    """Return the shape in which a tensor is stored, None for an unknown format.

    The axis of a vectorized format is documented for four dimensions only.

    Args:
        shape: Logical shape.
        layout: The format, as the inspector writes it.
    """
    order = channel_order(layout)
    if order == (False, 1):
        return shape
    if order is None or len(shape) != 4:
        return None
    batch, channels, height, width = shape
    channels_last, vector = order
    blocks = -(-channels // vector)
    return (batch, height, width, blocks * vector) if channels_last else (batch, blocks, height, width, vector)


def format_of(fields: Mapping[str, Any]) -> str:
    """Return the format in the inspector's description of one tensor: TensorRT 11 separates the type from it."""
    return str(fields.get("Format/Datatype") or fields.get("Format/DataType") or fields.get("Format") or "")


def formats_by_tensor(text: str) -> dict[str, set[str]]:
    """Return the formats of each tensor that a layer writes, from the inspector's JSON; empty if it does not describe layers."""
    found: dict[str, set[str]] = {}
    try:
        # Separators are not escaped in the metadata, which strict JSON forbids.
        for layer in json.loads(text, strict=False)["Layers"]:
            for tensor in layer.get("Outputs", ()):
                found.setdefault(str(tensor["Name"]), set()).add(format_of(tensor))
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
    return found
