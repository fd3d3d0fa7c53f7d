"""The valid files that hostile ones are made from, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from file_cases import Originals
from seed_models import mlp

from relu_deploy.exporting.exporter import export_source

__all__ = ["make_originals"]


def make_originals(folder: Path, pictures: Path | None = None, texts: Path | None = None) -> Originals:
    """Write the originals into `folder`, except what is there. pictures, texts: bundles of digits and language_id, if there are."""
    (folder / "tiny.onnx").write_bytes(mlp().SerializeToString())
    tiny = _exported(folder / "tiny.onnx", folder / "tiny.rdb", labels=["a", "b", "c", "d"])
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    pictures = pictures or _exported("digits", folder / "digits.rdb")
    texts = texts or _exported("language_id", folder / "language_id.rdb")
    return Originals(tiny, folder / "x.npz", pictures, texts, folder / "canary")


def _exported(source: str | Path, place: Path, **options: Any) -> Path:
    return place if place.exists() else export_source(source, place, **options).bundle.path
