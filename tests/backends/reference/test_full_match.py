"""Patterns match what Python's `re` says, in a time that grows with the text alone."""

import random
import re

import pytest

from relu_deploy.backends.reference.full_match import FullMatch
from relu_deploy.errors import InputError


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"www\.[\w.-]+\.\bcom\b", "www.google.com", True),
        (r"www\.[\w.-]+\.\bcom\b", "www.google.com2", False),
        (r"account\.(google|facebook)\.com", "account.google.com", True),
        (r"[^a-c]+", "xyz", True),
        (r"[^a-c]+", "xay", False),
        (r"a{2,3}", "aaa", True),
        (r"a{2,3}", "a", False),
        (r"(?i)straße", "STRAßE", True),
        (r"a.c", "a\nc", False),
        (r"(?s)a.c", "a\nc", True),
        (r"(?m)a$\n^b", "a\nb", True),
        (r"a$", "a\n", False),
        (r"\d+", "٣", False),
        (r"(a*)*", "", True),
        (r"a??b+?", "abb", True),
        ("", "", True),
    ],
)
def test_a_pattern_matches_the_whole_text(pattern, text, matches):
    assert FullMatch(pattern).matches(text) is matches


def test_random_patterns_match_what_python_says():
    draw = random.Random(7)

    def part(depth):
        kind = draw.randrange(7 if depth else 3)
        if kind < 3:
            return draw.choice(["a", "b", ".", "[ab]", "[^a]", r"\w", r"\b"])
        if kind == 3:
            return f"(?:{part(depth - 1)}|{part(depth - 1)})"
        if kind == 4:
            return f"(?:{part(depth - 1)}){draw.choice(['*', '+', '?', '{2}', '{1,2}', '*?'])}"
        return part(depth - 1) + part(depth - 1)

    for _ in range(300):
        pattern = part(4)
        compiled, expected = FullMatch(pattern), re.compile(pattern, re.ASCII)
        for _ in range(20):
            text = "".join(draw.choice("abc ") for _ in range(draw.randrange(7)))
            assert compiled.matches(text) == (expected.fullmatch(text) is not None), (pattern, text)


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)+", "(a*)*(a*)*(a*)*", "(?:a?){200}a{200}"])
def test_no_pattern_takes_years(pattern):
    assert FullMatch(pattern).matches("a" * 300 + "b") is False
    assert FullMatch(pattern).matches("a" * 300) is True


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "which RE2 does not have"),
        ("(?=a)a", "which RE2 does not have"),
        ("(?:a{0,1000}){0,1000}", "more than 20,000 states"),
        ("(", "no regular expression"),
    ],
)
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_refused(pattern, reason):
    with pytest.raises(InputError, match=reason):
        FullMatch(pattern)
