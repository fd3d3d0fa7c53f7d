"""Watches the ReLUs of a network during training, warns about dead channels and names likely causes.

    with relu_deploy.watch(model) as watched:
        for images, labels in batches: ...            # an ordinary training loop
    watched.dead()                                     # {"features.1": 12}

A ReLU passes no gradient where its input is negative, so a channel that is negative on all data is not updated: it is dead.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relu_deploy.records import JsonRecord

__all__ = ["DyingReluWarning", "UnobservedReluWarning", "Watch", "WatchedRelu", "watch"]

RELUS = (nn.ReLU, nn.ReLU6)
FEEDERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)

#: an input whose root mean square is above this is not normalized: initializations assume about 1
LARGE_INPUT = 10.0
#: a change of the weights above this factor of their initial norm indicates too high a learning rate
JUMP = 2.0
#: initial weights that differ from He's scale by more than this factor do not preserve the scale of activations
UNUSUAL_SCALE = 4.0
#: number of initial weights of a layer that are stored to measure how far they move
SAMPLE = 1 << 16
COMPILE_INSIDE = "call torch.compile inside the block, or watch the module before its first run"
ADVICE = "the usual causes are a learning rate too high, large negative biases, no normalization, unnormalized input and initialization"


class DyingReluWarning(UserWarning):
    """A share of a ReLU's channels has not fired for many training batches in a row."""


class UnobservedReluWarning(UserWarning):
    """The watched module is trained, but the forward passes of its ReLUs are not visible to hooks."""


@dataclass(frozen=True)
class WatchedRelu(JsonRecord):
    """One ReLU module.

    Attributes:
        scope: Its path.
        dead: Channels that have not fired for `patience` batches or more.
        batches: Training batches so far.
        causes: The usual causes that were detected, the likeliest first.
    """

    scope: str
    channels: int
    dead: int
    batches: int
    causes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the channels that are dead."""
        return self.dead / self.channels if self.channels else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields and `share`."""
        return super().to_json() | {"share": self.share}


@contextmanager
def watch(module: nn.Module, *, warn: bool = True, patience: int = 50, share: float = 0.1) -> Iterator[Watch]:
    """Yield a `Watch` over every nn.ReLU and nn.ReLU6 of `module` while the block trains it.

    A channel (axis 1 of the ReLU's output) that is above 0 nowhere in `patience` training batches in a row counts as dead.
    Batches in eval mode are not counted, nor is a forward pass that activation checkpointing repeats during the backward pass.
    A module that is called several times in one forward pass has the channels of each call, counted apart. In-place ReLUs and
    any device are supported; no gradient is kept, and the hooks are removed when the block ends, also by an exception.

    `torch.relu`, `functional.relu` and `Tensor.relu` are not modules and are invisible to hooks. A module that torch.compile has
    compiled before the block does not call hooks either: then an `UnobservedReluWarning` is issued at its first backward pass, and at the
    end of the block where only a part was compiled. What torch.func runs (vmap, grad) is not counted.

    Args:
        module: The network.
        warn: Issue a `DyingReluWarning`, once for each ReLU, when at least `share` of its channels is dead.
        patience: Training batches.
        share: Of the channels, in (0, 1].

    Raises:
        ValueError: If `patience` is below 1, `share` is not in (0, 1], or there is no ReLU module.
    """
    if patience < 1 or not 0 < share <= 1:
        raise ValueError(f"patience must be at least 1 and share in (0, 1], not {patience} and {share}")
    watched = Watch(module, warn, patience, share)
    if not watched.scopes:
        raise ValueError("there is no nn.ReLU or nn.ReLU6 module to watch; functional relus are invisible to hooks")
    try:
        watched.start()
        yield watched
        watched.warn_all()
    finally:
        watched.stop()


@dataclass
class _Record:
    """The state of one ReLU module.

    Attributes:
        feeder: Path and layer that it follows, as far as visible.
        normalized: A normalization is between the two.
        calls: One for each call within a forward pass.
        position: The next call.
        is_compiled: It is inside a part that torch.compile had compiled before it was watched.
    """

    scope: str
    is_compiled: bool = False
    feeder: tuple[str, nn.Module] | None = None
    normalized: bool = False
    calls: list[_Call] = field(default_factory=list)
    position: int = 0
    warned: bool = False

    @property
    def batches(self) -> int:
        return max((call.batches for call in self.calls), default=0)


@dataclass
class _Call:
    """Of one call: training batches so far, and for each channel the one in which it last fired (both from 1)."""

    last_fired: Tensor
    batches: int = 0

    def add(self, fires: Tensor) -> None:
        self.batches += 1
        self.last_fired = self.last_fired.to(fires.device)
        self.last_fired.masked_fill_(fires, self.batches)


