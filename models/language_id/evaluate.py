"""Measure a network on words whose stems it never saw, on three of them in a row, and on phrases that people say.

python models/language_id/evaluate.py [--json]
python models/language_id/evaluate.py --slice test.tsv        # (re)make the slice that ships
python models/language_id/evaluate.py --texts FOLDER          # heldout.tsv and training.tsv, to optimize and measure with
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from train import LENGTH, as_bytes
from words import FOLDER, LISTS, flat, phrases_of, read_words, split, vocabularies

from relu_deploy.zoo.nn import architecture

HERE = Path(__file__).parent
#: languages whose lists may be handed on, in the lists' own words: public domain, BSD, Apache-2.0 and "for any purpose"
FREE = ("Dutch", "English", "Polish", "Spanish")
#: held-out words of each language in the test, and of each free one in the slice that ships
WORDS, SLICE, PHRASES = 2000, 250, 500


def said_phrases() -> dict[str, list[str]]:
    """Return the phrases of phrases.tsv by language."""
    lines = (HERE / "phrases.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if not line.startswith("#")]
    return {language: [text for label, text in pairs if label == language] for language in LISTS}


def write_slice(target: Path, test: dict[str, list[str]]) -> None:
    """Write held-out words of the free lists and all phrases of phrases.tsv as `label<TAB>text`."""
    head = [f"# {SLICE} held-out words each of {', '.join(FREE)}, whose lists' licences stand in README.md; then phrases.tsv"]
    words = [f"{language}\t{word}" for language in FREE for word in test[language][:: WORDS // SLICE]]
    said = [f"{language}\t{text}" for language, texts in said_phrases().items() for text in texts]
    target.write_text("\n".join([*head, *words, *said]) + "\n", encoding="utf-8")


def measured(model: torch.nn.Module, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Return {"top1", "texts", "by_language"} of `model` on the texts of at most LENGTH bytes."""
    fitting = {language: [text for text in own if len(text.encode()) <= LENGTH] for language, own in texts.items()}
    flattened, labels = flat(fitting)
    with torch.inference_mode():
        found = torch.cat([model(as_bytes(flattened[at : at + 500])).argmax(1) for at in range(0, len(flattened), 500)])
    right = found == torch.tensor(labels)
    shares = {
        language: round(float(right[torch.tensor(labels) == index].float().mean()), 4) for index, language in enumerate(LISTS)
    }
    return {"top1": round(float(right.float().mean()), 4), "texts": len(flattened), "by_language": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, default=FOLDER, help="folder of the word lists")
    parser.add_argument("--network", choices=("text_cnn", "text_transformer"), default="text_cnn")
    parser.add_argument("--weights", type=Path, default=HERE / "weights.safetensors")
    parser.add_argument("--slice", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    words, shared = read_words(arguments.words)
    train, test = split(words, WORDS, seed=0)
    if arguments.texts:
        draw, languages = random.Random(0), dict(zip(LISTS, vocabularies(train, shared), strict=True))
        seen = {language: [own.text(draw, LENGTH) for _ in range(50)] for language, own in languages.items()}
        for name, texts in (("heldout", test), ("training", seen)):
            lines = [f"{language}\t{text}" for language, own in texts.items() for text in own]
            (arguments.texts / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    if arguments.slice:
        write_slice(arguments.slice, test)
        return
    model = architecture(arguments.network)(num_classes=len(LISTS)).eval()
    model.load_state_dict(load_file(arguments.weights))
    result = {
        "words_in_several_lists": len({word.casefold() for own in shared.values() for word in own}),
        "words": measured(model, test),
        "three_words": measured(model, phrases_of(test, 3, PHRASES, seed=0)),
        "said_phrases": measured(model, said_phrases()),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, one in result.items():
        print(name, one if isinstance(one, int) else f"top-1 {one['top1']:.4f} on {one['texts']} texts: {one['by_language']}")


if __name__ == "__main__":
    main()
