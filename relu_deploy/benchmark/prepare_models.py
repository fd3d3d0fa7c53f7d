"""What `bench` runs when it is given names instead of bundles: each model is exported and verified first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relu_deploy.backends import usable
from relu_deploy.errors import InputError
from relu_deploy.exporting.exporter import export_source
from relu_deploy.folders import temporary_folder
from relu_deploy.verification.run import verify
from relu_deploy.zoo.recipes import recipes

__all__ = ["bundles_for"]


@contextmanager
def bundles_for(paths: Sequence[str], progress: Callable[[str], None]) -> Iterator[list[Path]]:
    """Yield a bundle for each of `paths`; with no path, for every zoo model that has weights.

    Zoo names are exported into a temporary folder and every Relu is verified on ONNX Runtime before anything is timed.
    Raises InputError when a shipped model does not verify.
    """
    trained = sorted((known for known in recipes().values() if known.weights), key=lambda known: known.parameters)
    names = list(paths) or [known.name for known in trained]
    with temporary_folder("bench") as workshop:
        bundles = []
        for name in names:
            if Path(name).exists() or name not in recipes():
                bundles.append(Path(name))
                continue
            progress(f"{name}: exporting")
            bundle = export_source(name, Path(workshop) / f"{name}.rdb").bundle
            for backend in usable(["onnxruntime-cpu"]):
                progress(f"{name}: verifying every Relu on {backend}")
                report = verify(bundle, [backend])
                if not report.passed:
                    raise InputError(
                        f"{name} differs from PyTorch on {backend}, first at {report.first_divergence}",
                        f"see it with: relu-deploy export {name} -o {name}.rdb && relu-deploy verify {name}.rdb",
                    )
            bundles.append(bundle.path)
        yield bundles
