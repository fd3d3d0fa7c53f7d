"""The verb `compile`: builds an engine ahead of time or takes it from the cache, and copies it to the output."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.backends import capabilities, names
from relu_deploy.backends.tensorrt.building.engine_cache import Engine, Warn, engine_for, find_engine
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.bundle import MANIFEST, Bundle, create_bundle, seal
from relu_deploy.compilation.build_variance import BuildVariance, best_of
from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.storage.targets import refuse_bundle_file, write_result

__all__ = ["CompileReport", "compile"]


@dataclass(frozen=True)
class CompileReport:
    """The result of `compile`.

    Attributes:
        engine: Path of the engine.
        kept: The engine in the cache.
        seconds: Duration of the call.
        build_variance: Results of all builds if there were several.
    """

    engine: Path
    kept: Engine
    seconds: float
    build_variance: BuildVariance | None = None

    @property
    def cache_hit(self) -> bool:
        """Whether the engine was cached."""
        return self.kept.cache_hit

    def to_json(self) -> dict[str, Any]:
        """Return what `compile --json` writes."""
        facts: Mapping[str, Any] = self.kept.facts
        return {
            "engine": str(self.engine),
            "backend": facts["backend"],
            "cache_hit": self.cache_hit,
            "seconds": round(self.seconds, 3),
            "bytes": facts["bytes"],
            "kept": str(self.kept.file),
            "key": facts["key"],
            "precision": facts["precision"],
            "library": facts["library"],
            "device": facts["device"],
            "profiles": facts["profiles"],
            "options": facts["options"],
            "layers": facts["layers"],
            "build_seconds": facts["seconds"],
            "built": facts["built"],
            "warnings": facts["warnings"],
            "spread": self.build_variance.to_json() if self.build_variance else None,
        }


def compile(  # noqa: A001  # named for the verb
    model: Bundle | str | os.PathLike[str],
    backend: str,
    *,
    variant: str = "",
    out: str | os.PathLike[str] | None = None,
    options: BuildOptions | None = None,
    device: int = 0,
    repeat: int = 1,
    rebuild: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    warn: Warn = lambda _: None,
) -> CompileReport:
    """Compile a model to an engine, or take it from the cache.

    Args:
        model: A bundle, or the path of one, of a variant in one, or of an ONNX file.
        backend: Name of the backend.
        variant: Name of the variant to compile, "" for the model itself.
        out: Where to put the engine: a file; a folder (an existing one, or a name that ends with a slash), which is then used as
            the cache; or a bundle (`.rdb`), a copy of `model` with the engine in it. By default it stays in the cache.
        options: Build options.
        device: Index of the GPU.
        repeat: Number of builds; with 2 or more all are run, and the best one that verifies is kept.
        rebuild: Build even if an engine is cached.
        force: Replace a file at `out` that is another engine, or a bundle of another model.
        progress: See `engine_for`.
        warn: See `engine_for`.

    Raises:
        InputError: If `out` exists and is not this engine.
        UsageError: If the backend does not compile ahead of time. The errors of `engine_for` are passed on.
    """
    started = time.perf_counter()
    _require_compiler(backend)
    bundle = Bundle.open(model)
    bundle = bundle.with_variant(variant) if variant else bundle
    options = options or BuildOptions()
    target, folder = None if out is None else Path(out), None
    if target is not None and _is_bundle(target):
        bundle = _copied(bundle, target, force)
    elif target is not None and (target.is_dir() or str(out).endswith(("/", os.sep))):
        folder = target
    elif target is not None:
        refuse_bundle_file(target)
        if target.is_file() and not force:
            kept = None if rebuild or repeat > 1 else find_engine(backend, bundle, options, device=device)
            if kept is None or not _holds(target, kept):
                raise InputError(f"{target} already exists", "choose another name, or replace it with --force")
    build_variance = None
    if repeat > 1:
        engine, build_variance = best_of(
            backend, bundle, options, repeat, device=device, folder=folder, progress=progress, warn=warn
        )
    else:
        engine = engine_for(backend, bundle, options, device=device, folder=folder, rebuild=rebuild, progress=progress, warn=warn)
    placed = engine.file
    if target is not None and folder is None and not _is_bundle(target):
        placed = target
        if not _holds(target, engine):
            write_result(target, engine.read())
    return CompileReport(placed, engine, time.perf_counter() - started, build_variance)


def _require_compiler(backend: str) -> None:
    compilers = [name for name in names() if capabilities(name).compiles_ahead]
    if backend in compilers:
        return
    if backend not in names():
        raise UsageError(f"there is no backend called {backend!r}", nearest(backend, compilers))
    raise UsageError(f"{backend} compiles nothing ahead of time", f"engines are built for {' and '.join(compilers)}")


def _is_bundle(target: Path) -> bool:
    return target.suffix == ".rdb" or (target / MANIFEST).is_file()


def _holds(target: Path, engine: Engine) -> bool:
    """Return whether `target` is an ordinary file with this engine."""
    return target.is_file() and target.read_bytes() == engine.read()


def _copied(bundle: Bundle, target: Path, force: bool) -> Bundle:
    """Copy `bundle` to `target`, or return the bundle at `target` if it has the same graph."""
    if not bundle.is_folder:
        raise UsageError(
            f"{bundle.path} is a plain ONNX file, not a bundle", "name the engine's file with -o, or export it first"
        )
    if target.resolve() == bundle.path.resolve():
        return bundle
    if target.exists() and not force:
        there = Bundle.open(target)
        if there.manifest["files"] != bundle.manifest["files"]:
            raise InputError(f"{target} already exists and is another model", "choose another name, or replace it with --force")
        return Bundle(there.path, there.manifest, bundle.variant)
    with create_bundle(target, force=force) as folder:
        seal(folder, bundle.copy_files(folder))
    return Bundle(target, Bundle.open(target).manifest, bundle.variant)
