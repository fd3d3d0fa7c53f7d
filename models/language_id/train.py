"""Train a network that names the language of a word or short phrase, and write its weights.

python models/language_id/train.py --network text_cnn --out weights.safetensors
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from words import FOLDER, LISTS, read_words, split, vocabularies

from relu_deploy.zoo.nn import architecture

#: bytes of UTF-8 of the longest text that the shipped model takes
LENGTH = 64


def as_bytes(texts: list[str]) -> Tensor:
    """Return the texts' UTF-8 bytes, uint8 (N, longest), filled up with zeros: shorter than the model's own length, and faster."""
    encoded = [text.encode() for text in texts]
    longest = max(map(len, encoded))
    return torch.frombuffer(bytearray(b"".join(one.ljust(longest, b"\0") for one in encoded)), dtype=torch.uint8).reshape(
        -1, longest
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=Path, default=FOLDER, help="folder of the word lists")
    parser.add_argument("--network", choices=("text_cnn", "text_transformer"), default="text_cnn")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    draw = random.Random(arguments.seed)
    alone, shared = read_words(arguments.words)
    languages = vocabularies(split(alone, 0, 0)[0], shared)
    model = architecture(arguments.network)(num_classes=len(LISTS)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.rate, total_steps=arguments.steps, pct_start=0.1)
    started, total, step = time.time(), 0.0, 0
    while step < arguments.steps:
        # Texts of like length go together: little of a batch is padding.
        labels = [draw.randrange(len(languages)) for _ in range(32 * arguments.batch)]
        pairs = sorted(((languages[label].text(draw, LENGTH), label) for label in labels), key=lambda pair: len(pair[0]))
        batches = [pairs[at : at + arguments.batch] for at in range(0, len(pairs), arguments.batch)]
        draw.shuffle(batches)
        for batch in batches[: arguments.steps - step]:
            logits = model(as_bytes([text for text, _ in batch]))
            loss = F.cross_entropy(logits, torch.tensor([label for _, label in batch]), label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            total += loss.item()
            if step % 200 == 0:
                print(f"step {step}/{arguments.steps}  loss {total / 200:.4f}  {time.time() - started:.0f} s", flush=True)
                total = 0.0
                assert math.isfinite(loss.item())
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, arguments.out)


if __name__ == "__main__":
    main()
