"""Draw what the shipped detector finds in test scenes: docs/images/digit_detector.png.

python models/digit_detector/draw.py [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from relu_deploy import export
from relu_deploy.detections import postprocess

HERE = Path(__file__).parent
COLUMNS, ROWS, SCALE, GAP, SURE = 4, 2, 3, 12, 0.5
#: one colour a digit, told apart by lightness too
COLOURS = ("#4fc3f7", "#ffb74d", "#81c784", "#ba68c8", "#fff176", "#e57373", "#4db6ac", "#f06292", "#aed581", "#90a4ae")


def framed(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Image.Image:
    """Return one scene, enlarged, with its boxes, names and scores. pixels: uint8 (H, W)."""
    side = pixels.shape[0] * SCALE
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=15)
    for box, label, score in zip(boxes * SCALE, labels, scores, strict=True):
        left, top, right, bottom = map(float, box)
        text = f"{label}  {score:.2f}"
        width = pen.textlength(text, font=font) + 8
        # The name stands above its box, or inside where the picture ends.
        over = top - 19 if top >= 19 else top
        start = min(left, side - width)
        pen.rectangle((left, top, right, bottom), outline=COLOURS[label], width=2)
        pen.rectangle((start, over, start + width, over + 19), fill=COLOURS[label])
        pen.text((start + 4, over + 1), text, fill="#101418", font=font)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "images" / "digit_detector.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, np.load(HERE / "test.npz") as data:
        bundle = export("digit_detector", Path(folder) / "d.rdb")
        pixels = data["x"][: COLUMNS * ROWS, ..., 0]
        results = bundle.session("onnxruntime-cpu").run({"x": ((pixels[:, None] / 255 - 0.25) / 0.25).astype(np.float32)})
        # A digit has one name: only the best class of each box is drawn.
        best = results["scores"] * (results["scores"] == results["scores"].max(-1, keepdims=True))
        found = postprocess(results["boxes"], best, score_threshold=SURE, iou_threshold=0.5)
    side = pixels.shape[1] * SCALE
    sheet = Image.new("RGB", (COLUMNS * (side + GAP) - GAP, ROWS * (side + GAP) - GAP), "white")
    for index, (scene, one) in enumerate(zip(pixels, found, strict=True)):
        place = (index % COLUMNS * (side + GAP), index // COLUMNS * (side + GAP))
        sheet.paste(framed(scene, one["boxes"], one["labels"], one["scores"]), place)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.out, optimize=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
