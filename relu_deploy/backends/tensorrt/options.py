"""Build options of a TensorRT engine and its optimization profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.errors import UsageError

__all__ = ["Batch", "BuildOptions", "Shapes", "shapes_of"]

Shape = Sequence[int]
#: (min, opt, max) of the batch of every input that varies, or (min, opt, max) shapes by name of each input that varies
Batch = tuple[int, int, int] | Mapping[str, tuple[Shape, Shape, Shape]]
#: an optimization profile: (min, opt, max) shapes by name of each input that varies
Shapes = dict[str, tuple[tuple[int, ...], ...]]

#: option value → name of TensorRT's HardwareCompatibilityLevel
HARDWARE = {"": "NONE", "ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build. With the graph, the library and the GPU they determine the cache key of an engine.

    Attributes:
        profiles: One `Batch` for each optimization profile; required if an input varies.
        compute_capabilities: Target GPUs, such as SM86 or 8.6, for TensorRT-RTX only; empty for its default set, which does not
            include Turing.
        optimization_level: 0 to 5, None for the library's default of 3.
        workspace_bytes: Limit of the builder's workspace, None for the library's default.
        tf32: Allow TF32 in float32 matrix products.
        version_compatible: The engine also runs on later minor versions of the library.
        hardware_compatible: A key of `HARDWARE`, for TensorRT only.
        weight_streaming: Weights may stay in host memory.
        refit: Weights can be replaced later.
        observable: A debug listener receives every tensor that the engine writes, without preventing any fusion; used to audit
            an engine.
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
        """Check the options that do not depend on the library.

        Raises:
            UsageError: If an option has an unknown value.
        """
        if self.optimization_level is not None and self.optimization_level not in range(6):
            raise UsageError(f"there is no optimization level {self.optimization_level}", "levels go from 0 to 5")
        if self.hardware_compatible not in HARDWARE:
            known = " or ".join(name for name in HARDWARE if name)
            raise UsageError(f"there is no hardware compatibility {self.hardware_compatible!r}", f"it is {known}")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BuildOptions:
        """Return the options from the result of `to_json`."""
        profiles = tuple(
            {name: tuple(map(tuple, shapes)) for name, shapes in each.items()} if isinstance(each, Mapping) else tuple(each)
            for each in fields["profiles"]
        )
        return cls(**{**fields, "profiles": profiles, "compute_capabilities": tuple(fields["compute_capabilities"])})

    def to_json(self) -> dict[str, Any]:
        return {
            "profiles": [_plain(profile) for profile in self.profiles],
            "compute_capabilities": sorted(capability_name(each) for each in self.compute_capabilities),
            "optimization_level": self.optimization_level,
            "workspace_bytes": self.workspace_bytes,
            "tf32": self.tf32,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "weight_streaming": self.weight_streaming,
            "refit": self.refit,
            "observable": self.observable,
        }


def capability_name(capability: str) -> str:
    """Return a compute capability in the library's spelling: SM86 for 8.6, sm_86 or 86."""
    return "SM" + capability.upper().removeprefix("SM").replace(".", "").replace("_", "")


def shapes_of(name: str, shape: tuple[int, ...], batch: Batch | None) -> tuple[tuple[int, ...], ...]:
    """Return the (min, opt, max) shapes of one input in one profile.

    Args:
        name: Name of the input.
        shape: Its shape in the network, -1 where it varies.
        batch: The sizes, None if none were given.

    Raises:
        UsageError: If there are no sizes for the input or they do not fit its shape.
    """
    subject = f"input {name!r} of shape {'x'.join('?' if size < 0 else str(size) for size in shape)}"
    if batch is None or (isinstance(batch, Mapping) and name not in batch):
        raise UsageError(f"{subject} varies, and no sizes were given for it", "give batch=(min, opt, max)")
    if isinstance(batch, Mapping):
        shapes = tuple(tuple(given) for given in batch[name])
    elif -1 in shape[1:]:
        raise UsageError(
            f"{subject} varies in more than its batch", f"give batch={{{name!r}: (min shape, opt shape, max shape)}}"
        )
    else:
        shapes = tuple((size, *shape[1:]) for size in batch)
    fits = len(shapes) == 3 and all(
        len(given) == len(shape) and all(fixed in (-1, size) for size, fixed in zip(given, shape, strict=True))
        for given in shapes
    )
    if not fits or not all(1 <= low <= usual <= high for low, usual, high in zip(*shapes, strict=True)):
        raise UsageError(f"{subject} cannot be built for {shapes}", "give (min, opt, max), positive and none below the last")
    return shapes


def _plain(batch: Batch) -> Any:
    if isinstance(batch, Mapping):
        return {name: [list(shape) for shape in shapes] for name, shapes in batch.items()}
    return list(batch)
