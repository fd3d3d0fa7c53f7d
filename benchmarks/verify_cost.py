"""What `verify` of a model costs in process: seconds and memory, beside a run of Polygraphy's with two runners and all outputs marked.

    python benchmarks/verify_cost.py resnet50.rdb --rounds 5 --out benchmarks/results/DATE-cpu-verify-cost.json

Polygraphy (`pip install polygraphy`) runs the graph in ONNX Runtime with and without its optimizations, marks every tensor as an
output and compares element by element with a tolerance. It is left out where it is not installed. Each measurement is a process of
its own; the imports of NumPy and ONNX Runtime are not counted, and the rounds alternate between the tools.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: Each prints seconds of wall clock and processor, and the largest resident set in MB, from which that before the work is taken off.
PRELUDE = """
import json, resource, sys, time
import numpy as np, onnxruntime
def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
path, started, clock, before = sys.argv[1], time.perf_counter(), time.process_time(), resident()
"""
FINISH = """
facts = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - clock}
print(json.dumps({**facts, "megabytes": resident() - before, "passed": bool(passed)}))
"""
VERIFY = """
from relu_deploy.verification.run import verify
passed = verify(path, ["onnxruntime-cpu"]).passed
"""
POLYGRAPHY = """
import onnx
from polygraphy.common import TensorMetadata
from polygraphy.backend.onnx import ModifyOutputs, BytesFromOnnx, OnnxFromPath
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, DataLoader, SimpleCompareFunc
from polygraphy.constants import MARK_ALL
from polygraphy.logger import G_LOGGER
G_LOGGER.module_severity = G_LOGGER.ERROR
inputs = TensorMetadata()
for value in onnx.load(path, load_external_data=False).graph.input:
    inputs.add(value.name, np.float32, [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim])
marked = BytesFromOnnx(ModifyOutputs(OnnxFromPath(path), outputs=MARK_ALL))
plain = onnxruntime.SessionOptions()
plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
def unoptimized():
    return onnxruntime.InferenceSession(marked(), plain, providers=["CPUExecutionProvider"])
runners = [OnnxrtRunner(SessionFromOnnx(marked)), OnnxrtRunner(unoptimized, name="unoptimized")]
results = Comparator.run(runners, data_loader=DataLoader(input_metadata=inputs))
passed = bool(Comparator.compare_accuracy(results, SimpleCompareFunc(rtol=1e-3, atol=1e-3)))
"""


def measure(tool: str, path: str) -> dict[str, Any]:
    """Return what one run of a tool in a process of its own costs."""
    work = VERIFY if tool == "relu_deploy" else POLYGRAPHY
    file = path if tool == "relu_deploy" or path.endswith(".onnx") else str(Path(path) / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + work + FINISH, file], capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode:
        sys.exit(f"{tool} failed on {path}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Measure and print a table; write the raw numbers to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="bundles or ONNX files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tools = ["relu_deploy", *(["polygraphy"] if find_spec("polygraphy") else [])]
    rows = []
    for path in options.paths:
        taken: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
        for _ in range(options.rounds):
            for tool in tools:
                taken[tool].append(measure(tool, path))
        for tool in tools:
            medians = {key: statistics.median(one[key] for one in taken[tool]) for key in ("seconds", "cpu_seconds", "megabytes")}
            rows.append({"model": path, "tool": tool, **medians, "rounds": taken[tool]})
            print(f"{path:32} {tool:12} " + "  ".join(f"{key} {value:8.2f}" for key, value in medians.items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
