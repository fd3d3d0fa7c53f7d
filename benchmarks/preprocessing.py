"""The presets of `--preprocess` beside the libraries that they are named after, on 20 sample photographs.

    python benchmarks/preprocessing.py --out benchmarks/results/DATE-cpu-preprocessing.json
    python benchmarks/preprocessing.py --page docs/preprocessing.md    # writes the table of the stored results into the page
    python benchmarks/preprocessing.py --tensorflow-samples tests/resources/tensorflow_resize.npz

A difference is in gray levels: of the arrays that the model gets, times std / scale. The photographs are scikit-image's. A library
that is not installed is left out of the results. TensorFlow needs an environment of its own, in which this script runs as well
(`pip install tensorflow-cpu`, and this repository on PYTHONPATH); `--tensorflow-samples` stores results of it for the tests.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relu_deploy.preprocessing.apply import normalize, place
from relu_deploy.preprocessing.presets import PRESETS
from relu_deploy.tensors import TensorSpec

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
    *("moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
#: side of the model's input by preset
SIDES = {"ultralytics": 640}
SIDE = 224
MARKS = "<!-- table of benchmarks/preprocessing.py -->", "<!-- end of the table -->"

Reference = Callable[[Image.Image, int], Any]


def photographs(names: list[str] | None = None) -> dict[str, Image.Image]:
    """Return sample photographs by name, in RGB."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("the photographs come with scikit-image: pip install --no-deps scikit-image==0.26.0")
    folder = Path(package.origin).parent / "data"
    return {name: Image.open(folder / name).convert("RGB") for name in names or PHOTOGRAPHS}


def torchvision_preset(picture: Image.Image, side: int) -> Any:
    from torchvision.transforms._presets import ImageClassification

    return ImageClassification(crop_size=side, resize_size=round(side * 256 / 224))(picture).numpy()


def torchvision_on_tensors(picture: Image.Image, side: int) -> Any:
    import torch
    from torchvision.transforms import v2

    steps = [
        v2.Resize(round(side * 256 / 224), antialias=False),
        v2.CenterCrop(side),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    return v2.Compose(steps)(torch.from_numpy(np.array(picture)).permute(2, 0, 1)).numpy()


def opencv(picture: Image.Image, side: int) -> Any:
    import cv2

    return (cv2.resize(np.asarray(picture), (side, side)).astype(np.float32) / 255).transpose(2, 0, 1)


def letterbox_by_formula(picture: Image.Image, side: int) -> Any:
    """Return what ultralytics' LetterBox does, written with OpenCV alone."""
    import cv2

    pixels = np.asarray(picture)
    ratio = min(side / pixels.shape[0], side / pixels.shape[1])
    width, height = round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio)
    across, down = (side - width) / 2, (side - height) / 2
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    edges = round(down - 0.1), round(down + 0.1), round(across - 0.1), round(across + 0.1)
    padded = cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    return (padded.astype(np.float32) / 255).transpose(2, 0, 1)


def ultralytics_letterbox(picture: Image.Image, side: int) -> Any:
    from ultralytics.data.augment import LetterBox

    padded = LetterBox((side, side), auto=False)(image=np.asarray(picture))
    return (padded.astype(np.float32) / 255).transpose(2, 0, 1)


def tensorflow_resize(picture: Image.Image, side: int) -> Any:
    import tensorflow as tf

    return tf.image.resize(np.asarray(picture), (side, side)).numpy() / 127.5 - 1


def keras_resizing(picture: Image.Image, side: int) -> Any:
    import keras

    return np.asarray(keras.layers.Resizing(side, side)(np.asarray(picture, np.float32)[None])[0]) / 127.5 - 1


def opencv_blob(picture: Image.Image, side: int) -> Any:
    import cv2

    return cv2.dnn.blobFromImage(np.asarray(picture)[..., ::-1].copy(), 1, (side, side), (104, 117, 123))[0]


