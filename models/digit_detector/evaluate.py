"""Measure the digit detector on scenes of MNIST's test digits, with COCO's own evaluator.

python models/digit_detector/evaluate.py --data MNIST_FOLDER [--scenes 1000] [--json]
python models/digit_detector/evaluate.py --data MNIST_FOLDER --slice test.npz    # (re)make the slice that ships: 100 scenes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scenes import SIDE, Scene, load_digits, make_scenes
from train import MEAN, STD

from relu_deploy.tasks.detection import postprocess
from relu_deploy.tasks.metrics import coco_ap
from relu_deploy.zoo.nn.digits import DigitDetector

#: test scenes follow from this seed, which training never uses
TEST_SEED = 20_000


def as_arrays(scenes: list[Scene]) -> dict[str, np.ndarray]:
    """Return scenes as a data set: `x` uint8 (N, H, W, 1), and for each box its `image`."""
    return {
        "x": np.stack([scene.pixels for scene in scenes])[..., None],
        "boxes": np.concatenate([scene.boxes for scene in scenes]),
        "labels": np.concatenate([scene.labels for scene in scenes]),
        "image": np.concatenate([np.full(len(scene.boxes), index) for index, scene in enumerate(scenes)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--slice", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    digits, labels = load_digits(arguments.data, "t10k")
    arrays = as_arrays(make_scenes(digits, labels, 100 if arguments.slice else arguments.scenes, TEST_SEED))
    if arguments.slice:
        np.savez_compressed(arguments.slice, **arrays)
        return
    model = DigitDetector().eval()
    model.load_state_dict(load_file(arguments.weights))
    decode = model.decoder(SIDE, SIDE)
    found = []
    for pixels in np.array_split(arrays["x"], max(1, len(arrays["x"]) // 50)):
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
        with torch.inference_mode():
            boxes, scores = decode(*model(images))
        found += postprocess(boxes.numpy(), scores.numpy(), score_threshold=0.05, iou_threshold=0.5, max_detections=50)
    result = {"scenes": len(arrays["x"]), "digits": len(arrays["labels"]), **coco_ap(found, arrays, len(arrays["x"]))}
    print(
        json.dumps(result)
        if arguments.json
        else f"AP {result['AP']:.4f}  AP50 {result['AP50']:.4f}  on {result['scenes']} scenes"
    )


if __name__ == "__main__":
    main()
