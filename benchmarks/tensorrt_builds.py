"""Whether every TensorRT variant of every zoo model is compiled ahead of time for TensorRT-RTX, without a GPU, and only once.

    pip install 'relu-deploy[rtx]'
    python benchmarks/tensorrt_builds.py --out benchmarks/results/tensorrt-builds.json [--models resnet50,fcos]

Weights are random where a model ships none, and calibration is on random inputs: this is about what the parser and the
builder take, not about accuracy. A build on a machine without the GPU says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.benchmark.environment import describe
from relu_deploy.compilation.run import compile as compile_engine
from relu_deploy.errors import ReluDeployError
from relu_deploy.exporting.exporter import export_source
from relu_deploy.graph import load_model, normalize_model, save_model
from relu_deploy.graph.quantization.cast_precision import range_reasons
from relu_deploy.graph.rewriting.opset import raise_opset
from relu_deploy.graph.rewriting.simplify import fold_batch_norms, pool_spatial_means
from relu_deploy.optimization.accuracy.calibration import calibrate
from relu_deploy.optimization.recipes import Casts, Quantized, Unchanged, calibrated_tensors
from relu_deploy.optimization.targets import PRECISIONS
from relu_deploy.tensors import random_feeds
from relu_deploy.zoo.recipes import recipes


def recipe_of(model, precision: str, statistics: dict):
    if precision == "fp32":
        return Unchanged(model)
    if precision in ("fp16", "bf16"):
        largest = {name: one.largest for name, one in statistics.items()}
        return Casts(model, precision, range_reasons(model, PRECISIONS[precision], largest))
    return Quantized(model, precision, "tensorrt", statistics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(recipes()))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            bundle = export_source(name, Path(folder) / f"{name}.rdb").bundle
            model = pool_spatial_means(fold_batch_norms(raise_opset(normalize_model(load_model(bundle.onnx), name), 19)))
            watched = list(dict.fromkeys(t for one in ("fp16", "int8") for t in calibrated_tensors(model, one, "tensorrt")))
            statistics = calibrate(model, [random_feeds(bundle.inputs, 1)], watched, 2)
            for precision in PRECISIONS:
                recipe = recipe_of(model, precision, statistics)
                path = Path(folder) / f"{precision}.onnx"
                save_model(recipe.build(), path)
                row = {"model": name, "precision": precision, "float32_nodes": len(recipe.float_nodes())}
                expected = ("SM89", "SM120") if precision == "fp8" else ("SM86", "SM89", "SM120")
                options, cache = BuildOptions(((1, 1, 8),), expected), f"{folder}/engines/"
                try:
                    built, again = (compile_engine(path, "tensorrt-rtx", out=cache, options=options) for _ in range(2))
                    reported = {
                        key: built.to_json()[key] for key in ("backend", "library", "device", "bytes", "layers", "build_seconds")
                    }
                    row |= {**reported, "warnings": built.to_json()["warnings"], "built": not built.cache_hit}
                    row |= {"again_is_cache_hit": again.cache_hit, "again_seconds": round(again.seconds, 3)}
                except ReluDeployError as error:
                    row |= {"built": False, "message": error.message}
                rows.append(row)
                print(name, precision, row["built"], row.get("message", f"{row.get('build_seconds', 0):.2f} s"), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"environment": describe(2), "rows": rows}, indent=1, default=str) + "\n")
    assert np.all([row["built"] and row["again_is_cache_hit"] for row in rows]), "some were not built: see above"


if __name__ == "__main__":
    main()
