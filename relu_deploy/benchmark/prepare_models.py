"""Exports, verifies and quantizes the zoo models that `bench` is given by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relu_deploy.backends import usable
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError
from relu_deploy.exporting.exporter import export_source
from relu_deploy.folders import temporary_folder
from relu_deploy.optimization.run import optimize
from relu_deploy.verification.run import verify
from relu_deploy.zoo.recipes import ModelRecipe, recipes

__all__ = ["QUICK", "bundles_for"]

#: the model of `bench --quick`
QUICK = "digits"
#: backend that zoo models are verified and calibrated on
BACKEND = "onnxruntime-cpu"


@contextmanager
def bundles_for(paths: Sequence[str], progress: Callable[[str], None]) -> Iterator[list[Path]]:
    """Yield a bundle for each of `paths`; with no path, for every zoo model that has weights.

    Zoo names are exported into a temporary folder and every Relu is verified on ONNX Runtime before anything is timed. Models
    with a data set of their own get an int8 variant for CPUs.

    Raises:
        InputError: If a shipped model does not verify.
    """
    trained = sorted((known for known in recipes().values() if known.weights), key=lambda known: known.parameters)
    names = list(paths) or [known.name for known in trained]
    with temporary_folder("bench") as folder:
        yield [
            Path(name)
            if Path(name).exists() or name not in recipes()
            else _prepared(recipes()[name], Path(folder) / f"{name}.rdb", progress).path
            for name in names
        ]


def _prepared(recipe: ModelRecipe, path: Path, progress: Callable[[str], None]) -> Bundle:
    name = recipe.name
    progress(f"{name}: exporting")
    bundle = export_source(name, path).bundle
    if not usable([BACKEND]):
        return bundle
    progress(f"{name}: verifying every Relu on {BACKEND}")
    report = verify(bundle, [BACKEND])
    if not report.passed:
        raise InputError(
            f"{name} differs from PyTorch on {BACKEND}, first at {report.first_divergence}",
            f"see it with: relu-deploy export {name} -o {name}.rdb && relu-deploy verify {name}.rdb",
        )
    return _quantized(bundle, recipe, progress) if recipe.dataset and recipe.weights else bundle


def _quantized(bundle: Bundle, recipe: ModelRecipe, progress: Callable[[str], None]) -> Bundle:
    """Add an int8 variant for CPUs to `bundle`; if it loses too much accuracy, report it and return `bundle` unchanged."""
    progress(f"{recipe.name}: quantizing to int8")
    try:
        return optimize(bundle, "cpu", "int8", calibration=recipe.dataset)
    except ReluDeployError as error:
        progress(f"{recipe.name}: no int8 variant: {error.message}")
        return bundle
