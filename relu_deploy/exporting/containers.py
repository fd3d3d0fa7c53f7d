"""Containers among the arguments of a module: what the names of inputs describe, and what the module takes.

A program is exported with plain containers. "batch.ids" is an entry of a dictionary and "state.0" an element of a tuple, to any depth.
While it is traced they become what `forward` takes: a list, a named tuple, a data class. Its annotations tell that; where
there are none, several are tried.
"""

from __future__ import annotations

import collections
import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from relu_deploy.errors import UsageError

__all__ = ["STYLES", "Convert", "converter", "filled_tree", "hints_of", "leaves_of", "nested_names"]

#: Makes the container that a module takes from a plain one.
Convert = Callable[[Any], Any]


def nested_names(names: Sequence[str], depth: int = 1) -> Any:
    """Return the argument made of the inputs `names`, with names in place of tensors.

    One input is itself; "batch.ids" is an entry of a dictionary and "state.0" an element of a tuple, to any depth.

    Args:
        names: Inputs that agree in their first `depth` parts.
        depth: How many parts of the names lead here.

    Raises:
        UsageError: If an input is named like a container of others.
    """
    parts = {name: name.split(".") for name in names}
    if whole := [name for name in names if len(parts[name]) == depth]:
        if len(names) > 1:
            other = next(name for name in names if name != whole[0])
            raise UsageError(f"--input {whole[0]}: {other} is a part of it", "give the parts of an argument, or the whole")
        return whole[0]
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(parts[name][depth], []).append(name)
    if _are_places(grouped):
        return tuple(nested_names(grouped[key], depth + 1) for key in sorted(grouped, key=int))
    return {key: nested_names(group, depth + 1) for key, group in grouped.items()}


def _are_places(keys: Mapping[str, Any]) -> bool:
    """Return whether `keys` are the places of the elements of a tuple: 0, 1, 2 and so on."""
    return sorted(keys) == sorted(str(place) for place in range(len(keys)))


def leaves_of(tree: Any) -> Iterator[str]:
    """Yield the names in `tree`, in the order in which torch flattens it."""
    if isinstance(tree, str):
        yield tree
        return
    for part in tree.values() if isinstance(tree, dict) else tree:
        yield from leaves_of(part)


def filled_tree(tree: Any, values: Mapping[str, Any]) -> Any:
    """Return `tree` with the values of its names."""
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, dict):
        return {key: filled_tree(part, values) for key, part in tree.items()}
    return tuple(filled_tree(part, values) for part in tree)


class Record(dict[str, Any]):
    """A dictionary whose entries are attributes as well, as those that tokenizers give."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _by_number(parts: Mapping[str, Any]) -> Any:
    """Return a dictionary whose keys are the numbers that `parts` are named by, where all are."""
    return {int(name): part for name, part in parts.items()} if all(name.isdecimal() for name in parts) else Record(parts)


def _unchanged(value: Any) -> Any:
    return value


def _mapped(value: Any, sequence: Callable[[Sequence[Any], int], Any], mapping: Convert, depth: int = 0) -> Any:
    """Return plain containers rebuilt with `sequence`, which is given the depth of nesting, and `mapping`."""
    if isinstance(value, dict):
        return mapping({key: _mapped(part, sequence, mapping, depth + 1) for key, part in value.items()})
    if isinstance(value, tuple):
        return sequence([_mapped(part, sequence, mapping, depth + 1) for part in value], depth)
    return value


#: What containers of a parameter without an annotation may become, in the order in which they are tried.
STYLES: tuple[Convert, ...] = (
    _unchanged,
    lambda value: _mapped(value, lambda parts, _: list(parts), Record),
    lambda value: _mapped(value, lambda parts, depth: tuple(parts) if depth else list(parts), Record),
    lambda value: _mapped(value, lambda parts, _: {str(place): part for place, part in enumerate(parts)}, Record),
    lambda value: _mapped(value, lambda parts, _: dict(enumerate(parts)), _by_number),
)


def converter(hint: Any, tree: Any) -> Convert | None:
    """Return what makes the container that an annotation names; None where it names none that fits.

    Args:
        hint: The annotation, evaluated.
        tree: The plain container, with names in place of tensors.
    """
    if isinstance(tree, str):
        return _unchanged
    for kind in _alternatives(hint):
        made = _of_kind(kind, tree)
        if made is not None:
            return made
    return None


def _alternatives(hint: Any) -> Sequence[Any]:
    """Return the members of a union, or the annotation itself."""
    if get_origin(hint) is typing.Annotated:
        return _alternatives(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _of_kind(kind: Any, tree: Any) -> Convert | None:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if not isinstance(origin, type):
        return None
    names = _fields(origin)
    if names is not None:
        return _record(origin, names, tree)
    if issubclass(origin, tuple) and isinstance(tree, tuple):
        inner = arguments[:1] * len(tree) if arguments[1:] == (...,) else arguments
        return _sequence(tuple, inner if len(inner) == len(tree) else (Any,) * len(tree), tree)
    if issubclass(origin, collections.abc.Mapping):
        return _mapping(origin, arguments or (str, Any), tree)
    if (issubclass(origin, list) or origin.__module__ == "collections.abc") and isinstance(tree, tuple):
        made = origin if issubclass(origin, list) else list
        return _sequence(made, (arguments[:1] or (Any,)) * len(tree), tree)
    return None


def _fields(kind: type) -> dict[str, Any] | None:
    """Return the annotations of the fields of a named tuple or data class, None for any other class."""
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        names = list(kind._fields)
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.init]
    else:
        return None
    hints = hints_of(kind)
    return {name: hints.get(name, Any) for name in names}


def hints_of(thing: Any) -> dict[str, Any]:
    """Return the evaluated annotations of a function or class; {} where they cannot be evaluated."""
    try:
        return typing.get_type_hints(thing)
    except Exception:  # an annotation may name anything, also what is not imported
        return {}


def _part(hint: Any, tree: Any) -> Convert:
    return converter(hint, tree) or _unchanged


def _record(kind: type, fields: Mapping[str, Any], tree: Any) -> Convert | None:
    if isinstance(tree, tuple):
        if len(tree) > len(fields):
            return None
        tree = dict(zip(fields, tree, strict=False))
    elif not set(tree) <= fields.keys():
        return None
    parts = {name: _part(fields[name], part) for name, part in tree.items()}

    def make(value: Any) -> Any:
        given = dict(zip(parts, value, strict=True)) if isinstance(value, tuple) else value
        return kind(**{name: parts[name](part) for name, part in given.items()})

    return make


def _sequence(kind: Callable[[Any], Any], hints: Sequence[Any], tree: Sequence[Any]) -> Convert:
    parts = [_part(hint, part) for hint, part in zip(hints, tree, strict=True)]
    return lambda value: kind(part(one) for part, one in zip(parts, value, strict=True))


def _mapping(kind: type, hints: Sequence[Any], tree: Any) -> Convert:
    named = tree if isinstance(tree, dict) else {str(place): part for place, part in enumerate(tree)}
    parts = {name: _part(hints[-1], part) for name, part in named.items()}
    key_of: Callable[[str], Any] = int if hints[0] is int and all(name.isdecimal() for name in named) else str

    def make(value: Any) -> Any:
        given = value if isinstance(value, dict) else {str(place): part for place, part in enumerate(value)}
        made = {key_of(name): parts[name](part) for name, part in given.items()}
        return kind(made) if kind is collections.OrderedDict else made

    return make
