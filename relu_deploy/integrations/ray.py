"""Ray Data: a callable class for `Dataset.map_batches`, of which each actor opens the model once.

Example:
    >>> dataset = files_dataset("digits.rdb", ["photos"])
    >>> rows = dataset.map_batches(
    ...     RayPredictor, fn_constructor_args=("digits.rdb",), batch_size=1, compute=ray.data.ActorPoolStrategy(size=2)
    ... )
    >>> lines = [row["row"] for row in rows.iter_rows()]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from relu_deploy.errors import missing_package
from relu_deploy.integrations.scoring import file_batches, score_files
from relu_deploy.prediction.predictor import Predictor

__all__ = ["RayPredictor", "files_dataset"]


class RayPredictor:
    """Scores rows of `files_dataset`. The arguments are those of `Predictor`."""

    def __init__(self, path: str | os.PathLike[str], backend: str = "onnxruntime-cpu", variant: str = "", **options: Any) -> None:
        self._predictor = Predictor(path, backend, variant, **options)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the column `row`: a line of JSON for each file in the column `files`, as `predict -o OUT.jsonl` writes it."""
        return {"row": [line for files in batch["files"] for line in score_files(self._predictor, files)]}


def files_dataset(path: str | os.PathLike[str], inputs: Sequence[str | os.PathLike[str]], **options: Any) -> Any:
    """Return a `ray.data.Dataset` whose rows are batches of picture files, in the column `files`.

    Args:
        path: The bundle.
        inputs: Picture files, folders and patterns.
        **options: Fields of `PredictOptions`, the same as for `RayPredictor`.
    """
    try:
        import ray.data
    except ImportError as error:
        raise missing_package("ray", "ray") from error
    return ray.data.from_items([{"files": files} for files in file_batches(Predictor(path, **options), inputs)])
