"""Measure the digit segmenter on scenes of MNIST's test digits: the mean IoU over ground and the ten digits.

python models/digit_segmenter/evaluate.py --data MNIST_FOLDER [--scenes 500] [--json]
python models/digit_segmenter/evaluate.py --data MNIST_FOLDER --slice FILE [--scenes 500]   # write scenes as a data set instead

The slice that ships is `--slice test.npz --scenes 100`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from clutter import make_scenes
from safetensors.torch import load_file
from scenes import Scene, load_digits
from train import as_batch

from relu_deploy.tasks.segmentation import classes_of_pixels, confusion, mean_iou
from relu_deploy.zoo.nn.digits import DigitSegmenter

#: test scenes follow from this seed, which training never uses
TEST_SEED = 30_000
CLASSES = 11


def as_arrays(scenes: list[Scene]) -> dict[str, np.ndarray]:
    """Return scenes as a data set: `x` uint8 (N, H, W, 1) and `mask` uint8 (N, H, W)."""
    return {"x": np.stack([scene.pixels for scene in scenes])[..., None], "mask": np.stack([scene.mask for scene in scenes])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--slice", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    digits, labels = load_digits(arguments.data, "t10k")
    scenes = make_scenes(digits, labels, arguments.scenes, TEST_SEED)
    if arguments.slice:
        np.savez_compressed(arguments.slice, **as_arrays(scenes))
        return
    model = DigitSegmenter().eval()
    model.load_state_dict(load_file(arguments.weights))
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for start in range(0, len(scenes), 20):
        images, true = as_batch(scenes[start : start + 20])
        with torch.inference_mode():
            counts += confusion(classes_of_pixels(model(images).numpy()), true.numpy(), CLASSES)
    both = np.diag(counts)
    result = {
        "scenes": len(scenes),
        "digits": sum(len(scene.labels) for scene in scenes),
        "mIoU": mean_iou(counts),
        "IoU": (both / (counts.sum(0) + counts.sum(1) - both)).round(4).tolist(),
        "pixels_right": float(both.sum() / counts.sum()),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        f"mIoU {result['mIoU']:.4f}  pixels right {result['pixels_right']:.4f}  on {len(scenes)} scenes, {result['digits']} digits"
    )
    print("IoU", "  ".join(f"{name} {iou:.3f}" for name, iou in zip(["ground", *"0123456789"], result["IoU"], strict=True)))


if __name__ == "__main__":
    main()
