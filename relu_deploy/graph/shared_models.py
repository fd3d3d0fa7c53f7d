"""Models that were read from files and are shared: each file is parsed once while its model is in use, and serialized once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from relu_deploy.graph.loading.resources import memory_limit

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["SharedModel", "shared_by", "shared_model"]

#: bytes of a file whose model is kept although nobody uses it
KEPT_BYTES = 2**25
#: key of `meta` for the `SharedModel` that a model is, or is a copy of
_KEY = "shared"


@dataclass(eq=False)
class SharedModel:
    """A model as it was loaded, which is copied and never changed.

    Attributes:
        model: The model.
        is_external: Whether its weights are in other files, which may change while its own does not.
        light: The model serialized without its large weights, None until it is needed.
        relus: Its Relus, None until they are needed.
    """

    model: ir.Model
    is_external: bool
    light: onnx.ModelProto | None = None
    relus: tuple[Any, ...] | None = None


#: the models that are in use, by the path, identity, time and size of their files and the memory limit
_loaded: WeakValueDictionary[tuple[str, int, int, int, int], SharedModel] = WeakValueDictionary()
#: the last model of at most `KEPT_BYTES`, which is in use from one step of a command to the next
_last: list[SharedModel] = []


def shared_model(path: Path, load: Callable[[Path], tuple[ir.Model, bool]]) -> SharedModel:
    """Return the model in the file `path`.

    Args:
        path: The file.
        load: Returns its model, and whether its weights are in other files. Called unless the model is in use, or is the last one
            and small.
    """
    key = _file_key(path)
    shared = _loaded.get(key) if key is not None else None
    if shared is None:
        shared = SharedModel(*load(path))
        # As long as the model or a copy is in use, the file need not be parsed again.
        shared.model.meta[_KEY] = shared
        if key is not None and not shared.is_external:
            _loaded[key] = shared
            if path.stat().st_size <= KEPT_BYTES:
                _last[:] = [shared]
    return shared


def shared_by(model: ir.Model) -> SharedModel | None:
    """Return the shared model that `model` is; None for a copy, which may have been changed, or another model."""
    shared: SharedModel | None = model.meta.get(_KEY)
    return shared if shared is not None and shared.model is model else None


def _file_key(path: Path) -> tuple[str, int, int, int, int] | None:
    try:
        status = path.stat()
        return str(path.resolve()), status.st_ino, status.st_mtime_ns, status.st_size, memory_limit()
    except (OSError, ValueError):
        return None
