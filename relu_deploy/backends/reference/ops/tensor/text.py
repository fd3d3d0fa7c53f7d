"""Operators on strings."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.full_match import FullMatch
from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.types import as_text
from relu_deploy.tensors import Array


def _objects(values: list[Any], shape: tuple[int, ...]) -> Array:
    result = np.empty(len(values), object)
    result[:] = values
    return result.reshape(shape)


@operator("StringConcat", keeps_types=True)
def string_concat(_: Call, x: Array, y: Array) -> Array:
    left, right = np.broadcast_arrays(as_text(x), as_text(y))
    return _objects([a + b for a, b in zip(left.ravel(), right.ravel(), strict=True)], left.shape)


@operator("StringSplit", keeps_types=True)
def string_split(call: Call, x: Array) -> tuple[Array, Array]:
    """Without a delimiter (or with an empty one) words are split at white space. Shorter rows are filled with ""."""
    delimiter, most = call.get("delimiter") or None, call.get("maxsplit", -1)
    parts = [text.split(delimiter, most) if text else [] for text in as_text(x).ravel()]
    longest = max((len(row) for row in parts), default=0)
    filled = [word for row in parts for word in row + [""] * (longest - len(row))]
    counts = np.array([len(row) for row in parts], np.int64).reshape(x.shape)
    return _objects(filled, (*x.shape, longest)), counts


@operator("StringNormalizer", keeps_types=True)
def string_normalizer(call: Call, x: Array) -> Array:
    stop, exact = call.get("stopwords") or [], bool(call.get("is_case_sensitive", 0))
    change = call.get("case_change_action", "NONE")
    dropped = set(stop) if exact else {word.lower() for word in stop}
    rows = as_text(x).reshape(-1, x.shape[-1])
    kept = [[word for word in row if (word if exact else word.lower()) not in dropped] for row in rows]
    changes = {"LOWER": str.lower, "UPPER": str.upper}
    changed = [[changes[change](word) if change in changes else word for word in row] for row in kept]
    words = changed[0] if changed and changed[0] else [""]
    return _objects(words, (len(words),) if x.ndim == 1 else (1, len(words)))


@operator("RegexFullMatch", keeps_types=True)
def regex_full_match(call: Call, x: Array) -> Array:
    pattern = FullMatch(call.get("pattern"))
    return np.array([pattern.matches(text) for text in as_text(x).ravel()], bool).reshape(x.shape)


@operator("TfIdfVectorizer", keeps_types=True)
def tfidf_vectorizer(call: Call, x: Array) -> Array:
    """Count the n-grams of the pool in each row, words up to `max_skip_count` apart; TF, IDF or TFIDF."""
    texts = call.get("pool_strings") is not None
    pool = call.get("pool_strings") if texts else call.get("pool_int64s")
    starts, places = call.get("ngram_counts"), call.get("ngram_indexes")
    grams: dict[tuple[Any, ...], int] = {}
    number = 0
    for index, start in enumerate(starts):
        size, end = index + 1, starts[index + 1] if index + 1 < len(starts) else len(pool)
        for first in range(start, end, size):
            grams[tuple(pool[first : first + size])] = places[number]
            number += 1
    rows = (as_text(x) if texts else x).reshape(-1, x.shape[-1]) if x.ndim > 1 else [as_text(x) if texts else x]
    counts = np.zeros((len(rows), max(places) + 1), np.float64 if call.wide else np.float32)
    for row, words in enumerate(rows):
        _count_grams(call, list(words), grams, counts[row])
    mode, weights = call.get("mode"), call.get("weights")
    scaled = np.ones(counts.shape[1], counts.dtype)
    if weights is not None:
        for place, weight in zip(places, weights, strict=True):
            scaled[place] = weight
    if mode == "IDF":
        counts = (counts > 0) * scaled
    elif mode == "TFIDF":
        counts = counts * scaled
    return counts if x.ndim > 1 else counts[0]


def _count_grams(call: Call, words: list[Any], grams: dict[tuple[Any, ...], int], counts: Array) -> None:
    for size in range(call.get("min_gram_length"), call.get("max_gram_length") + 1):
        # Single words have no distance between them: they count once, whatever may be skipped.
        for step in range(1, (call.get("max_skip_count") + 1 if size > 1 else 1) + 1):
            for first in range(len(words) - step * (size - 1)):
                place = grams.get(tuple(words[first + step * index] for index in range(size)))
                if place is not None:
                    counts[place] += 1