class Watch:
    """The ReLUs of one module, watched between `start` and `stop`; `watch` calls both."""

    def __init__(self, module: nn.Module, warn: bool, patience: int, share: float) -> None:
        self._module, self._warn, self._patience, self._share = module, warn, patience, share
        modules = dict(module.named_modules())
        compiled = [f"{path}." for path, one in modules.items() if path and _is_compiled(one)]
        self._records = {
            id(one): _Record(_shown(path) or "(the module)", is_compiled=path.startswith(tuple(compiled)))
            for path, one in modules.items()
            if isinstance(one, RELUS)
        }
        for path, feeder, normalized, relu in _feeders(modules):
            self._records[id(relu)].feeder, self._records[id(relu)].normalized = (path, feeder), normalized
        feeding = [record.feeder[1] for record in self._records.values() if record.feeder]
        self._first = {id(layer): _sample(layer) for layer in feeding}
        self._input_scale: float | None = None
        self._is_inside = False
        self._handles: list[Any] = []
        self._gradient_handles: list[Any] = []

    @property
    def scopes(self) -> tuple[str, ...]:
        """The paths of the watched modules."""
        return tuple(record.scope for record in self._records.values())

    def start(self) -> None:
        """Register the hooks."""
        self._handles.append(self._module.register_forward_pre_hook(_uncompiled(self._enter)))
        self._handles.append(self._module.register_forward_hook(_uncompiled(self._leave), always_call=True))
        for one in self._module.modules():
            if isinstance(one, RELUS):
                self._handles.append(one.register_forward_hook(_uncompiled(partial(self._count, self._records[id(one)]))))
        for parameter in self._module.parameters():
            if parameter.requires_grad and parameter.is_leaf and not is_lazy(parameter):
                self._gradient_handles.append(parameter.register_post_accumulate_grad_hook(self._warn_if_unobserved))

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in (*self._handles, *self._gradient_handles):
            handle.remove()
        self._handles.clear()
        self._gradient_handles.clear()

    def warn_all(self) -> None:
        """Warn about every ReLU with enough dead channels that had no warning yet."""
        for record in self._records.values():
            if self._warn and not record.warned:
                self._warn_about(record)
        unseen = [record.scope for record in self._records.values() if record.is_compiled and not record.calls]
        if unseen and any(record.batches for record in self._records.values()):
            text = (
                f"cannot see which channels of {', '.join(unseen)} have fired: a part that was compiled before it is watched does "
                f"not call hooks; {COMPILE_INSIDE}"
            )
            warnings.warn(text, UnobservedReluWarning, stacklevel=_outside())

    def dead(self) -> dict[str, int]:
        """Return how many channels of each ReLU have not fired for `patience` training batches in a row, by module path."""
        return {record.scope: self._dead(record) for record in self._records.values()}

    def report(self) -> list[WatchedRelu]:
        """Return the state of each ReLU, in the order of the module."""
        return [self._described(record) for record in self._records.values()]

    def _dead(self, record: _Record) -> int:
        return sum(int((call.batches - call.last_fired >= self._patience).sum()) for call in record.calls)

    def _described(self, record: _Record) -> WatchedRelu:
        channels = sum(len(call.last_fired) for call in record.calls)
        dead = self._dead(record)
        return WatchedRelu(record.scope, channels, dead, record.batches, self._causes(record) if dead else ())

    @torch.no_grad()
    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if _is_in_backward():
            return
        self._is_inside = True
        for record in self._records.values():
            record.position = 0
        first = inputs[0] if inputs else None
        if (
            self._input_scale is None
            and module.training
            and isinstance(first, Tensor)
            and first.numel()
            and not _is_traced(first)
        ):
            self._input_scale = float(first.detach().float().square().mean().sqrt())

    def _leave(self, *_: Any) -> None:
        if not _is_in_backward():
            self._is_inside = False

    def _warn_if_unobserved(self, _: Tensor) -> None:
        """Warn when a gradient arrives before any forward pass was seen, and stop looking for it."""
        for handle in self._gradient_handles:
            handle.remove()
        if self._gradient_handles:
            self._gradient_handles = []
            text = (
                "cannot see which ReLU channels have fired: a backward pass ran, but no forward pass of a watched ReLU was seen; "
                f"a module that was compiled before it is watched does not call hooks: {COMPILE_INSIDE}"
            )
            warnings.warn(text, UnobservedReluWarning, stacklevel=_outside())

    @torch.no_grad()
    def _count(self, record: _Record, module: nn.Module, _: Any, output: Tensor) -> None:
        # Activation checkpointing runs a forward pass again during the backward pass: it is the same batch.
        if _is_in_backward():
            return
        for handle in self._gradient_handles:
            handle.remove()
        self._gradient_handles = []
        if not module.training or output.numel() == 0 or _is_traced(output):
            return
        # Uses the output, because an in-place ReLU overwrites its input.
        planes = output.detach()
        # After a Linear the features are on the last axis.
        is_linear = record.feeder is not None and isinstance(record.feeder[1], nn.Linear)
        planes = planes.reshape((1, -1) if is_linear else (-1, 1)) if planes.ndim < 2 else planes
        axis = planes.ndim - 1 if is_linear else 1
        fires = planes.amax(dim=[other for other in range(planes.ndim) if other != axis]) > 0
        # If a part of the module is run by itself, there is no forward pass in which calls could be counted.
        position = record.position if self._is_inside else 0
        record.position += 1
        if position >= len(record.calls):
            position = len(record.calls)
            record.calls.append(_Call(torch.zeros_like(fires, dtype=torch.int64)))
        call = record.calls[position]
        if len(call.last_fired) != len(fires):
            return
        call.add(fires)
        # Reading a number from a GPU synchronizes with it, so it is read only once in several batches.
        if self._warn and not record.warned and call.batches % min(self._patience, 10) == 0:
            self._warn_about(record)

    def _warn_about(self, record: _Record) -> None:
        found = self._described(record)
        if not found.dead or found.share < self._share:
            return
        record.warned = True
        likely = f"likeliest here: {'; '.join(found.causes)}" if found.causes else "none of them is visible here"
        text = (
            f"{found.scope}: {found.dead} of {found.channels} channels ({found.share:.0%}) have not fired for "
            f"{self._patience} training batches or more; {ADVICE}; {likely}"
        )
        warnings.warn(text, DyingReluWarning, stacklevel=_outside())

    def _causes(self, record: _Record) -> tuple[str, ...]:
        """Return the usual causes that were detected, the likeliest first."""
        found = []
        if self._input_scale is not None and self._input_scale > LARGE_INPUT and not record.normalized:
            found.append(f"unnormalized input (its root mean square is {self._input_scale:.3g}): scale it to about 1")
        if record.feeder is None:
            return tuple(found)
        path, layer = record.feeder
        now, first = _sample(layer), self._first[id(layer)]
        moved = float((now - first).norm()) / max(float(first.norm()), 1e-12)
        if not math.isfinite(moved) or moved > JUMP:
            distance = f"the weights of {path} moved by {moved:.3g} times their first norm in {record.batches} batches"
            found.append(f"learning rate too high ({distance}): lower it")
        bias = getattr(layer, "bias", None)
        if bias is not None and not record.normalized:
            # A weighted sum of inputs of scale 1 is about as large as the norm of its weights.
            reach = float(now.square().mean().sqrt()) * math.sqrt(_fan_in(layer))
            low = float(bias.detach().float().median())
            if low < -2 * reach:
                found.append(f"large negative biases (median {low:.3g} in {path}): start them at 0 or above")
        # He's initialization, variance 2 / fan-in, keeps the scale of activations.
        scale = float(first.square().mean().sqrt()) * math.sqrt(_fan_in(layer) / 2)
        if not record.normalized and not 1 / UNUSUAL_SCALE < scale < UNUSUAL_SCALE:
            found.append(f"initialization ({path} began at {scale:.3g} times He's scale): use kaiming_normal_")
        if not record.normalized:
            found.append(f"no normalization between {path} and the ReLU: a batch norm keeps its input around 0")
        return tuple(found)


