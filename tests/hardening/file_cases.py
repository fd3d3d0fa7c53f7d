"""Cases of corrupt or hostile files, each determined by its kind and a seed, with the commands that read them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from archive_mutations import hostile_arrays, hostile_program, hostile_weights
from manifest_mutations import hostile_bundle
from media_mutations import hostile_labels, hostile_picture, hostile_texts
from model_mutations import hostile_model
from settings_mutations import hostile_settings

__all__ = ["KINDS", "Case", "Originals", "make_case"]

#: kinds of files and their shares
KINDS = {
    "model": 55,
    "bundle": 20,
    "arrays": 8,
    "pictures": 6,
    "texts": 3,
    "labels": 2,
    "weights": 4,
    "program": 2,
    "settings": 5,
}
#: the largest tensor that is allowed, in GB: small, so that a case which allocates it fits any machine
MEMORY = ("--max-memory", "0.25")


@dataclass(frozen=True)
class Originals:
    """Valid files that the cases start from.

    Attributes:
        tiny: A bundle of a small network that takes x, float32 (N, 4).
        arrays: Inputs for it.
        pictures: A bundle that takes pictures, with its PyTorch program.
        texts: A bundle that takes texts.
        canary: The folder that a payload makes.
    """

    tiny: Path
    arrays: Path
    pictures: Path
    texts: Path
    canary: Path


@dataclass(frozen=True)
class Case:
    """Files on the disk and the commands that read them.

    Attributes:
        kind: A key of `KINDS`.
        label: What was done.
        commands: The words of each command.
    """

    kind: str
    label: str
    commands: tuple[tuple[str, ...], ...]


def make_case(kind: str, seed: int, folder: Path, originals: Originals) -> Case:
    """Write the files of a case into the empty `folder`."""
    draw = random.Random(f"{kind} {seed}")
    label, commands = _MAKERS[kind](draw, seed, folder, originals)
    return Case(kind, label, tuple(tuple(str(word) for word in (*words, "--quiet", *MEMORY)) for words in commands))


Made = tuple[str, list[list[object]]]


def _model(draw: random.Random, seed: int, folder: Path, originals: Originals) -> Made:
    label, content = hostile_model(seed, ((originals.tiny / "model.onnx").read_bytes(),))
    file = folder / "m.onnx"
    file.write_bytes(content)
    (folder / "weights.bin").write_bytes(bytes(100))
    np.savez(folder / "x.npz", x=np.zeros((2, 4), np.float32))
    rare: list[list[object]] = [
        ["census", file, "--data", folder / "x.npz", "--threads", "1"],
        ["optimize", file, "--precision", "fp16", "--threads", "1", "-o", folder / "fast.rdb"],
        [
            "package",
            file,
            "--for",
            "triton",
            "-o",
            folder / "repository",
            "--device",
            "cpu",
            "--max-batch",
            "4",
            "--max-delay",
            "0",
        ],
        ["predict", file, folder / "x.npz"],
    ]
    verify: list[object] = ["verify", file, "--threads", "1"]
    usual: list[list[object]] = [verify, verify, ["export", file, "-o", folder / "out.rdb"], ["inspect", file]]
    return label, [draw.choice(rare if draw.random() < 0.1 else usual)]


def _bundle(draw: random.Random, seed: int, folder: Path, originals: Originals) -> Made:
    bundle = folder / "m.rdb"
    shutil.copytree(originals.tiny, bundle)
    label = hostile_bundle(bundle, draw, folder, seed)
    usual: list[list[object]] = [["inspect", bundle], ["verify", bundle, "--threads", "1"]]
    rare: list[list[object]] = [
        ["census", bundle, "--data", originals.arrays, "--threads", "1"],
        ["package", bundle, "--for", "docker", "-o", folder / "image", "--device", "cpu", "--max-batch", "4", "--max-delay", "0"],
        ["optimize", bundle, "--precision", "fp16", "--threads", "1"],
        ["predict", bundle, originals.arrays],
        ["export", bundle / "model.onnx", "-o", folder / "out.rdb"],
        ["verify", bundle / "variants" / "v.onnx", "--threads", "1"],
    ]
    return label, [draw.choice(rare if draw.random() < 0.3 else usual)]


def _arrays(draw: random.Random, _: int, folder: Path, originals: Originals) -> Made:
    file = folder / "x.npz"
    label = hostile_arrays(file, draw, originals.canary)
    return label, [
        draw.choice(
            [
                ["verify", originals.tiny / "model.onnx", "--inputs", file, "--threads", "1"],
                ["census", originals.tiny / "model.onnx", "--data", file, "--threads", "1"],
                ["predict", originals.tiny, file],
            ]
        )
    ]


def _pictures(draw: random.Random, _: int, folder: Path, originals: Originals) -> Made:
    pictures = folder / "pictures"
    pictures.mkdir()
    label = hostile_picture(pictures, draw)
    census = ["census", originals.pictures / "model.onnx", "--data", pictures, "--threads", "1"]
    return label, [draw.choice([["predict", originals.pictures, pictures], census])]


def _texts(draw: random.Random, _: int, folder: Path, originals: Originals) -> Made:
    label, file = hostile_texts(folder, draw)
    if draw.random() < 0.7:
        return label, [["predict", originals.texts, file]]
    bundle = folder / "m.rdb"
    shutil.copytree(originals.texts, bundle)
    return label, [["verify", bundle, "--data", file, "--threads", "1", "--against", "reference"]]


def _labels(draw: random.Random, _: int, folder: Path, originals: Originals) -> Made:
    label, file = hostile_labels(folder, draw)
    return label, [["export", originals.tiny / "model.onnx", "--labels", file, "-o", folder / "out.rdb"]]


def _weights(draw: random.Random, _: int, folder: Path, originals: Originals) -> Made:
    label, file = hostile_weights(folder, draw, originals.canary)
    return label, [["export", "digits", "--weights", file, "-o", folder / "out.rdb"]]


def _program(draw: random.Random, _: int, folder: Path, originals: Originals) -> Made:
    bundle = folder / "m.rdb"
    shutil.copytree(originals.pictures, bundle)
    label = hostile_program(bundle / "source.pt2", draw, originals.canary)
    if draw.random() < 0.5:
        return label, [["export", bundle / "source.pt2", "-o", folder / "out.rdb"]]
    from manifest_mutations import reseal

    reseal(bundle)
    against = draw.choice(([], ["--against", "torch"]))
    return label, [["verify", bundle, *against, "--threads", "1"]]


def _settings(draw: random.Random, _: int, folder: Path, originals: Originals) -> Made:
    label, kind, file = hostile_settings(folder, draw, originals.tiny / "model.onnx")
    optimize = ["optimize", originals.tiny, "--precision", "int8", "--calibration", originals.arrays, "--threads", "1"]
    commands: dict[str, list[object]] = {
        "preprocess": ["export", originals.pictures / "model.onnx", "--preprocess", file, "-o", folder / "out.rdb"],
        "compare": ["bench", originals.tiny, "--compare", file, "--seconds", "0.05", "--threads", "1"],
        "sensitivity": [*optimize, "--sensitivity", file, "-o", folder / "fast.rdb"],
    }
    return f"{kind}: {label}", [commands[kind]]


_MAKERS: dict[str, Callable[[random.Random, int, Path, Originals], Made]] = {
    "model": _model,
    "bundle": _bundle,
    "arrays": _arrays,
    "pictures": _pictures,
    "texts": _texts,
    "labels": _labels,
    "weights": _weights,
    "program": _program,
    "settings": _settings,
}
