"""The words of ten languages, from Debian's dictionary packages, split so that related forms stay on one side.

    apt-get install wamerican wbritish wdanish wdutch wfrench wngerman witalian wpolish wportuguese wspanish wswedish

The lists are not part of this project: each has a licence of its own, which the card names.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

#: label → its lists under /usr/share/dict; in the order of the model's outputs
LISTS = {
    "Danish": ("danish",),
    "Dutch": ("dutch",),
    "English": ("american-english", "british-english"),
    "French": ("french",),
    "German": ("ngerman",),
    "Italian": ("italian",),
    "Polish": ("polish",),
    "Portuguese": ("portuguese",),
    "Spanish": ("spanish",),
    "Swedish": ("swedish",),
}
FOLDER = Path("/usr/share/dict")
#: words with the same beginning are forms of one stem: they are all trained on, or all tested on
STEM, PARTS = 5, 10


def read_words(folder: Path = FOLDER) -> tuple[dict[str, list[str]], int]:
    """Return the words of each language that stand in no other language's list, sorted, and how many stood in several.

    Words of fewer than three letters or more than 40, with digits or abbreviations' dots, and English possessives are left out.
    Raises SystemExit that names the package of a list that is not there.
    """
    found: dict[str, dict[str, str]] = {}
    for language, names in LISTS.items():
        words: dict[str, str] = {}
        for name in names:
            file = folder / name
            if not file.is_file():
                raise SystemExit(f"{file} is missing: install the packages that {Path(__file__).name} names")
            # One of them, the Swedish one, is still in Latin-1.
            content = file.read_bytes()
            for line in content.decode("utf-8" if _is_utf8(content) else "latin-1").splitlines():
                word = unicodedata.normalize("NFC", line.strip())
                if 3 <= len(word) <= 40 and not word.endswith("'s") and word.replace("-", "").replace("'", "").isalpha():
                    words.setdefault(word.casefold(), word)
        found[language] = words
    count = Counter(key for words in found.values() for key in words)
    alone = {language: sorted(word for key, word in words.items() if count[key] == 1) for language, words in found.items()}
    return alone, sum(many > 1 for many in count.values())


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_held_out(word: str) -> bool:
    """Return whether `word` belongs to the tenth of all stems that is never trained on."""
    stem = word.casefold()[:STEM].encode()
    return hashlib.sha256(stem).digest()[0] * PARTS // 256 == 0


def split(words: dict[str, list[str]], each: int, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the words to train on, and at most `each` held-out ones of each language, drawn with `seed`."""
    draw = random.Random(seed)
    train, test = {}, {}
    for language, all_words in words.items():
        train[language] = [word for word in all_words if not is_held_out(word)]
        rest = [word for word in all_words if is_held_out(word)]
        test[language] = sorted(draw.sample(rest, min(each, len(rest))))
    return train, test


def phrases_of(words: dict[str, list[str]], length: int, each: int, seed: int) -> dict[str, list[str]]:
    """Return `each` phrases a language, each of `length` words of its list, drawn with `seed`: no sentences, only words in a row."""
    draw = random.Random(seed)
    return {language: [" ".join(draw.sample(list(own), length)) for _ in range(each)] for language, own in words.items()}


def flat(texts: dict[str, list[str]]) -> tuple[list[str], list[int]]:
    """Return all texts and the places of their languages in `LISTS`."""
    order = list(LISTS)
    pairs = [(text, order.index(language)) for language, own in texts.items() for text in own]
    return [text for text, _ in pairs], [label for _, label in pairs]


def varied(words: Sequence[Sequence[str]], labels: Sequence[int], draw: random.Random, limit: int) -> list[str]:
    """Return one text a label: one to three words of that language, now and then in other letter case, of at most `limit` bytes."""
    texts = []
    for label in labels:
        own, many = words[label], draw.choices((1, 2, 3), (6, 2, 2))[0]
        text = " ".join(own[draw.randrange(len(own))] for _ in range(many))
        case = draw.random()
        if case < 0.3:
            text = text.lower() if case < 0.15 else text.capitalize() if case < 0.23 else text.upper()
        texts.append(text if len(text.encode()) <= limit else text.split()[0])
    return texts
