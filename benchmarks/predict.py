"""`predict` on many pictures beside a plain loop over `session.run`, Ray Data and Apache Beam, and after a kill.

    python benchmarks/predict.py BUNDLE --pictures 2000 --rounds 3 --out predict.json
    python benchmarks/predict.py BUNDLE --pictures 2000 --engines --out predict.json     # also Ray and Beam, one run of each

The loop opens one picture after the other with Pillow, prepares it as the bundle's manifest says, and runs it alone; it writes
the same rows. It and `predict` run in turns, on the same backend and all processors. Ray and Beam run with two workers, one thread
each, where they are installed; what starts them is measured apart. For the kill, `predict` runs as a command of its own, is ended with
SIGKILL in the middle, and is run again: its rows are compared with those of a run that was not killed. The pictures are drawn at
random, as JPEG files of photograph size.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relu_deploy.backends.threads import find_threads
from relu_deploy.benchmark.environment import describe
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.prediction.run import predict

WORKERS = 2


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


def our_way(bundle: str, backend: str, folder: Path, out: Path, **options: Any) -> float:
    """Run `predict` and return the seconds that it took."""
    started = time.perf_counter()
    with Predictor(bundle, backend, **options) as predictor:
        predict(predictor, [folder], out)
    return time.perf_counter() - started


def with_ray(bundle: str, backend: str, folder: Path, batch: int) -> tuple[float, float, list[str]]:
    """Return the seconds to start Ray, those to score the pictures, and the rows."""
    import ray

    started = time.perf_counter()
    from relu_deploy.integrations.ray import RayPredictor, files_dataset

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    ready = time.perf_counter()
    try:
        rows = files_dataset(bundle, [folder], batch=batch).map_batches(
            RayPredictor,
            fn_constructor_args=(bundle, backend),
            fn_constructor_kwargs={"batch": batch, "threads": 1},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=WORKERS),
        )
        lines = [row["row"] for row in rows.iter_rows()]
    finally:
        ray.shutdown()
    return ready - started, time.perf_counter() - ready, lines


def with_beam(bundle: str, backend: str, folder: Path, batch: int) -> tuple[float, float, list[str]]:
    """Return 0, the seconds to score the pictures with two worker processes, which includes their start, and the rows."""
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.options.pipeline_options import PipelineOptions

    started = time.perf_counter()
    from relu_deploy.integrations.beam import BundleModelHandler

    handler = BundleModelHandler(bundle, backend, batch=batch, threads=1)
    settings = PipelineOptions(
        runner="DirectRunner", direct_num_workers=WORKERS, direct_running_mode="multi_processing", save_main_session=False
    )
    with tempfile.TemporaryDirectory() as name:
        with beam.Pipeline(options=settings) as pipeline:
            _ = (
                pipeline
                | beam.Create(handler.file_batches([folder]))
                | beam.Reshuffle()
                | RunInference(handler)
                | beam.FlatMap(lambda result: result.inference)
                | beam.io.WriteToText(f"{name}/rows", ".jsonl")
            )
        lines = [line for file in Path(name).glob("rows*") for line in file.read_text(encoding="utf-8").splitlines()]
    return 0.0, time.perf_counter() - started, lines


ENGINES: dict[str, tuple[str, Callable[..., tuple[float, float, list[str]]]]] = {
    "ray": ("ray", with_ray),
    "beam": ("apache_beam", with_beam),
}


def engines(options: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    """Return the seconds of each engine that is installed, and whether its rows are those of `predict`."""
    reference = Path(name, "reference.jsonl")
    our_way(options.bundle, options.backend, folder, reference, batch=options.batch, threads=1)
    expected = sorted(reference.read_text(encoding="utf-8").splitlines())
    found: dict[str, Any] = {}
    for engine, (module, run) in ENGINES.items():
        if find_spec(module) is None or find_spec("relu_deploy.integrations") is None:
            print(f"{engine} is not installed", flush=True)
            continue
        start, seconds, lines = run(options.bundle, options.backend, folder, options.batch)
        found[engine] = {
            "workers": WORKERS,
            "start_seconds": round(start, 3),
            "seconds": round(seconds, 3),
            "pictures_per_second": round(options.pictures / seconds, 2),
            "same_rows": sorted(lines) == expected,
        }
        print(engine, found[engine], flush=True)
    return found


def killed_and_resumed(options: argparse.Namespace, folder: Path, name: str, whole: Path) -> dict[str, Any]:
    """Kill `predict` in the middle, run it again, and return whether its rows are those of a run that was not killed."""
    out = Path(name, "killed.jsonl")
    words = [sys.executable, "-m", "relu_deploy", "predict", options.bundle, str(folder), "-o", str(out), "--quiet"]
    words += ["--backend", options.backend, "--batch", str(options.batch)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < options.pictures // 2):
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        code = running.wait()
    left = out.read_bytes().count(b"\n")
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    result = {"exit_code": code, "rows_before": left, "same_rows": out.read_bytes() == whole.read_bytes()}
    print("kill", result, flush=True)
    return result


def labels_of(file: Path) -> list[str]:
    return [json.loads(line)["predictions"][0]["label"] for line in file.read_text().splitlines()]


def in_turns(options: argparse.Namespace, folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the seconds of the loop and of `predict`, in turns, and whether they predict the same."""
    rounds = []
    for number in range(options.rounds):
        loop, ours = Path(name, f"loop-{number}.jsonl"), Path(name, f"predict-{number}.jsonl")
        loop_seconds = plain_loop(options.bundle, options.backend, folder, loop)
        predict_seconds = our_way(options.bundle, options.backend, folder, ours, batch=options.batch)
        rounds.append(
            {
                "loop_seconds": round(loop_seconds, 3),
                "predict_seconds": round(predict_seconds, 3),
                "loop_pictures_per_second": round(options.pictures / loop_seconds, 2),
                "predict_pictures_per_second": round(options.pictures / predict_seconds, 2),
                "same_labels": labels_of(loop) == labels_of(ours),
            }
        )
        print(rounds[-1], flush=True)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="onnxruntime-cpu")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", action="store_true", help="also Ray Data and Apache Beam, where they are installed")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "pictures")
        folder.mkdir()
        draw_pictures(folder, options.pictures, options.side)
        rounds = in_turns(options, folder, name)
        killed = killed_and_resumed(options, folder, name, Path(name, "predict-0.jsonl"))
        found = engines(options, folder, name) if options.engines else {}
    result = {
        "environment": describe(find_threads()),
        "bundle": Path(options.bundle).name,
        "backend": options.backend,
        "pictures": options.pictures,
        "size": [options.side * 4 // 3, options.side],
        "batch": options.batch,
        "rounds": rounds,
        "killed": killed,
        "engines": found,
    }
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
