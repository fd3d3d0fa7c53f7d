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
from dataclasses import dataclass
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
#: letters of the longest word that counts as short
SHORT = 4


def read_words(folder: Path = FOLDER) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the words of each language that stand in no other language's list, and those that stand in another's too.

    Words of more than 40 letters, with digits or abbreviations' dots, and English possessives are left out. Both are sorted.
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
                if len(word) <= 40 and not word.endswith("'s") and word.replace("-", "").replace("'", "").isalpha():
                    words.setdefault(word.casefold(), word)
        found[language] = words
    count = Counter(key for words in found.values() for key in words)
    alone, shared = (
        {
            language: sorted(word for key, word in words.items() if (count[key] > 1) == several)
            for language, words in found.items()
        }
        for several in (False, True)
    )
    return alone, shared


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
    """Return the words to train on, and at most `each` held-out ones of each language of three letters or more, drawn with `seed`."""
    draw = random.Random(seed)
    train, test = {}, {}
    for language, all_words in words.items():
        train[language] = [word for word in all_words if not is_held_out(word)]
        rest = [word for word in all_words if is_held_out(word) and len(word) >= 3]
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


@dataclass(frozen=True)
class Vocabulary:
    """What texts of one language are made of: words of its list alone, short ones, and those that other lists have as well."""

    alone: Sequence[str]
    short: Sequence[str]
    shared: Sequence[str]

    def text(self, draw: random.Random, limit: int) -> str:
        """Return one to five words, now and then in other letter case, of at most `limit` bytes.

        A word by itself is one of `alone`; among several, short and shared ones are as frequent as in what people say.
        """
        many = draw.choices((1, 2, 3, 4, 5), (5, 1, 2, 1, 1))[0]
        kinds = draw.choices((self.alone, self.short, self.shared), (50, 35, 15), k=many) if many > 1 else [self.alone]
        words = [kind[draw.randrange(len(kind))] for kind in kinds]
        while len(" ".join(words).encode()) > limit:
            words.pop()
        text, case = " ".join(words), draw.random()
        return text.lower() if case < 0.15 else text.capitalize() if case < 0.25 else text.upper() if case < 0.3 else text


def vocabularies(alone: dict[str, list[str]], shared: dict[str, list[str]]) -> list[Vocabulary]:
    """Return what each language's training texts are made of, in the order of `LISTS`. alone: without the held-out words."""
    return [
        Vocabulary(
            alone[language],
            [word for word in (*alone[language], *shared[language]) if len(word) <= SHORT],
            shared[language],
        )
        for language in LISTS
    ]
