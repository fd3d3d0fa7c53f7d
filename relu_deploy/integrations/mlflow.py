"""MLflow: log a bundle as a model of the flavor `python_function`, and load it from a run or a registry.

The whole bundle is the model's artifact, with its reports, variants and signature. The model takes a column `input` of picture
files or texts and gives a column `row`, the lines of `relu-deploy predict -o OUT.jsonl`.

Example:
    >>> with mlflow.start_run():
    ...     info = log_bundle("digits.rdb", registered_model_name="digits")
    >>> rows = load(info.model_uri).predict(pandas.DataFrame({"input": ["seven.png"]}))
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, missing_package
from relu_deploy.integrations.scoring import score_files
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.signing.run import is_signed
from relu_deploy.storage.json_files import read_report
from relu_deploy.version import __version__

__all__ = ["BundleModel", "load", "log_bundle"]


class BundleModel:
    """The predictions of a bundle, as the model that MLflow calls. The arguments are those of `Predictor`."""

    def __init__(self, path: str | os.PathLike[str], **arguments: Any) -> None:
        self._predictor = Predictor(path, **arguments)
        _ = self._predictor.session

    def predict(self, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002
        """Return a frame with the column `row` for one with the column `input`."""
        import pandas as pd

        return pd.DataFrame({"row": score_files(self._predictor, list(model_input["input"]))})


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> BundleModel:
    """Return the model whose data is the folder `path`: MLflow calls this where it loads one."""
    return BundleModel(path, **(model_config or {}))


def log_bundle(
    path: str | os.PathLike[str],
    name: str = "model",
    *,
    backend: str = "onnxruntime-cpu",
    variant: str = "",
    registered_model_name: str | None = None,
    **options: Any,
) -> Any:
    """Log a bundle in the active run, or a new one, and return MLflow's `ModelInfo`.

    Args:
        path: The bundle.
        name: Name of the logged model.
        backend: Backend that runs it where it is loaded.
        variant: Variant that runs, "" for the model itself.
        registered_model_name: Name in the model registry, None to leave it out of the registry.
        **options: Fields of `PredictOptions`.

    Raises:
        InputError: If the bundle is not valid, or no predictions can be made with it.
        UsageError: If an option is out of range.
        BackendUnavailable: If MLflow is not installed.
    """
    predictor = Predictor(path, backend, variant, **options)
    bundle = predictor.bundle
    if not bundle.is_folder:
        raise InputError(f"{bundle.path} is a plain ONNX file, and a bundle is logged", "export it to a bundle first")
    pyfunc = _import()
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    return pyfunc.log_model(
        name=name,
        loader_module=__name__,
        data_path=str(bundle.path),
        model_config={"backend": backend, "variant": variant, **options},
        signature=ModelSignature(Schema([ColSpec("string", "input")]), Schema([ColSpec("string", "row")])),
        pip_requirements=[f"relu-deploy[cpu,mlflow]=={__version__}"],
        registered_model_name=registered_model_name,
        metadata=_facts(bundle, predictor.model_id),
    )


def load(uri: str) -> Any:
    """Return the model at an MLflow URI, for instance "models:/digits/1", as a `PyFuncModel`."""
    return _import().load_model(uri)


def _import() -> Any:
    try:
        import mlflow.pyfunc
    except ImportError as error:
        raise missing_package("mlflow-skinny", "mlflow") from error
    return mlflow.pyfunc


def _facts(bundle: Bundle, model_id: str) -> dict[str, Any]:
    """Return what MLflow shows about the model: its identity, the verdict of `verify`, and whether it is signed."""
    report = "reports/verify.json"
    verdict = read_report(bundle.file(report), "verify").get("passed") if bundle.has_file(report) else None
    return {"relu_deploy": __version__, "model_id": model_id, "verified": verdict, "signed": is_signed(bundle.path)}
