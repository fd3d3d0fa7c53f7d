"""Draw what the shipped detector finds in test scenes: docs/images/digit_detector.png.

python models/digit_detector/draw.py [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from relu_deploy.exporting import exporter as export
from relu_deploy.tasks.detection import postprocess

HERE = Path(__file__).parent
COLUMNS, ROWS, SCALE, GAP, SURE = 4, 2, 3, 12, 0.5
#: height of a name, in pixels of the picture
TAG = 19
#: left, top, right, bottom
Edges = tuple[float, float, float, float]
#: one color a digit, told apart by lightness too
COLORS = ("#4fc3f7", "#ffb74d", "#81c784", "#ba68c8", "#fff176", "#e57373", "#4db6ac", "#f06292", "#aed581", "#90a4ae")


def framed(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Image.Image:
    """Return one scene, enlarged, with its boxes, names and scores. pixels: uint8 (H, W)."""
    side = pixels.shape[0] * SCALE
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=15)
    edges = [tuple(map(float, box)) for box in boxes * SCALE]
    for box, label in zip(edges, labels, strict=True):
        pen.rectangle(box, outline=COLORS[label], width=2)
    # Names come after all boxes, so that no box crosses a name.
    tags: list[Edges] = []
    for index, (label, score) in enumerate(zip(labels, scores, strict=True)):
        text = f"{label}  {score:.2f}"
        tag = free_place(edges, index, tags, pen.textlength(text, font=font) + 8, side)
        pen.rectangle(tag, fill=COLORS[label])
        pen.text((tag[0] + 4, tag[1] + 1), text, fill="#101418", font=font)
        tags.append(tag)
    return picture


def free_place(boxes: list[Edges], index: int, tags: list[Edges], width: float, side: int) -> Edges:
    """Return where the name of box `index` hides least: at a corner above or below it, or at its upper edge inside.

    tags: the names that are placed already. width: of the name. side: of the picture. All in pixels of the picture.
    """
    left, top, right, bottom = boxes[index]
    corners = [(x, y) for y in (top - TAG, bottom, top) for x in (left, right - width)]
    places = []
    for x, y in corners:
        if -1 <= y <= side - TAG:
            start = min(max(x, 0.0), side - width)
            places.append((start, y, start + width, y + TAG))
    # A hidden name is worse than a hidden piece of digit; of equal places the first one wins.
    return min(places, key=lambda place: 10 * sum(shared(place, tag) for tag in tags) + sum(shared(place, box) for box in boxes))


def shared(a: Edges, b: Edges) -> float:
    """Return the area that two rectangles share, in pixels."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


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