#: distribution and function by preset
REFERENCES: dict[str, tuple[str, Reference]] = {
    "torchvision": ("torchvision", torchvision_preset),
    "torchvision-tensor": ("torchvision", torchvision_on_tensors),
    "opencv": ("opencv-python-headless", opencv),
    "ultralytics": ("ultralytics", ultralytics_letterbox),
    "keras": ("keras", keras_resizing),
    "tensorflow": ("tensorflow-cpu", tensorflow_resize),
    "caffe": ("opencv-python-headless", opencv_blob),
}


def ours(preset: str, picture: Image.Image, side: int) -> Any:
    """Return the array that a model of a preset gets."""
    steps = PRESETS[preset]
    shape = ("batch", side, side, 3) if steps.layout == "NHWC" else ("batch", 3, side, side)
    spec = TensorSpec("x", "float32", shape)
    return normalize(place(picture, spec, steps)[0], steps.fitted(spec))[0]


def levels(preset: str, one: Any, other: Any) -> Any:
    """Return the difference of two inputs in gray levels."""
    steps = PRESETS[preset]
    std = np.array(steps.std or (1.0,) * 3)
    shape = (1, 1, -1) if steps.layout == "NHWC" else (-1, 1, 1)
    return np.abs(one.astype(np.float64) - other.astype(np.float64)) * (std / steps.scale).reshape(shape)


def measure(preset: str, pictures: dict[str, Image.Image]) -> dict[str, Any]:
    """Return the largest difference of a preset from its library on pictures."""
    package, reference = REFERENCES[preset]
    side, largest, differing, total = SIDES.get(preset, SIDE), 0.0, 0, 0
    for picture in pictures.values():
        difference = levels(preset, ours(preset, picture, side), reference(picture, side))
        largest = max(largest, float(difference.max()))
        # Half a gray level leaves out what float32 arithmetic rounds.
        differing += int((difference > 0.5).sum())
        total += difference.size
    return {
        "preset": preset,
        "library": package.removesuffix("-cpu"),
        "version": version(package),
        "pictures": len(pictures),
        "side": side,
        "largest_levels": round(largest, 4),
        "share_differing": round(differing / total, 8),
    }


def store_tensorflow_samples(file: Path) -> None:
    """Store small pictures and what TensorFlow resizes them to, for tests on machines without it."""
    import tensorflow as tf

    arrays = {"version": np.array(tf.__version__)}
    for name, size in (("chelsea.png", (33, 40)), ("coffee.png", (70, 64)), ("rocket.jpg", (24, 96))):
        picture = photographs([name])[name]
        picture.thumbnail((96, 96))
        pixels = np.asarray(picture)
        arrays[f"{name}/pixels"] = pixels
        arrays[f"{name}/resized"] = tf.image.resize(pixels, size).numpy()
    np.savez_compressed(file, **arrays)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| preset | library | version | largest difference in gray levels | pixels that differ |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{row['preset']}` | {row['library']} | {row['version']} | {row['largest_levels']:.4g} | {row['share_differing']:.3%} |"
        for row in rows
    ]
    return "\n".join(lines)


def write_page(page: Path, results: Path) -> None:
    """Replace the table in a page by that of the stored results."""
    begin, end = MARKS
    rows = json.loads(results.read_text(encoding="utf-8"))["presets"]
    text = page.read_text(encoding="utf-8")
    changed = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n\n{table(rows)}\n\n{end}", text, count=1, flags=re.DOTALL)
    page.write_text(changed, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results; those of other libraries that it has are kept")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--results", type=Path, help="stored results for --page")
    parser.add_argument("--tensorflow-samples", type=Path, metavar="FILE.npz")
    options = parser.parse_args()
    if options.tensorflow_samples:
        return store_tensorflow_samples(options.tensorflow_samples)
    if options.page:
        return write_page(options.page, options.results)
    known = json.loads(options.out.read_text(encoding="utf-8"))["presets"] if options.out and options.out.exists() else []
    found = {row["preset"]: row for row in known}
    pictures = photographs()
    for preset, (package, _) in REFERENCES.items():
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found[preset] = measure(preset, pictures)
        print(found[preset], flush=True)
    rows = [found[preset] for preset in REFERENCES if preset in found]
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps({"photographs": list(PHOTOGRAPHS), "presets": rows}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
