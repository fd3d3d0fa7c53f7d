"""How many rows a run may have, of a model whose graph fixes a shape to one row although its inputs declare any number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import Dataset
from relu_deploy.errors import ReluDeployError, TooLong
from relu_deploy.tensors import Feeds

__all__ = ["rows_that_run"]


def rows_that_run(bundle: Bundle, dataset: Dataset, run: Callable[[Feeds], Any], rows: int) -> int:
    """Return `rows`, or 1 where the model does not run with two.

    It is tried only where an output has no batch: exporters that traced a model with one row leave its size in a Reshape.

    Args:
        bundle: The model.
        dataset: Its data.
        run: Runs it.
        rows: Rows that a run would have.
    """
    varies = any(isinstance(spec.batch, str) for spec in bundle.inputs)
    if rows == 1 or len(dataset) < 2 or not varies or all(spec.batch is not None for spec in bundle.outputs):
        return rows
    two = next(dataset.picked(np.arange(2)).batches(2))
    try:
        run(two)
    except TooLong:
        raise
    except ReluDeployError:
        return 1
    return rows
