"""How inputs that are given by name reach the arguments of `forward`: by name, by position, or some of both.

forward(x, y)               by their names where they are those of the parameters, else in the order in which they are given
forward(x, **others)        what no parameter is called is passed by its name
forward(x, *others)         ... is passed by its position
forward(*args, **kwargs)    by name, else by position, else the first ones by position: the first that the module accepts
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword

__all__ = ["Call", "calls_of", "parameters_after"]

Parameters = Mapping[str, inspect.Parameter]

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Call:
    """One way to pass arguments.

    Attributes:
        positional: The argument of each positional parameter that has one, in order.
        variable: Those of `*args`.
        keywords: Those that are passed by name, in the order of the parameters.
    """

    positional: tuple[str, ...] = ()
    variable: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def parameter_of(self, argument: str, parameters: Parameters) -> str:
        """Return the parameter that `argument` is passed to; that of `*args` for its arguments, and its own name for keywords."""
        if argument in self.positional:
            places = [name for name, each in parameters.items() if each.kind in POSITIONAL]
            return (*places, *self.positional[len(places) :])[self.positional.index(argument)]
        return _variable(parameters) if argument in self.variable else argument


def calls_of(arguments: Sequence[str], parameters: Parameters) -> Iterator[Call]:
    """Yield the ways in which `arguments` can be passed to a function, the likeliest first.

    Args:
        arguments: Their names, in the order in which they are given.
        parameters: Those of the function.
    """
    kinds = {each.kind for each in parameters.values()}
    named = [name for name in arguments if name in parameters and parameters[name].kind in NAMED]
    others = [name for name in arguments if name not in named]
    takes_more = inspect.Parameter.VAR_POSITIONAL in kinds
    keywords = [name for name in others if _can_be_keyword(name, parameters)] if inspect.Parameter.VAR_KEYWORD in kinds else []
    counts: Sequence[int] = range(len(others) + 1) if not others or keywords == others else [len(others)]
    # All by name, then all by position, then the first ones by position.
    likely = [counts[0], counts[-1], *reversed(counts[1:-1])] if takes_more or len(counts) < 3 else counts
    found = [call for count in likely if (call := _call(named, others, count, parameters)) is not None]
    yield from dict.fromkeys(found)


def _can_be_keyword(name: str, parameters: Parameters) -> bool:
    return name.isidentifier() and not iskeyword(name) and name not in parameters


def _call(named: Sequence[str], others: Sequence[str], count: int, parameters: Parameters) -> Call | None:
    """Return the call that passes the first `count` of `others` by position and the rest by name; None if there is none.

    Args:
        named: Arguments with the name of a parameter.
        others: Those without.
        count: How many of them are passed by position.
        parameters: Those of the function.
    """
    left, positional = list(others[:count]), list[str]()
    for name, parameter in parameters.items():
        if parameter.kind not in POSITIONAL or not (name in named or left):
            break
        positional.append(name if name in named else left.pop(0))
    late = [name for name in parameters if name in named and name not in positional]
    places = [name for name, parameter in parameters.items() if parameter.kind in POSITIONAL]
    takes_more = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters.values())
    without = [
        name for name in places[len(positional) :] if parameters[name].default is inspect.Parameter.empty and name not in late
    ]
    if (left and not takes_more) or (without and len(named) + len(others) >= len(places)):
        return None
    return Call(tuple(positional), tuple(left), (*late, *others[count:]))


def _variable(parameters: Parameters) -> str:
    return next(name for name, each in parameters.items() if each.kind is inspect.Parameter.VAR_POSITIONAL)


def parameters_after(call: Call, parameters: Parameters) -> dict[str, inspect.Parameter]:
    """Return `parameters` with one for each keyword of `call` in place of `**keywords`: torch refuses shapes for the others."""
    if all(name in parameters for name in call.keywords):
        return dict(parameters)
    kept = {name: each for name, each in parameters.items() if each.kind is not inspect.Parameter.VAR_KEYWORD}
    added = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in call.keywords if name not in kept}
    return kept | added
