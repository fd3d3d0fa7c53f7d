"""The valid files that hostile ones are made from, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from file_cases import Originals
from seed_models import mlp

from relu_deploy.exporting.exporter import export_source

__all__ = ["make_originals"]


def make_originals(folder: Path, pictures: Path | None = None, texts: Path | None = None) -> Originals:
    """Write the originals into `folder`. pictures, texts: bundles of digits and language_id, exported here if not given."""
    (folder / "tiny.onnx").write_bytes(mlp().SerializeToString())
    tiny = export_source(folder / "tiny.onnx", folder / "tiny.rdb", labels=["a", "b", "c", "d"]).bundle.path
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    pictures = pictures or export_source("digits", folder / "digits.rdb").bundle.path
    texts = texts or export_source("language_id", folder / "language_id.rdb").bundle.path
    return Originals(tiny, folder / "x.npz", pictures, texts, folder / "canary")
