"""The options of a TensorRT engine: its optimization profiles, the GPUs it is for, and how it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.errors import UsageError

__all__ = ["Batch", "BuildOptions", "Shapes", "shapes_of"]

Shape = Sequence[int]
#: (min, opt, max) of every leading dimension that varies, or for each input that varies its (min, opt, max) shapes
Batch = tuple[int, int, int] | Mapping[str, tuple[Shape, Shape, Shape]]
#: per input that varies its (min, opt, max) shapes: one optimization profile, worked out
Shapes = dict[str, tuple[tuple[int, ...], ...]]

#: how far an engine of TensorRT may travel, by the name of its HardwareCompatibilityLevel
HARDWARE = {"": "NONE", "ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class BuildOptions:
    """All that a build depends on besides the graph, the library and the GPU. Two builds with equal options make the same engine.

    profiles: one `Batch` for each optimization profile; needed when an input varies. compute_capabilities: such as SM86
    or 8.6, for TensorRT-RTX only; none takes its default set, which leaves out Turing. optimization_level: 0 to 5, the
    library's own default is 3. hardware_compatible: a key of `HARDWARE`, for TensorRT only. version_compatible: runs on
    later minor versions too. weight_streaming: weights may stay in host memory. refit: weights can be replaced later.
    observable: a listener sees every tensor that the engine writes, without one fusion less; for the audit of an engine.
    """

    profiles: tuple[Batch, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: str = ""
    weight_streaming: bool = False
    refit: bool = False
    observable: bool = False

    def check(self) -> None:
        """Raise UsageError for what no library offers."""
        if self.optimization_level is not None and self.optimization_level not in range(6):
            raise UsageError(f"there is no optimization level {self.optimization_level}", "levels go from 0 to 5")
        if self.hardware_compatible not in HARDWARE:
            known = " or ".join(name for name in HARDWARE if name)
            raise UsageError(f"there is no hardware compatibility {self.hardware_compatible!r}", f"it is {known}")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BuildOptions:
        """Return the options that `to_json` wrote."""
        profiles = tuple(
            {name: tuple(map(tuple, shapes)) for name, shapes in each.items()} if isinstance(each, Mapping) else tuple(each)
            for each in fields["profiles"]
        )
        return cls(**{**fields, "profiles": profiles, "compute_capabilities": tuple(fields["compute_capabilities"])})

    def to_json(self) -> dict[str, Any]:
        return {
            "profiles": [_plain(profile) for profile in self.profiles],
            "compute_capabilities": sorted(spelt(each) for each in self.compute_capabilities),
            "optimization_level": self.optimization_level,
            "workspace_bytes": self.workspace_bytes,
            "tf32": self.tf32,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "weight_streaming": self.weight_streaming,
            "refit": self.refit,
            "observable": self.observable,
        }


def spelt(capability: str) -> str:
    """Return a compute capability as the library spells it: SM86 for 8.6, sm_86 and 86 alike."""
    return "SM" + capability.upper().removeprefix("SM").replace(".", "").replace("_", "")


def shapes_of(name: str, shape: tuple[int, ...], batch: Batch | None) -> tuple[tuple[int, ...], ...]:
    """Return the (min, opt, max) shapes of one input in one profile. shape: as the parser has it, -1 where it varies.

    Raises UsageError when there are none or they do not fit.
    """
    what = f"input {name!r} of shape {'x'.join('?' if size < 0 else str(size) for size in shape)}"
    if batch is None or (isinstance(batch, Mapping) and name not in batch):
        raise UsageError(f"{what} varies, and no sizes were given for it", "give batch=(min, opt, max)")
    if isinstance(batch, Mapping):
        shapes = tuple(tuple(given) for given in batch[name])
    elif -1 in shape[1:]:
        raise UsageError(f"{what} varies in more than its batch", f"give batch={{{name!r}: (min shape, opt shape, max shape)}}")
    else:
        shapes = tuple((size, *shape[1:]) for size in batch)
    fits = len(shapes) == 3 and all(
        len(given) == len(shape) and all(fixed in (-1, size) for size, fixed in zip(given, shape, strict=True))
        for given in shapes
    )
    if not fits or not all(1 <= low <= usual <= high for low, usual, high in zip(*shapes, strict=True)):
        raise UsageError(f"{what} cannot be built for {shapes}", "give (min, opt, max), positive and none below the last")
    return shapes


def _plain(batch: Batch) -> Any:
    if isinstance(batch, Mapping):
        return {name: [list(shape) for shape in shapes] for name, shapes in batch.items()}
    return list(batch)
