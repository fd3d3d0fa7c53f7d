"""Scenes for the segmenter: the detector's scenes on a cluttered ground, with the class of every pixel.

The ground has the detector's gradient, blotches and noise, and three to nine lines, boxes and ellipses on it that are no
digits and darker than any ink. Digits are 24 to 48 pixels tall: the strokes of smaller ones are not a pixel wide.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

sys.path.append(str(Path(__file__).parents[1] / "digit_detector"))
from scenes import SIDE, Scene, draw, plain_ground

#: height of the smallest digits, in pixels
SHORTEST = 24
#: shapes are drawn so many times as large and made smaller, for smooth edges
FINE = 3


def cluttered_ground(generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a ground with clutter on it, float32 (128, 128) in 0..1."""
    canvas = plain_ground(generator)
    for _ in range(generator.integers(3, 10)):
        cover = Image.new("L", (SIDE * FINE, SIDE * FINE))
        pen = ImageDraw.Draw(cover)
        kind = generator.integers(4)
        if kind < 2:
            # From edge to edge: a shorter line could be a 1.
            start, end = generator.uniform(0, SIDE * FINE, 2)
            ends = [(0, start), (SIDE * FINE, end)] if kind == 0 else [(start, 0), (end, SIDE * FINE)]
            pen.line(ends, fill=255, width=int(generator.integers(FINE, 4 * FINE)))
        else:
            middle, half = generator.uniform(0, SIDE * FINE, 2), generator.uniform(4, 28, 2) * FINE
            shape = (*(middle - half), *(middle + half))
            (pen.rectangle if kind == 2 else pen.ellipse)(shape, fill=255)
        alpha = np.asarray(cover.reduce(FINE), np.float32) / 255 * generator.uniform(0.4, 1.0)
        canvas += alpha * (np.float32(generator.uniform(0, 0.45)) - canvas)
    return canvas


def draw_cluttered(digits: list[NDArray[np.uint8]], labels: NDArray[np.int64], generator: np.random.Generator) -> Scene:
    """Return one scene made of `digits` drawn at random, on a cluttered ground."""
    return draw(digits, labels, generator, cluttered_ground, SHORTEST)


def make_scenes(digits: list[NDArray[np.uint8]], labels: NDArray[np.int64], count: int, seed: int) -> list[Scene]:
    """Return `count` scenes that follow from `seed`."""
    generator = np.random.default_rng(seed)
    return [draw_cluttered(digits, labels, generator) for _ in range(count)]
