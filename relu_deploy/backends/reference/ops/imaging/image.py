"""ImageDecoder, with Pillow."""

from __future__ import annotations

import io

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


@operator("ImageDecoder", keeps_types=True)
def decode_image(call: Call, encoded: Array) -> Array:
    from PIL import Image

    layout = call.get("pixel_format", "RGB")
    picture = Image.open(io.BytesIO(encoded.tobytes()))
    if layout == "Grayscale":
        return np.asarray(picture.convert("L"))[:, :, None]
    pixels = np.asarray(picture.convert("RGB"))
    return pixels[:, :, ::-1].copy() if layout == "BGR" else pixels
