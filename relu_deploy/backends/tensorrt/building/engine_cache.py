"""A cache of engines on disk, keyed by everything that an engine depends on.

    engines/digits-int8-tensorrt-tensorrt-rtx-5f0c….engine    the serialized engine
    engines/digits-int8-tensorrt-tensorrt-rtx-5f0c….json      its metadata: graph, options, library, GPU and sha256
    engines/digits-int8-tensorrt-tensorrt-rtx-5f0c….runtime   kernels that TensorRT-RTX compiled on the GPU that ran it
    engines/tensorrt-11.4.0-3a1f….timing                      TensorRT's kernel timings, for the next build

The last part of the name is a hash of the graph and its weights, the library's version, the options and profiles, and the GPU or
compute capabilities. An engine is used only if its metadata matches the key, its sha256 is correct and, in a bundle, the manifest
lists both files. One that was built to be compatible with other versions or GPUs is also used there (`compatibility.py`). The
metadata is written last, so that an interrupted build leaves no usable entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from relu_deploy.backends.nvidia.driver import Gpu
from relu_deploy.backends.tensorrt.building.build import build_engine, check_capabilities
from relu_deploy.backends.tensorrt.building.compatibility import runs_on, runs_version
from relu_deploy.backends.tensorrt.building.progress import Progress
from relu_deploy.backends.tensorrt.options import BuildOptions, capability_name
from relu_deploy.backends.tensorrt.probe import MODULES, can_build, compiles_ahead, gpu_for
from relu_deploy.bundle import Bundle, sha256, write_atomically
from relu_deploy.errors import BackendUnavailable, InputError, UsageError
from relu_deploy.graph import precision_of, read_model
from relu_deploy.storage.bundle_files import external_locations
from relu_deploy.storage.engine_files import is_trusted, trust
from relu_deploy.storage.files import read_regular
from relu_deploy.storage.json_files import parse_json
from relu_deploy.storage.manifest import ENGINES, inside

__all__ = [
    "DEFAULT_BATCH",
    "Engine",
    "Warn",
    "engine_for",
    "find_engine",
    "folder_for",
    "graph_hash",
    "keep",
    "kept_engines",
]

SCHEMA = "relu-deploy/engine/1"
#: bytes of the largest metadata
MAX_FACTS = 64 * 2**20
#: smallest, usual and largest batch of an engine if no sizes are given
DEFAULT_BATCH = (1, 8, 32)
#: fields that are equal in two engines of which the newer replaces the older
SUBJECT = ("subject", "backend", "options", "device", "platform")

#: called with a warning of one line
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Engine:
    """A serialized engine on disk.

    Attributes:
        file: The engine.
        facts: Its metadata.
        cache_hit: Whether it existed before the call.
    """

    file: Path
    facts: Mapping[str, Any]
    cache_hit: bool

    @property
    def key(self) -> str:
        """The hash of everything that the engine depends on."""
        return str(self.facts["key"])

    @property
    def runtime_cache(self) -> Path:
        """The file for the kernels that TensorRT-RTX compiles on the GPU that runs this engine; it may not exist."""
        return self.file.with_suffix(".runtime")

    def read(self) -> bytes:
        """Return the serialized engine.

        Raises:
            InputError: If its sha256 is not that of the metadata.
        """
        plan = self.file.read_bytes()
        if hashlib.sha256(plan).hexdigest() != self.facts["sha256"]:
            raise InputError(f"{self.file} changed while it was being loaded", "load the model again")
        return plan


def engine_for(
    name: str,
    bundle: Bundle,
    requested: BuildOptions | None = None,
    *,
    device: int = 0,
    folder: Path | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
    warn: Warn = lambda line: warnings.warn(line, stacklevel=3),
) -> Engine:
    """Return the engine of `bundle` for a backend: the cached one, or one that is built now and cached.

    Args:
        name: Name of the backend.
        bundle: The model.
        requested: Build options; None for the engine that was built last for this graph, library and GPU with any options.
        device: Index of the GPU.
        folder: Folder of the cache, by default `folder_for(bundle)`.
        rebuild: Build even if an engine is cached.
        progress: Called as the build proceeds.
        warn: Called if a cached engine cannot be used, or another process is building the same one.

    Raises:
        InputError: If the folder cannot be written to. The errors of `build_engine` are passed on.
    """
    folder = folder or folder_for(bundle)
    options = _with_sizes(bundle, requested or BuildOptions())
    identity = _identity(name, bundle, options, device)
    kept = None if rebuild else _kept(bundle, requested, identity, device, folder)
    if kept is not None:
        return kept
    file = _file(folder, bundle, identity)
    with _one_at_a_time(file, warn):
        entry = None if rebuild else _entry(file, identity)
        if isinstance(entry, Engine):
            return entry
        why = entry or (None if rebuild else _outdated(folder, identity))
        if why:
            warn(f"{why}: building a new one")
        return _build(name, bundle, options, identity, file, progress, device)


def find_engine(
    name: str, bundle: Bundle, requested: BuildOptions | None = None, *, device: int = 0, folder: Path | None = None
) -> Engine | None:
    """Return the cached engine that `engine_for` would return, None if it would build one.

    Args and errors are those of `engine_for`.
    """
    folder = folder or folder_for(bundle)
    identity = _identity(name, bundle, _with_sizes(bundle, requested or BuildOptions()), device)
    return _kept(bundle, requested, identity, device, folder)


def _kept(
    bundle: Bundle, requested: BuildOptions | None, identity: Mapping[str, Any], device: int, folder: Path
) -> Engine | None:
    if requested is None:
        return _latest(folder, identity, device)
    entry = _entry(_file(folder, bundle, identity), identity)
    if isinstance(entry, Engine):
        return entry
    if requested.version_compatible or requested.hardware_compatible:
        # One with these options that was built with another version or on another GPU may run here too.
        return _latest(folder, identity, device, identity["options"])
    return None


def keep(engine: Engine, folder: Path, warn: Warn = lambda _: None) -> Engine:
    """Copy `engine` to `folder`, where it replaces one with the same key.

    Args:
        engine: The engine.
        folder: Folder of the cache.
        warn: Called if another process is building the same engine.
    """
    file = folder / engine.file.name
    plan = engine.read()
    with _one_at_a_time(file, warn):
        _put(file, plan, engine.facts)
    return Engine(file, engine.facts, cache_hit=False)


def kept_engines(bundle: Bundle, name: str) -> list[Engine]:
    """Return the undamaged engines of the graph of `bundle` for backend `name`, for any GPU; the newest first.

    Neither the library nor a GPU is needed, so the engines may not run on this machine.
    """
    graph = graph_hash(bundle.onnx)
    folders = {folder_for(bundle), bundle.path / ENGINES} if bundle.is_folder else {folder_for(bundle)}
    notes = [(facts, note) for folder in folders for note in folder.glob("*.json") if (facts := _facts(note)) is not None]
    fitting = [
        (facts, note)
        for facts, note in notes
        if facts.get("graph") == graph and facts.get("backend") == name and not facts.get("options", {}).get("observable")
    ]
    latest = sorted(fitting, key=lambda each: str(each[0].get("built")), reverse=True)
    found = (_entry(note.with_suffix(".engine"), {}) for _, note in latest)
    return [entry for entry in found if isinstance(entry, Engine)]


def folder_for(bundle: Bundle) -> Path:
    """Return the folder for the engines of `bundle`: in the bundle, or in the user's cache for an ONNX file or a read-only bundle.

    The environment variable RELU_DEPLOY_CACHE sets the location of the cache.
    """
    if bundle.is_folder and os.access(bundle.path, os.W_OK):
        return inside(bundle.path, ENGINES)
    named = os.environ.get("RELU_DEPLOY_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "relu_deploy") / ENGINES


def _with_sizes(bundle: Bundle, requested: BuildOptions) -> BuildOptions:
    """Return `requested` with the default profile if the batch varies and no sizes were given."""
    varies = [spec for spec in bundle.inputs if any(isinstance(size, str) for size in spec.shape)]
    if not varies and requested.profiles:
        sizes = ", ".join(map(str, bundle.inputs))
        raise UsageError(
            f"{bundle.title} has inputs of one size only ({sizes})", "omit the sizes, or export it with --batch dynamic"
        )
    if not varies or requested.profiles:
        return requested
    beyond = [spec for spec in varies if any(isinstance(size, str) for size in spec.shape[1:])]
    if beyond:
        raise UsageError(
            f"input {beyond[0]} of {bundle.title} varies in more than its batch, and no sizes were given for it",
            f"for instance --profile {beyond[0].name}=1x3x224x224,8x3x224x224,32x3x512x512",
        )
    return replace(requested, profiles=(DEFAULT_BATCH,))


def _identity(name: str, bundle: Bundle, requested: BuildOptions, device: int) -> dict[str, Any]:
    """Return everything that an engine depends on. Raises BackendUnavailable if engines cannot be built here."""
    found = can_build(name, device)
    if not found.usable:
        raise BackendUnavailable(f"{name} cannot build engines here: {found.reason}", found.fix)
    trt = import_module(MODULES[name])
    requested.check()
    capabilities = check_capabilities(trt, name, requested.compute_capabilities)
    made_for = " ".join(sorted(capabilities)) or "default"
    if not compiles_ahead(trt):
        made_for = str(gpu_for(trt, device))
    model = read_model(bundle.onnx)
    return {
        "schema": SCHEMA,
        "subject": bundle.title if bundle.is_folder else str(bundle.path.resolve()),
        "graph": graph_hash(bundle.onnx),
        "precision": precision_of(model),
        "backend": name,
        "library": found.version,
        "options": requested.to_json(),
        "device": made_for,
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def graph_hash(file: Path) -> str:
    """Return a hash of an ONNX file and its external weights."""
    parts = [sha256(file), *(sha256(file.parent / location) for location in external_locations(file))]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _key(identity: Mapping[str, Any]) -> str:
    # The location of the graph does not affect the engine.
    subject_free = {name: value for name, value in identity.items() if name != "subject"}
    return hashlib.sha256(json.dumps(subject_free, sort_keys=True).encode()).hexdigest()[:16]


def _file(folder: Path, bundle: Bundle, identity: Mapping[str, Any]) -> Path:
    name = "-".join(part for part in (bundle.name, bundle.variant, identity["backend"], _key(identity)) if part)
    return folder / f"{name}.engine"


def _note(file: Path) -> Path:
    return file.with_suffix(".json")


def _facts(note: Path) -> dict[str, Any] | None:
    """Return the metadata in the file `note`, None if there is none or it is invalid."""
    try:
        facts = parse_json(read_regular(note, MAX_FACTS))
    except (InputError, ValueError):
        return None
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA or not isinstance(facts.get("options", {}), dict):
        return None
    return facts


def _entry(file: Path, identity: Mapping[str, Any]) -> Engine | str | None:
    """Return the engine in `file`, the reason why it cannot be used, or None if there is none."""
    if not file.exists():
        return f"{file} is missing, but its metadata exists" if _note(file).exists() else None
    facts = _facts(_note(file))
    if facts is None:
        return f"{file} has no metadata, as after an interrupted build"
    if any(facts.get(name) != value for name, value in identity.items() if name != "subject"):
        return f"{file} was built from another graph or with other options than its name says"
    try:
        if file.stat().st_size != facts["bytes"] or sha256(file) != facts["sha256"]:
            return f"{file} is truncated or changed: its sha256 is not that of its metadata"
    except (OSError, KeyError) as error:
        return f"{file} cannot be used ({type(error).__name__}: {error})"
    if not (is_trusted(file) and is_trusted(_note(file))):
        return f"{file} is not listed in the manifest of its bundle"
    return Engine(file, facts, cache_hit=True)


def _latest(folder: Path, identity: Mapping[str, Any], device: int, options: Mapping[str, Any] | None = None) -> Engine | None:
    """Return the engine that was built last for this graph and backend and that runs here.

    Observable engines are excluded: they are for audits, not for deployment.

    Args:
        folder: Folder of the cache.
        identity: What an engine that is built now would depend on.
        device: Index of the GPU.
        options: Build options, None for any.
    """
    same = ("graph", "backend", "platform")
    notes = [(facts, note) for note in folder.glob("*.json") if (facts := _facts(note)) is not None]
    fitting = [
        (str(facts["built"]), note.with_suffix(".engine"), facts)
        for facts, note in notes
        if all(facts.get(name) == identity[name] for name in same)
        and not facts.get("options", {}).get("observable")
        and options in (None, facts.get("options"))
        and runs_version(facts, str(identity["library"]))
        and _runs_here(facts, identity, device)
    ]
    for _, file, facts in sorted(fitting, key=lambda each: each[0], reverse=True):
        entry = _entry(file, {name: facts[name] for name in identity})
        if isinstance(entry, Engine):
            return entry
    return None


def _runs_here(facts: Mapping[str, Any], identity: Mapping[str, Any], device: int) -> bool:
    if facts.get("device") == identity["device"]:
        return True
    trt = import_module(MODULES[identity["backend"]])
    gpu = gpu_for(trt, device)
    if not isinstance(gpu, Gpu):
        return False
    if not compiles_ahead(trt):
        return runs_on(facts, gpu)
    return capability_name("{}{}".format(*gpu.capability)) in str(facts.get("device")).split()


def _outdated(folder: Path, identity: Mapping[str, Any]) -> str | None:
    """Return why an earlier engine of the same model and options is outdated, None if there is none."""
    for note in sorted(folder.glob("*.json")):
        facts = _facts(note)
        if facts is None or any(facts.get(name) != identity[name] for name in SUBJECT):
            continue
        if facts.get("graph") != identity["graph"]:
            return f"{note.with_suffix('.engine')} was built from another graph of {identity['subject']}"
        if facts.get("library") != identity["library"]:
            return f"{note.with_suffix('.engine')} was built by {identity['backend']} {facts.get('library')}, and this is {identity['library']}"
    return None


@contextmanager
def _one_at_a_time(file: Path, warn: Warn) -> Iterator[None]:
    """Hold the lock file of this engine, which the system releases if the process dies."""
    from filelock import FileLock, Timeout

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.parent / f".{file.stem}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            warn("another process is building the same engine: waiting for it")
            lock.acquire()
    except OSError as error:
        raise InputError(
            f"cannot write to {file.parent}: {error.strerror}", "choose another folder with -o, or set RELU_DEPLOY_CACHE"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(
    name: str,
    bundle: Bundle,
    requested: BuildOptions,
    identity: Mapping[str, Any],
    file: Path,
    progress: Progress | None,
    device: int,
) -> Engine:
    # Under the lock no other process writes temporary files: those that exist are of interrupted builds.
    for leftover in (*file.parent.glob(f".{file.name}.*"), *file.parent.glob(f".{_note(file).name}.*")):
        leftover.unlink(missing_ok=True)
    timing = file.parent / f"{name}-{identity['library']}-{hashlib.sha256(identity['device'].encode()).hexdigest()[:8]}.timing"
    built = build_engine(
        name,
        bundle.onnx,
        requested,
        timing_cache=timing.read_bytes() if timing.exists() and is_trusted(timing) else b"",
        progress=progress,
        device=device,
    )
    if built.timing_cache:
        write_atomically(timing, built.timing_cache, follow=False)
        trust([timing])
    facts = {
        **identity,
        "key": _key(identity),
        **built.to_json(),
        "sha256": hashlib.sha256(built.plan).hexdigest(),
        "built": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    _put(file, built.plan, facts)
    if bundle.is_folder:
        _clear(file.parent, identity)
    return Engine(file, facts, cache_hit=False)


def _put(file: Path, plan: bytes, facts: Mapping[str, Any]) -> None:
    """Write an engine and then its metadata. The caller holds the lock."""
    # The old engine is replaced only now, so that a failed build leaves it unchanged.
    for old in (_note(file), file.with_suffix(".runtime")):
        old.unlink(missing_ok=True)
    write_atomically(file, plan, follow=False)
    write_atomically(_note(file), json.dumps(facts, indent=2, ensure_ascii=False) + "\n", follow=False)
    trust([file, _note(file)])


def _clear(folder: Path, identity: Mapping[str, Any]) -> None:
    """Remove the engines of earlier versions of this bundle's graph, which can no longer be used."""
    for note in folder.glob("*.json"):
        facts = _facts(note)
        if facts and all(facts.get(name) == identity[name] for name in SUBJECT) and facts.get("graph") != identity["graph"]:
            for each in (note, note.with_suffix(".engine"), note.with_suffix(".runtime")):
                each.unlink(missing_ok=True)
