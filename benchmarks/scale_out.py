"""Pictures a second of `predict`, a plain loop, Ray Data and Apache Beam on the same pictures, and whether the rows are equal.

    python benchmarks/scale_out.py BUNDLE FOLDER [--workers 2] [--json FILE]

Engines that are not installed are left out. The time of each includes opening the model; that of Ray and Beam their start, too,
which `steady` leaves out where an engine can be run a second time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relu_deploy.integrations.scoring import file_batches
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.prediction.run import predict


def by_predict(bundle: str, folder: str, threads: int, out: Path) -> list[str]:
    """Return the rows of `predict`."""
    with Predictor(bundle, threads=threads) as predictor:
        predict(predictor, [folder], out / "rows.jsonl", force=True)
    return (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()


def by_loop(bundle: str, folder: str, threads: int) -> int:
    """Run a plain loop over `session.run`, one picture at a time, and return the number of pictures."""
    from relu_deploy.prediction.preparation import prepare_picture

    with Predictor(bundle, threads=threads) as predictor:
        files = [file for batch in file_batches(predictor, [folder]) for file in batch]
        for file in files:
            predictor.session.run(prepare_picture(predictor.bundle, Path(file).read_bytes()).feeds)
    return len(files)


def by_ray(bundle: str, folder: str, workers: int) -> list[str]:
    """Return the rows of Ray Data."""
    import ray

    from relu_deploy.integrations.ray import RayPredictor, files_dataset

    rows = files_dataset(bundle, [folder]).map_batches(
        RayPredictor,
        fn_constructor_args=(bundle,),
        fn_constructor_kwargs={"threads": 1},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    return [row["row"] for row in rows.iter_rows()]


def by_beam(bundle: str, folder: str, workers: int, out: Path) -> list[str]:
    """Return the rows of Apache Beam's local runner."""
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.options.pipeline_options import PipelineOptions

    from relu_deploy.integrations.beam import BundleModelHandler

    handler = BundleModelHandler(bundle, threads=1)
    options = ("--runner=FnApiRunner", f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing")
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = (
            pipeline
            | beam.Create(handler.file_batches([folder]))
            | beam.Reshuffle()
            | RunInference(handler)
            | beam.FlatMap(lambda result: result.inference)
            | beam.io.WriteToText(str(out / "beam"), ".jsonl")
        )
    return [line for file in out.glob("beam*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]


def timed(name: str, run: Callable[[], Sequence[str] | int], expected: Sequence[str] | None) -> dict[str, Any]:
    """Run an engine, print its figures and return them."""
    started = time.perf_counter()
    rows = run()
    seconds = time.perf_counter() - started
    count = rows if isinstance(rows, int) else len(rows)
    same = None if expected is None or isinstance(rows, int) else sorted(rows) == sorted(expected)
    print(f"{name:24} {count} pictures {seconds:8.2f} s {count / seconds:8.1f} a second   rows of predict: {same}", flush=True)
    return {"engine": name, "pictures": count, "seconds": round(seconds, 3), "same_rows": same}


def main() -> None:
    """Run the engines that are installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundle, folder, workers = options.bundle, options.folder, options.workers
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        expected = by_predict(bundle, folder, workers, out)
        results = [
            timed("predict", lambda: by_predict(bundle, folder, workers, out), expected),
            timed("loop over session.run", lambda: by_loop(bundle, folder, workers), None),
        ]
        if find_spec("ray") is not None:
            import ray

            started = time.perf_counter()
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
            print(f"Ray started in {time.perf_counter() - started:.2f} s", flush=True)
            results.append(timed(f"ray, {workers} workers", lambda: by_ray(bundle, folder, workers), expected))
            results.append(timed("ray, steady", lambda: by_ray(bundle, folder, workers), expected))
            ray.shutdown()
        if find_spec("apache_beam") is not None:
            results.append(timed(f"beam, {workers} workers", lambda: by_beam(bundle, folder, workers, out), expected))
    if options.json:
        options.json.write_text(json.dumps({"workers": workers, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