def _sample(layer: nn.Module) -> Tensor:
    """Return a copy, on the CPU, of up to `SAMPLE` of the layer's weights, evenly spread."""
    weight: Tensor = layer.weight.detach().reshape(-1)
    return weight[:: max(1, weight.numel() // SAMPLE)].float().cpu().clone()


def _fan_in(layer: nn.Module) -> int:
    """Return how many products are summed for one result of the layer."""
    weight: Tensor = layer.weight
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    return max(1, weight.numel() // weight.shape[1 if transposed else 0])


def _feeders(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, bool, nn.Module]]:
    """Yield (path, layer, normalized, relu) for each ReLU that follows a weighted layer in the order of registration.

    That is the order of execution in an nn.Sequential and, by convention, elsewhere; only the likely cause depends on it.
    """
    path, layer, normalized = "", None, False
    for name, module in modules.items():
        if isinstance(module, FEEDERS) and not is_lazy(module.weight):
            path, layer, normalized = name, module, False
        elif isinstance(module, NORMS):
            normalized = True
        elif isinstance(module, RELUS) and layer is not None:
            yield _shown(path), layer, normalized, module


def _shown(path: str) -> str:
    """Return a module's path without what torch.compile and activation checkpointing put into it."""
    return path.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def _is_in_backward() -> bool:
    """Return whether this thread is inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def _is_traced(tensor: Tensor) -> bool:
    """Return whether `tensor` is one of torch.func, whose numbers cannot be read."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _uncompiled(hook: Any) -> Any:
    """Return `hook`, excluded from the graphs of torch.compile if that is in use."""
    return torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook


def _outside() -> int:
    """Return the stack level of the first caller that is neither torch, contextlib nor this file, where a warning should point."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_machinery(str(frame.f_globals.get("__name__", ""))):
        frame, level = frame.f_back, level + 1
    return level


def _is_machinery(name: str) -> bool:
    return name == __name__ or name.split(".", maxsplit=1)[0] in ("torch", "contextlib")
