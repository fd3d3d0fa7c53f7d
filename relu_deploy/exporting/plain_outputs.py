"""Converts what a module returns into dictionaries, lists and tuples of tensors while it is traced: a program stores nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["plain_outputs"]


@contextlib.contextmanager
def plain_outputs(module: nn.Module, keywords: Iterable[str] = ()) -> Iterator[None]:
    """Let `module` return plain containers for as long as the block lasts.

    Named tuples, data classes and other mappings become dictionaries, so that the outputs keep their names, without the fields
    that are None; plain numbers become tensors.

    Args:
        module: The model.
        keywords: Names of the arguments that are passed by name. Those that only `**keywords` takes become parameters of
            their own: torch refuses shapes for the others.
    """
    forward, own = module.forward, vars(module).get("forward")

    @functools.wraps(forward)
    def converted(*arguments: Any, **named: Any) -> Any:
        return _plain(forward(*arguments, **named))

    converted.__signature__ = _with_parameters(inspect.signature(forward), list(keywords))  # type: ignore[attr-defined]
    module.forward = converted  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


def _with_parameters(signature: inspect.Signature, names: Iterable[str]) -> inspect.Signature:
    """Return `signature` with a parameter for each of `names` in place of `**keywords`."""
    own = signature.parameters
    if all(name in own for name in names):
        return signature
    kept = [parameter for parameter in own.values() if parameter.kind is not parameter.VAR_KEYWORD]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names if name not in own]
    return signature.replace(parameters=[*kept, *added])


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
