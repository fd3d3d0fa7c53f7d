"""Pictures with their predictions drawn in: boxes with labels, the mask as an overlay, or the classes as a caption."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from relu_deploy.prediction.masks import color_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_predictions"]

#: opacity of a mask, of 255
OPACITY = 150
#: classes in a caption
CAPTIONED = 3


def draw_predictions(picture: Image.Image, result: Mapping[str, Any]) -> bytes:
    """Return a PNG file of a picture with its predictions.

    Args:
        picture: The decoded picture.
        result: With `predictions`, as `Predictor.predict` returns it.
    """
    image = picture.convert("RGB")
    predictions: Sequence[Mapping[str, Any]] = result["predictions"]
    if "mask" in result:
        image = _overlaid(image, result["mask"])
    elif any("box" in one for one in predictions):
        _draw_boxes(image, predictions)
    elif predictions and "probability" in predictions[0]:
        image = _captioned(image, [f"{one['label']} {one['probability']:.2f}" for one in predictions[:CAPTIONED]])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _overlaid(image: Image.Image, mask: Mapping[str, Any]) -> Image.Image:
    from PIL import Image as Images

    overlay = Images.open(io.BytesIO(base64.b64decode(mask["data"]))).convert("RGBA")
    alpha = overlay.getchannel("A").point(lambda value: min(value, OPACITY))
    image.paste(overlay.convert("RGB"), (0, 0), alpha)
    return image


def _draw_boxes(image: Image.Image, predictions: Sequence[Mapping[str, Any]]) -> None:
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(image), _font(image)
    width = max(1, round(min(image.size) / 200))
    # The best box comes first and is drawn last, over the others.
    for one in reversed(predictions):
        left, top, right, bottom = one["box"]
        color = color_of(one["index"], None)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
        text = _plain(f"{one['label']} {one['score']:.2f}")
        box = draw.textbbox((0, 0), text, font=font)
        height = box[3] + 2
        at = (min(max(0.0, left), max(0.0, image.width - box[2] - 2)), max(0.0, top - height))
        draw.rectangle((at[0], at[1], at[0] + box[2] + 2, at[1] + height), fill=color)
        draw.text((at[0] + 1, at[1]), text, fill="black", font=font)


def _captioned(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    from PIL import Image as Images
    from PIL import ImageDraw

    font = _font(image)
    text = "\n".join(map(_plain, lines))
    box = ImageDraw.Draw(image).multiline_textbbox((0, 0), text, font=font)
    whole = Images.new("RGB", (max(image.width, round(box[2]) + 4), image.height + round(box[3]) + 6), "white")
    whole.paste(image)
    ImageDraw.Draw(whole).multiline_text((2, image.height + 2), text, fill="black", font=font)
    return whole


def _font(image: Image.Image) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(max(10, round(min(image.size) / 30)))


def _plain(text: str) -> str:
    """Return `text` without what a line of a drawing cannot show."""
    return "".join(one if one.isprintable() else "?" for one in text)[:60]
