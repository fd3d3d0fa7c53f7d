"""Apache Beam: a `ModelHandler` for `RunInference`, which opens the model once in each worker process.

Example:
    >>> handler = BundleModelHandler("digits.rdb")
    >>> with beam.Pipeline() as pipeline:
    ...     _ = (
    ...         pipeline
    ...         | beam.Create(handler.file_batches(["photos"]))
    ...         | RunInference(handler)
    ...         | beam.FlatMap(lambda result: result.inference)
    ...         | beam.io.WriteToText("rows", ".jsonl")
    ...     )
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from relu_deploy.integrations.scoring import file_batches, score_files
from relu_deploy.prediction.predictor import Predictor

try:
    from apache_beam.ml.inference.base import ModelHandler, PredictionResult
except ImportError as error:
    raise ImportError("Apache Beam is not installed: pip install 'relu-deploy[beam]'") from error

__all__ = ["BundleModelHandler"]


class BundleModelHandler(ModelHandler[list[str], PredictionResult, Predictor]):
    """Scores elements of `file_batches`. The arguments are those of `Predictor`."""

    def __init__(self, path: str | os.PathLike[str], backend: str = "onnxruntime-cpu", variant: str = "", **options: Any) -> None:
        self._predictor = Predictor(path, backend, variant, **options)

    def file_batches(self, inputs: Sequence[str | os.PathLike[str]]) -> list[list[str]]:
        """Return picture files, folders and patterns as batches of files, the elements of the pipeline."""
        return file_batches(self._predictor, inputs)

    def load_model(self) -> Predictor:
        """Return the model, opened."""
        _ = self._predictor.session
        return self._predictor

    def run_inference(
        self,
        batch: Sequence[list[str]],
        model: Predictor,
        inference_args: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> Iterator[PredictionResult]:
        """Yield the rows of each element as lines of JSON, as `predict -o OUT.jsonl` writes them."""
        yield from (PredictionResult(files, score_files(model, files), model.model_id) for files in batch)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Return Beam's own batching: none, since an element is a batch already."""
        return {"max_batch_size": 1}
