"""`predict` on 2,000 pictures beside a plain loop over `session.run`, in turns: pictures a second, and whether the rows agree.

    python benchmarks/predict.py BUNDLE --pictures 2000 --rounds 3 --out predict.json

The loop opens one picture after the other with Pillow, prepares it as the bundle's manifest says, and runs it alone; it writes
the same rows. Both use the same backend and all processors. The pictures are drawn at random, as JPEG files of photograph size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from relu_deploy.backends.base import default_threads
from relu_deploy.benchmark.environment import describe
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.prediction.run import predict


def draw_pictures(folder: Path, count: int, side: int) -> None:
    """Write `count` JPEG files: smooth random colors, which decode and compress like photographs."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg")


def plain_loop(bundle: str, backend: str, folder: Path, out: Path) -> float:
    """Predict one picture after the other and return the seconds that it took."""
    started = time.perf_counter()
    with Predictor(bundle, backend, batch=1) as predictor, out.open("w") as rows:
        for file in sorted(folder.iterdir()):
            (result,) = predictor.predict([file])
            rows.write(json.dumps({"input": file.as_posix(), "model": predictor.model_id, **result}, ensure_ascii=False) + "\n")
    return time.perf_counter() - started


def our_way(bundle: str, backend: str, folder: Path, out: Path, batch: int) -> float:
    """Run `predict` and return the seconds that it took."""
    started = time.perf_counter()
    with Predictor(bundle, backend, batch=batch) as predictor:
        predict(predictor, [folder], out)
    return time.perf_counter() - started


def labels_of(file: Path) -> list[str]:
    return [json.loads(line)["predictions"][0]["label"] for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "pictures")
        folder.mkdir()
        draw_pictures(folder, options.pictures, options.side)
        for number in range(options.rounds):
            loop, ours = Path(name, f"loop-{number}.jsonl"), Path(name, f"predict-{number}.jsonl")
            rounds.append(
                {
                    "loop_seconds": round(plain_loop(options.bundle, options.backend, folder, loop), 3),
                    "predict_seconds": round(our_way(options.bundle, options.backend, folder, ours, options.batch), 3),
                    "same_labels": labels_of(loop) == labels_of(ours),
                }
            )
            print(rounds[-1], flush=True)
    result = {
        "environment": describe(default_threads()),
        "bundle": Path(options.bundle).name,
        "backend": options.backend,
        "pictures": options.pictures,
        "size": [options.side * 4 // 3, options.side],
        "batch": options.batch,
        "rounds": rounds,
    }
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
