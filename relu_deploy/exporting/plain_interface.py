"""Lets a module take and return dictionaries, lists and tuples of tensors while it is traced: a program stores nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["accepted_outputs", "plain_interface"]

#: Makes what a module takes from plain containers, by the place or the name of the argument.
Converters = Mapping[int | str, Callable[[Any], Any]]


@contextlib.contextmanager
def plain_interface(module: nn.Module, signature: inspect.Signature | None, converters: Converters) -> Iterator[None]:
    """Let `module` take and return plain containers for as long as the block lasts.

    Named tuples, data classes and other mappings that it returns become dictionaries, so that the outputs keep their names,
    without the fields that are None; plain numbers become tensors.

    Args:
        module: The model.
        signature: How `forward` is called; None for as it is.
        converters: Applied to the arguments.
    """
    forward, own = module.forward, vars(module).get("forward")

    @functools.wraps(forward)
    def converted(*arguments: Any, **named: Any) -> Any:
        places = [converters[at](each) if at in converters else each for at, each in enumerate(arguments)]
        names = {name: converters[name](each) if name in converters else each for name, each in named.items()}
        return _plain(forward(*places, **names))

    converted.__signature__ = signature or inspect.signature(forward)  # type: ignore[attr-defined]
    module.forward = converted  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


def accepted_outputs(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], converters: Converters
) -> list[Any] | None:
    """Return the tensors that `module` returns, None if it does not accept the arguments. Its state stays as it was."""
    import torch
    from torch.utils import _pytree

    try:
        with _unchanged_state(module), torch.no_grad(), plain_interface(module, None, converters):
            outputs = module(*arguments, **keywords)
    except Exception:  # the user's forward may raise anything
        return None
    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def _unchanged_state(module: nn.Module) -> Iterator[None]:
    """Restore what a run changes in the buffers and attributes of `module`, such as a cache."""
    attributes = [(vars(part), dict(vars(part)), dict(part._buffers)) for part in module.modules()]
    values = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for current, before, buffers in attributes:
            current.clear()
            current.update(before)
            current["_buffers"].clear()
            current["_buffers"].update(buffers)
        for buffer, value in values:
            buffer.detach().copy_(value)


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, bool | int | float):
        return torch.tensor(value)
    fields = _fields_of(value)
    if fields is not None:
        return {str(name): _plain(part) for name, part in fields.items() if part is not None}
    if isinstance(value, list | tuple):
        return type(value)(_plain(part) for part in value) if type(value) in (list, tuple) else tuple(map(_plain, value))
    return value


def _fields_of(value: Any) -> Mapping[str, Any] | None:
    """Return the named parts of a container, None where it has none."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
