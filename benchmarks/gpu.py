"""Everything that only a GPU can tell, in one call: what is usable, whether kernels and graphs are right, and how fast.

    python benchmarks/gpu.py --minutes 8 --out benchmarks/results/2026-11-26-h100.json
    python benchmarks/gpu.py --parts environment,prove --wheels wheels/      # install what lies there first, into its own folder
    python benchmarks/gpu_page.py benchmarks/results/2026-11-26-h100.json    # docs/gpu-results.md

Each task runs in a process of its own with a time limit, and what it has found by then is kept: a crash, a hang or a
missing library costs that task alone. The file is written anew after every task. What a task could not do stands in the
file with the reason. Nothing on the machine is set: clocks and power are read.

    environment   the GPU, its driver, libraries, usable backends, and the rates that its limits are made of
    rtx           whether TensorRT-RTX runs on this GPU at all, in its own words
    prove         every bit pattern of each dtype through each backend's own Relu
    verify        every Relu of ResNet-50 and of the digit detector on each backend
    bench         models by precision and batch: GPU time, copies, launching, share of the limit, ratio to torch.compile
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relu_deploy.bundle import write_atomically

SCHEMA = "relu-deploy/gpu/1"
PARTS = ("environment", "rtx", "prove", "verify", "bench")
#: seconds that one task of a part may take, and the share of all time by which the part has to be over
LIMITS = {"environment": (90, 1.0), "rtx": (60, 1.0), "prove": (60, 0.4), "verify": (90, 0.6), "bench": (240, 1.0)}
BACKENDS = ("onnxruntime-cuda", "torch-cuda", "torch-compile-cuda", "tensorrt", "tensorrt-rtx")
#: what stands in for each backend when only the course of things is tried out, on a machine without a GPU
ON_CPU = {"onnxruntime-cuda": "onnxruntime-cpu", "torch-cuda": "torch", "torch-compile-cuda": "torch-compile"}
DTYPES = ("float32", "float16", "bfloat16", "int8")
MODELS = ("resnet50", "digits", "digit_detector", "mobilenet_v2", "retinanet_resnet50_fpn")
PRECISIONS = ("tf32", "fp16", "int8", "fp32", "bf16")
BATCHES = (1, 64, 8, 256, 32, 128, 16, 4, 2)


@dataclass(frozen=True)
class Task:
    """One process: what it does, and what it needs to know."""

    part: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def plan(options: argparse.Namespace, usable: dict[str, str]) -> Iterator[Task]:
    """Yield the tasks after `environment`, the most telling first. usable: backend → "", or why it is not usable."""
    backends = [name for name, why in usable.items() if not why]
    if "rtx" in options.parts:
        yield Task("rtx", "tensorrt-rtx")
    if "prove" in options.parts:
        for dtype in sorted(options.dtypes, key=lambda one: one == "float32"):
            for backend in backends:
                if not backend.startswith("torch-compile") and not backend.startswith("tensorrt"):
                    yield Task("prove", f"{backend} {dtype}", {"backend": backend, "dtype": dtype})
    if "verify" in options.parts:
        for model in ("digit_detector", "resnet50"):
            if model in options.models:
                for backend in backends:
                    yield Task("verify", f"{backend} {model}", {"backend": backend, "model": model})
    if "bench" in options.parts and backends:
        for model in options.models:
            for precision in options.precisions:
                arguments = {"model": model, "precision": precision, "batches": options.batches, "backends": backends}
                arguments |= {"seconds": options.seconds, "torch_mode": options.torch_mode}
                yield Task("bench", f"{model} {precision}", arguments)


def run(task: Task, limit: float, work: Path) -> dict[str, Any]:
    """Return what became of `task` within `limit` seconds: its result as far as it got, and why there is no more."""
    outcome: dict[str, Any] = {"part": task.part, "name": task.name, "status": "done", "reason": "", "seconds": 0.0}
    given, result, said = work / "task.json", work / "result.json", work / "said.txt"
    given.write_text(json.dumps({"part": task.part, "arguments": task.arguments, "work": str(work), "result": str(result)}))
    result.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("gpu_tasks.py")), str(given)]
    started = time.monotonic()
    with said.open("w") as stream:
        # A group of its own, so that its workers end with it.
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=max(1.0, limit))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outcome["seconds"] = round(time.monotonic() - started, 2)
    try:
        found = json.loads(result.read_text())
    except (OSError, ValueError):
        found = {}
    outcome["result"] = found.get("result")
    if code is None:
        outcome |= {"status": "out of time", "reason": f"stopped after {outcome['seconds']:.0f} s"}
    elif "unusable" in found:
        outcome |= {"status": "not usable here", "reason": found["unusable"]}
    elif code:
        lines = [line for line in said.read_text(errors="replace").strip().splitlines() if not line.startswith("hint:")]
        outcome |= {"status": "failed", "reason": (lines[-1] if lines else f"exit code {code}")[:400], "log": lines[-12:]}
    return outcome


def conduct(options: argparse.Namespace) -> dict[str, Any]:
    """Return the whole file, which is also written after every task."""
    began = time.monotonic()
    total = options.minutes * 60
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": options.minutes,
        "override": options.backend_override,
        "command": sys.argv[1:],
        "tasks": [],
    }

    def keep(task: Task) -> dict[str, Any]:
        own, share = LIMITS[task.part]
        left = min(own, total * share - (time.monotonic() - began))
        if left < 3:
            outcome = {"part": task.part, "name": task.name, "status": "out of time", "reason": "not started", "seconds": 0.0}
        else:
            outcome = run(task, left, options.work)
        report["tasks"].append(outcome)
        report["seconds"] = round(time.monotonic() - began, 1)
        write_atomically(options.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        print(f"[{report['seconds']:6.1f} s] {task.part}: {task.name}: {outcome['status']} {outcome['reason']}", file=sys.stderr)
        return outcome

    override = options.backend_override == "cpu"
    names = [ON_CPU[name] if override else name for name in options.backends if not override or name in ON_CPU]
    first = keep(Task("environment", "environment", {"backends": names, "rates": not override}))
    usable = (first.get("result") or {}).get("usable", {})
    for task in plan(options, usable):
        keep(task)
    return report


def listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", type=listed, default=list(PARTS), help=f"of {','.join(PARTS)}; the environment is always read")
    parser.add_argument("--backends", type=listed, default=list(BACKENDS))
    parser.add_argument("--models", type=listed, default=list(MODELS))
    parser.add_argument("--precisions", type=listed, default=list(PRECISIONS))
    parser.add_argument("--batches", type=lambda text: [int(one) for one in listed(text)], default=list(BATCHES))
    parser.add_argument("--dtypes", type=listed, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed runs per row")
    parser.add_argument("--torch-mode", default="max-autotune", help="of torch.compile")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install, into a folder of their own")
    parser.add_argument("--work", type=Path, help="folder for exported models, to use them again (default: a temporary one)")
    parser.add_argument("--backend-override", choices=["", "cpu"], default="", help="cpu: try out the course of things only")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory(prefix="relu-deploy-gpu-") as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        if options.wheels:
            place = Path(folder) / "wheels"
            files = [str(file) for file in sorted(options.wheels.glob("*.whl"))]
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(place), *files], check=True
            )
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")]))
        report = conduct(options)
    counts = {status: sum(task["status"] == status for task in report["tasks"]) for status in ("done", "failed", "out of time")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
