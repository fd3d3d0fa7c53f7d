"""How long it takes to look at every Relu: relu_deploy.verify beside Polygraphy, in one run, taking turns.

    pip install polygraphy==0.53.6
    python benchmarks/verify_time.py resnet50.rdb --rounds 3 --out benchmarks/results/verify-time.json

relu_deploy's verify evaluates a float64 truth and its noise, runs the model as it ships and with every Relu tapped, and
makes its checks. Polygraphy marks all tensors as outputs and runs twice, so that it has something to compare with; and
once alone, which compares nothing. Whole processes are timed, and beside them verify's own seconds inside the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from relu_deploy.benchmark.environment import describe


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = arguments.bundle / "model.onnx"
    scripts = Path(sys.executable).parent
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "verify.json"
        verify = [str(scripts / "relu-deploy"), "verify", "--quiet", "--threads", str(arguments.threads), "--json", str(result)]
        polygraphy = [
            str(scripts / "polygraphy"),
            "run",
            str(model),
            "--onnxrt",
            "--onnx-outputs",
            "mark",
            "all",
            "--input-shapes",
            "x:[1,3,224,224]",
        ]
        commands = {
            "verify, against the PyTorch program": [*verify, str(arguments.bundle)],
            "verify, against the graph in float64": [*verify, str(arguments.bundle), "--against", "reference"],
            "polygraphy run --onnxrt --onnx-outputs mark all": polygraphy,
            "polygraphy run --onnxrt --onnxrt --onnx-outputs mark all": [*polygraphy, "--onnxrt"],
        }
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                seconds.setdefault(f"{name}: whole process", []).append(timed(command))
                if name.startswith("verify"):
                    report = json.loads(result.read_text())
                    assert report["passed"], "the model to be timed must be right"
                    seconds.setdefault(f"{name}: in process", []).append(report["seconds"])
    summary = {
        name: {"median": statistics.median(values), "all": [round(value, 2) for value in values]}
        for name, values in seconds.items()
    }
    for name, values in summary.items():
        print(f"{values['median']:7.2f} s  {name}  {values['all']}")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"environment": describe(arguments.threads), "model": model.parent.name, "seconds": summary}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
