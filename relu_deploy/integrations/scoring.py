"""What the adapters of distributed engines share: the files in batches, and the rows of a batch.

The unit of work is a batch of files, grouped as `relu-deploy predict` groups them: the last bits of an output can depend on the
batch that it was computed in, so only the same batches give the same rows bit for bit, whichever worker runs them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from relu_deploy.errors import UsageError
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.prediction.sources import find_sources

__all__ = ["file_batches", "score_files"]


def file_batches(predictor: Predictor, inputs: Sequence[str | os.PathLike[str]]) -> list[list[str]]:
    """Return the picture files of `inputs` in batches of the model's size, in the order of `relu-deploy predict`.

    Args:
        predictor: The model.
        inputs: Picture files, folders of them and patterns. Workers open them by the same paths.

    Raises:
        UsageError: If an input does not exist, or is no picture.
        InputError: If a folder has no pictures, or the model cannot be opened.
    """
    sources = find_sources(predictor.bundle, inputs)
    if other := next((source for source in sources if source.place == Path()), None):
        raise UsageError(f"{other.name} is not a picture file", "run relu-deploy predict --shard I/N on arrays and texts")
    names, size = [source.name for source in sources], predictor.batch_size
    return [names[start : start + size] for start in range(0, len(names), size)]


def score_files(predictor: Predictor, files: Sequence[str]) -> list[str]:
    """Return the rows of a batch of files as lines of JSON, as `relu-deploy predict -o OUT.jsonl` writes them.

    Args:
        predictor: The model.
        files: One batch of `file_batches`.
    """
    results = predictor.predict([str(file) for file in files])
    rows = [{"input": str(file), "model": predictor.model_id, **row} for file, row in zip(files, results, strict=True)]
    return [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
