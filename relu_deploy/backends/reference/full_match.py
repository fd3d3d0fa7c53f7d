"""Regular expressions that are matched in linear time, as RE2 does, which ONNX names for RegexFullMatch.

Python's `re` tries one way after the other, so that a pattern such as `(a+)+b` takes years for forty letters, and no other thread runs
meanwhile. Here all ways are followed at once (Thompson, "Regular Expression Search Algorithm", 1968). `re` parses the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from re import DOTALL, IGNORECASE, MULTILINE
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from relu_deploy.errors import InputError

__all__ = ["FullMatch"]

#: states of one pattern; each character of a text takes as many steps at most
MOST_STATES = 20_000
#: `\\d`, `\\w` and `\\s` are those of ASCII, as in RE2
CLASSES: dict[str, Callable[[str], bool]] = {
    "DIGIT": lambda each: each in "0123456789",
    "SPACE": lambda each: each in "\t\n\v\f\r ",
    "WORD": lambda each: each == "_" or (each.isascii() and each.isalnum()),
}

Test = Callable[[str], bool]


class _State(NamedTuple):
    """One step. Without `character` and `assertion` it takes no character; `next` is what may follow."""

    character: Test | None
    assertion: Callable[[str, int], bool] | None
    next: list[int]


class FullMatch:
    """A compiled pattern.

    Args:
        pattern: What RE2 and Python both understand.

    Raises:
        InputError: If the pattern is not valid, has more than `MOST_STATES` states, or needs what RE2 does not have: references to
            groups, or a look ahead or behind.
    """

    def __init__(self, pattern: str) -> None:
        self._states: list[_State] = []
        try:
            parsed = parser.parse(pattern)
        except Exception as error:  # its own exception, OverflowError or RecursionError
            raise InputError(f"the pattern {pattern[:80]!r} is no regular expression: {error}", "correct the pattern") from error
        self._pattern = pattern
        self._start = self._sequence(parsed, parsed.state.flags, self._add())

    def matches(self, text: str) -> bool:
        """Return whether the pattern matches the whole of `text`."""
        current = self._closure([self._start], text, 0)
        for position, character in enumerate(text):
            following = [
                target
                for number in current
                if (test := self._states[number].character) is not None and test(character)
                for target in self._states[number].next
            ]
            if not following:
                return False
            current = self._closure(following, text, position + 1)
        return 0 in current

    def _closure(self, waiting: list[int], text: str, position: int) -> set[int]:
        """Return the states that are reached from others without a character."""
        reached: set[int] = set()
        while waiting:
            number = waiting.pop()
            if number in reached:
                continue
            state = self._states[number]
            if state.assertion is not None and not state.assertion(text, position):
                continue
            reached.add(number)
            if state.character is None:
                waiting += state.next
        return reached

    def _add(
        self, following: Iterable[int] = (), character: Test | None = None, assertion: Callable[[str, int], bool] | None = None
    ) -> int:
        if len(self._states) == MOST_STATES:
            raise InputError(
                f"the pattern {self._pattern[:80]!r} has more than {MOST_STATES:,} states", "repeat its parts fewer times"
            )
        self._states.append(_State(character, assertion, list(following)))
        return len(self._states) - 1

    def _sequence(self, parts: Any, flags: int, following: int) -> int:
        """Add the states of a sequence that leads to `following`, and return the first of them."""
        for code, argument in reversed(list(parts)):
            following = self._part(code, argument, flags, following)
        return following

    def _part(self, code: Any, argument: Any, flags: int, following: int) -> int:
        if code in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
            return self._add([following], character=_test(code, argument, flags))
        if code is codes.BRANCH:
            return self._add([self._sequence(branch, flags, following) for branch in argument[1]])
        if code is codes.SUBPATTERN:
            _, added, removed, inner = argument
            return self._sequence(inner, (flags | added) & ~removed, following)
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            return self._repeat(argument, flags, following)
        if code is codes.AT and (assertion := _assertion(argument, flags)) is not None:
            return self._add([following], assertion=assertion)
        raise InputError(f"the pattern {self._pattern[:80]!r} needs {code}, which RE2 does not have", "use another pattern")

    def _repeat(self, argument: Any, flags: int, following: int) -> int:
        least, most, inner = argument
        if most is codes.MAXREPEAT:
            again = self._add([following])
            self._states[again].next.append(self._sequence(inner, flags, again))
            following = again
        else:
            end = following
            for _ in range(most - least):
                following = self._add([self._sequence(inner, flags, following), end])
        for _ in range(least):
            following = self._sequence(inner, flags, following)
        return following


def _test(code: Any, argument: Any, flags: int) -> Test:
    """Return whether a character is one of a part of a pattern that stands for one character."""
    if code is codes.ANY:
        return (lambda _: True) if flags & DOTALL else (lambda each: each != "\n")
    items = argument if code is codes.IN else [(codes.LITERAL, argument)]
    negated = code is codes.NOT_LITERAL or (bool(items) and items[0][0] is codes.NEGATE)
    tests = [_item(kind, value) for kind, value in items if kind is not codes.NEGATE]

    def found(each: str) -> bool:
        forms = {each, each.lower(), each.upper()} if flags & IGNORECASE else (each,)
        return any(test(form) for form in forms for test in tests) != negated

    return found


def _item(kind: Any, value: Any) -> Test:
    if kind is codes.RANGE:
        low, high = value
        return lambda each: len(each) == 1 and low <= ord(each) <= high
    if kind is codes.CATEGORY:
        name = str(value).removeprefix("CATEGORY_")
        test = CLASSES[name.removeprefix("NOT_")]
        return (lambda each: not test(each)) if name.startswith("NOT_") else test
    return lambda each: each == chr(value)


def _assertion(kind: Any, flags: int) -> Callable[[str, int], bool] | None:
    """Return whether a position of a text is what an anchor demands, None for an unknown anchor."""
    lines = bool(flags & MULTILINE)
    known: Sequence[tuple[Any, Callable[[str, int], bool]]] = (
        (codes.AT_BEGINNING, lambda text, at: at == 0 or (lines and text[at - 1] == "\n")),
        (codes.AT_BEGINNING_STRING, lambda _, at: at == 0),
        (codes.AT_END, lambda text, at: at == len(text) or (lines and text[at] == "\n")),
        (codes.AT_END_STRING, lambda text, at: at == len(text)),
        (codes.AT_BOUNDARY, _at_boundary),
        (codes.AT_NON_BOUNDARY, lambda text, at: not _at_boundary(text, at)),
    )
    return next((assertion for code, assertion in known if code is kind), None)


def _at_boundary(text: str, at: int) -> bool:
    word = CLASSES["WORD"]
    return (at > 0 and word(text[at - 1])) != (at < len(text) and word(text[at]))
