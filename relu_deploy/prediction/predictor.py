"""A model with its preprocessing and postprocessing: pictures, texts or arrays in, predictions out."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends import backend_for
from relu_deploy.bundle import Bundle
from relu_deploy.data.texts import takes_texts
from relu_deploy.errors import InputError, ReluDeployError, UsageError
from relu_deploy.prediction.masks import background_of, classes_found, mask_json, mask_of, png_of
from relu_deploy.prediction.outputs import boxes_of, classes_of, min_score
from relu_deploy.prediction.preparation import PreparedInput, prepare_arrays, prepare_picture, prepare_text, unsupported_reason
from relu_deploy.prediction.sources import MAX_FILE_BYTES
from relu_deploy.storage.files import read_regular, sha256
from relu_deploy.tensors import Array, Feeds

if TYPE_CHECKING:
    from relu_deploy.backends import Session

__all__ = ["PredictOptions", "Predictor"]

#: classes of a classification by default
TOP = 5


@dataclass(frozen=True)
class PredictOptions:
    """Options of predictions.

    Attributes:
        top: Classes of a classification.
        threshold: Score above which boxes of a detection count, None for the manifest's.
        batch: Most rows that run together, for a model whose batch size is variable.
        threads: CPU threads of the model; 0 takes every CPU this process may use.
        device: Index of the GPU, for a backend on one.
    """

    top: int = TOP
    threshold: float | None = None
    batch: int = 8
    threads: int = 0
    device: int = 0

    def check(self, bundle: Bundle) -> None:
        """Raise UsageError for a value out of range for the model."""
        for name, least in (("top", 1), ("batch", 1), ("threads", 0), ("device", 0)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"--{name} must be at least {least}, not {getattr(self, name)}", "see relu-deploy predict --help"
                )
        smallest = min_score(bundle.manifest)
        if self.threshold is not None and not smallest <= self.threshold <= 1:
            raise UsageError(
                f"--threshold must be between {smallest:g} and 1, not {self.threshold:g}",
                f"{bundle.name} finds nothing below {smallest:g}",
            )


class Predictor:
    """Predictions of one model. The model is opened on first use, and a pickled predictor opens it again where it is unpickled.

    Example:
        >>> predictor = relu_deploy.Predictor("digits.rdb")
        >>> predictor.predict(["seven.png"])[0]["predictions"][0]["label"]
        '7'

    Args:
        path: A bundle, a variant in one, or the path of either.
        backend: Name of the backend, "" for the one that the variant was optimized for, otherwise onnxruntime-cpu.
        variant: Name of a variant of the bundle, "" for the model itself.
        **options: Fields of `PredictOptions`.
    """

    def __init__(self, path: str | os.PathLike[str], backend: str = "", variant: str = "", **options: Any) -> None:
        self.path, self._backend, self.variant = os.fspath(path), backend, variant
        self.options = PredictOptions(**options)
        self._bundle: Bundle | None = None
        self._session: Session | None = None
        self._model_id = ""
        self._lock = threading.RLock()

    @property
    def bundle(self) -> Bundle:
        """The opened bundle. Raises InputError if it is not valid, or no predictions can be made with the model."""
        with self._lock:
            if self._bundle is None:
                bundle = Bundle.open(self.path)
                bundle = bundle.with_variant(self.variant) if self.variant else bundle
                if (reason := unsupported_reason(bundle)) is not None:
                    raise InputError(*reason)
                self.options.check(bundle)
                self._bundle = bundle
            return self._bundle

    @property
    def backend(self) -> str:
        """The name of the backend. Raises InputError if none was given and the bundle is not valid."""
        return self._backend or backend_for(self.bundle)

    @property
    def session(self) -> Session:
        """The session. Raises BackendUnavailable or Unsupported if the backend cannot run the model."""
        with self._lock:
            if self._session is None:
                self._session = self.bundle.session(self._backend, threads=self.options.threads, device=self.options.device)
            return self._session

    @property
    def model_id(self) -> str:
        """The name of the model, its variant, and the start of its graph's SHA-256: what results are labeled with."""
        if not self._model_id:
            bundle = self.bundle
            name = bundle.onnx.relative_to(bundle.path).as_posix() if bundle.is_folder else ""
            listed = bundle.manifest.get("files", {}).get(name)
            digest = listed["sha256"] if listed else sha256(bundle.onnx)
            self._model_id = f"{bundle.name}{f'-{bundle.variant}' if bundle.variant else ''}@{digest[:12]}"
        return self._model_id

    @property
    def batch_size(self) -> int:
        """Rows that run together: the option, or the size of a fixed batch."""
        sizes = {spec.batch for spec in self.bundle.inputs}
        fixed = [size for size in sizes if isinstance(size, int)]
        return fixed[0] if fixed else self.options.batch

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Return one result an input, in the same order.

        Args:
            inputs: Paths of picture files, contents of picture files (bytes), texts for a model that takes them, or mappings
                from input names to arrays of one row.

        Returns:
            For each input a dictionary with `predictions`, for a segmentation also `mask`, or with `error`, a message.

        Raises:
            InputError: If the model cannot be opened.
            BackendUnavailable: If the backend is not usable here.
            Unsupported: If the backend cannot run the model.
        """
        _ = self.session
        prepared = [self._prepare(one) for one in inputs]
        results: list[dict[str, Any]] = []
        for start in range(0, len(prepared), self.batch_size):
            results += self.run_batch(prepared[start : start + self.batch_size])
        return results

    def _prepare(self, one: Any) -> PreparedInput | ReluDeployError:
        bundle = self.bundle
        try:
            if isinstance(one, Mapping):
                return prepare_arrays(bundle, one)
            if takes_texts(bundle.manifest):
                return prepare_text(bundle, one)
            if isinstance(one, bytes):
                return prepare_picture(bundle, one)
            return prepare_picture(bundle, read_regular(Path(one), MAX_FILE_BYTES))
        except ReluDeployError as error:
            return error

    def run_batch(self, prepared: Sequence[PreparedInput | ReluDeployError]) -> list[dict[str, Any]]:
        """Run prepared inputs together and return their results; an error is passed through as the result of its input."""
        outputs = self.infer([one for one in prepared if isinstance(one, PreparedInput)])
        rows = iter(outputs)
        return [self.result_of(one, next(rows)) if isinstance(one, PreparedInput) else {"error": one.message} for one in prepared]

    def infer(self, prepared: Sequence[PreparedInput]) -> list[Feeds]:
        """Return the outputs of each prepared input, arrays of one row. Inputs of one shape run together."""
        results: list[Feeds] = [{} for _ in prepared]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, one in enumerate(prepared):
            groups.setdefault(tuple(array.shape for array in one.feeds.values()), []).append(index)
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                part = members[start : start + self.batch_size]
                for index, outputs in zip(part, self._run([prepared[index].feeds for index in part]), strict=True):
                    results[index] = outputs
        return results

    def _run(self, rows: Sequence[Feeds]) -> list[Feeds]:
        fixed = {spec.name: spec.batch for spec in self.bundle.inputs}
        feeds = {}
        for name in rows[0]:
            array = np.concatenate([row[name] for row in rows])
            size = fixed[name]
            if isinstance(size, int) and size > len(array):
                array = np.concatenate([array, np.repeat(array[-1:], size - len(array), 0)])
            feeds[name] = array
        outputs = self.session.run(feeds)
        return [_row_of(outputs, index, self.bundle.manifest) for index in range(len(rows))]

    def result_of(self, prepared: PreparedInput, outputs: Mapping[str, Array]) -> dict[str, Any]:
        """Return the result of one input from its outputs, or its error where the outputs give no prediction."""
        manifest = self.bundle.manifest
        first = outputs[self.bundle.outputs[0].name]
        try:
            if manifest["task"] == "classification":
                return {"predictions": classes_of(first, manifest.get("labels"), self.options.top)}
            if prepared.placement is None:
                return {"error": "this input is not a picture"}
            if manifest["task"] == "detection":
                return {"predictions": boxes_of(outputs, manifest, prepared.placement, self.options.threshold)}
            mask, background = mask_of(first, prepared.placement), background_of(manifest)
            found = classes_found(mask, manifest.get("labels"), background)
            return {"predictions": found, "mask": mask_json(png_of(mask, background), mask)}
        except InputError as error:
            return {"error": error.message}

    def close(self) -> None:
        """Close the session. The predictor can be used again, which opens another one."""
        with self._lock:
            if self._session is not None:
                self._session.close()
            self._session = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_backend": self._backend, "variant": self.variant, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _bundle=None, _session=None, _model_id="", _lock=threading.RLock())


def _row_of(outputs: Mapping[str, Array], index: int, manifest: Mapping[str, Any]) -> Feeds:
    """Return the outputs of one row of a batch. Detections after suppression name the row that they belong to."""
    if manifest["task"] == "detection" and manifest["postprocess"]["decode"] == "nms":
        mine = outputs["image"] == index
        row = {name: outputs[name][mine] for name in ("boxes", "scores", "labels")}
        return {**row, "image": np.zeros(int(mine.sum()), np.int64)}
    return {name: array[index : index + 1] for name, array in outputs.items()}
