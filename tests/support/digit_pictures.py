"""Pictures of digits as files, and the rows that `predict` makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from relu_deploy.paths import models_folder
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.prediction.run import predict

__all__ = ["predicted_lines", "write_pictures"]


def write_pictures(folder: Path, count: int) -> Path:
    """Write pictures, one of which is broken."""
    digits = np.load(models_folder() / "digits" / "test.npz")["x"]
    folder.mkdir()
    for number in range(count):
        Image.fromarray(digits[number % len(digits), :, :, 0]).save(folder / f"{number:05}.png")
    (folder / "00003.png").write_text("not a picture")
    return folder


def predicted_lines(bundle: Path, folder: Path, out: Path, **options) -> list[str]:
    """Return the lines of the result file of `predict`."""
    with Predictor(bundle, **options) as predictor:
        predict(predictor, [folder], out)
    return out.read_text(encoding="utf-8").splitlines()
