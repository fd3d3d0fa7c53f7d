"""Whether what a page shows is what came.

Each shown line has to be a line of the real output, in the same order; lines that are left out in between are no matter.
A numeral stands for any numeral (times and versions differ), but "35 of 35" only for all of as many. `…` stands for
anything. How wide columns and rules are does not count, because it follows from the numerals in them.
"""

from __future__ import annotations

import re

NUMERAL = r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?"
PIECE = re.compile(rf"(?P<all>(?P<first>{NUMERAL}) of (?P=first)(?![\d.,]*\d))|(?P<number>{NUMERAL})|(?P<any>…|\[…\])")
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def first_missing(shown: list[str] | tuple[str, ...], real: str) -> int | None:
    """Return the index of the first line of `shown` that `real` does not have where it should, None when all are there."""
    lines = [_plain(line) for line in real.splitlines()]
    at = 0
    for index, line in enumerate(shown):
        expected = _plain(line)
        if not expected or expected == "…":
            continue
        pattern = _pattern(expected)
        while at < len(lines) and not pattern.fullmatch(lines[at]):
            at += 1
        if at == len(lines):
            return index
        at += 1
    return None


def _plain(line: str) -> str:
    line = ESCAPE.sub("", line)
    return re.sub(r"([─━═╌-])\1+", r"\1", " ".join(line.split()))


def _pattern(expected: str) -> re.Pattern[str]:
    parts, at, groups = [], 0, 0
    for piece in PIECE.finditer(expected):
        parts.append(re.escape(expected[at : piece.start()]))
        if piece["all"]:
            groups += 1
            parts.append(rf"({NUMERAL}) of \{groups}")
        else:
            parts.append(".*" if piece["any"] else NUMERAL)
        at = piece.end()
    return re.compile("".join([*parts, re.escape(expected[at:])]))
