"""Measure the digit classifier on MNIST's 10,000 test images.

python models/digits/evaluate.py --data MNIST_FOLDER [--json]
python models/digits/evaluate.py --data MNIST_FOLDER --slice test.npz      # (re)make the slice that ships: the first 1000
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from train import load_digits, normalized

from relu_deploy.zoo.nn.digits import DigitNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--slice", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    images, labels = load_digits(arguments.data, "t10k")
    if arguments.slice:
        np.savez_compressed(arguments.slice, x=images[:1000].permute(0, 2, 3, 1).numpy(), labels=labels[:1000].numpy())
        return
    model = DigitNet().eval()
    model.load_state_dict(load_file(arguments.weights))
    with torch.inference_mode():
        logits = torch.cat([model(normalized(part)) for part in images.split(500)])
    right = int((logits.argmax(1) == labels).sum())
    result = {"images": len(images), "right": right, "top1": right / len(images)}
    print(json.dumps(result) if arguments.json else f"top-1 {result['top1']:.4f} ({right} of {len(images)} test images)")


if __name__ == "__main__":
    main()
