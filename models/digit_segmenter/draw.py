"""Draw the masks that the shipped segmenter finds in test scenes: docs/images/digit_segmenter.png.

python models/digit_segmenter/draw.py [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from relu_deploy.exporting import exporter as export
from relu_deploy.prediction.masks import color_of
from relu_deploy.tasks.segmentation import classes_of_pixels

HERE = Path(__file__).parent
COLUMNS, SCALE, GAP, GROUND = 6, 2, 8, 0
#: how much of a digit's color covers the picture
COVER = 0.65


def tinted(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Return one scene, enlarged, with the digits' pixels in their colors. pixels, mask: uint8 and int64 (H, W)."""
    grey = np.repeat(pixels[..., None], 3, 2).astype(np.float64)
    colors = np.array([color_of(index, GROUND) for index in range(mask.max() + 1)], np.float64)
    cover = np.where(mask == GROUND, 0, COVER)[..., None]
    shown = (grey * (1 - cover) + colors[mask] * cover).round().astype(np.uint8)
    return Image.fromarray(shown).resize((mask.shape[1] * SCALE, mask.shape[0] * SCALE), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "images" / "digit_segmenter.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, np.load(HERE / "test.npz") as data:
        bundle = export("digit_segmenter", Path(folder) / "s.rdb")
        pixels = data["x"][:COLUMNS, ..., 0]
        feeds = {"x": ((pixels[:, None] / 255 - 0.25) / 0.25).astype(np.float32)}
        masks = classes_of_pixels(bundle.session("onnxruntime-cpu").run(feeds)["y"])
    side = pixels.shape[1] * SCALE
    sheet = Image.new("RGB", (COLUMNS * (side + GAP) - GAP, 2 * side + GAP), "white")
    for column, (scene, mask) in enumerate(zip(pixels, masks, strict=True)):
        sheet.paste(Image.fromarray(scene).resize((side, side), Image.Resampling.NEAREST), (column * (side + GAP), 0))
        sheet.paste(tinted(scene, mask), (column * (side + GAP), side + GAP))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.out, optimize=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
