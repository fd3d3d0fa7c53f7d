"""Everything that only a GPU can tell, in one call: whether kernels and graphs are right, and how fast.

    python benchmarks/gpu.py --minutes 9 --out benchmarks/results/2026-11-29-h200.json     # the same command again continues
    python benchmarks/gpu.py --rehearse --out out/rehearsal.json       # without a GPU, on a fake of NVIDIA's driver
    python benchmarks/gpu_page.py benchmarks/results/2026-11-29-h200.json    # docs/gpu-results.md

The tasks are ordered by worth. Each runs in a process of its own with a time limit and leaves a file of its own, in the folder beside
--out that has its name: a crash, a hang or a missing library costs that task alone. --out is all of them together, written anew after
every task. What a task could not do stands in its file with the reason. A call with the same --out takes the tasks that are finished
from their files and goes on with the others. Nothing on the machine is set: clocks and power are read.

    environment   the GPU, its driver, libraries, usable backends, and the rates that its limits are made of
    prove         every bit pattern of each dtype through each backend's own Relu
    verify        every Relu of the digit detector and of ResNet-50 on each backend
    bench         models by precision and batch: GPU time, copies, launching, share of the limit, ratio to torch.compile
    rtx           whether TensorRT-RTX runs on this GPU at all, in its own words
    tests         the tests that are marked `gpu`

--wheels FOLDER installs the wheels that lie there first, into a folder of their own.
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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relu_deploy.bundle import write_atomically

SCHEMA = "relu-deploy/gpu/1"
PARTS = ("environment", "prove", "verify", "bench", "rtx", "tests")
#: seconds that one task of a part may take, and the share of the call's time by which the part has to be over
LIMITS = {
    "environment": (90, 1.0),
    "prove": (60, 0.35),
    "verify": (60, 0.55),
    "bench": (150, 0.9),
    "rtx": (45, 1.0),
    "tests": (120, 1.0),
}
#: what became of tasks that are not run again
FINISHED = ("done", "failed", "not usable here")
BACKENDS = ("onnxruntime-cuda", "torch-cuda", "torch-compile-cuda", "tensorrt", "tensorrt-rtx")
#: what stands in for each backend when only the course of things is tried out, on a machine without a GPU
ON_CPU = {"onnxruntime-cuda": "onnxruntime-cpu", "torch-cuda": "torch", "torch-compile-cuda": "torch-compile"}
DTYPES = ("float32", "float16", "bfloat16", "int8")
MODELS = ("resnet50", "mobilenet_v2")
VERIFIED = ("digit_detector", "resnet50")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
BATCHES = (1, 64, 8, 256)
FAKE_DRIVER = Path(__file__).parent.parent / "tests" / "support"


@dataclass(frozen=True)
class Task:
    """One process: what it does, and what it needs to know."""

    part: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def plan(options: argparse.Namespace, usable: dict[str, str]) -> Iterator[Task]:
    """Yield the tasks after `environment`, the most telling first. usable: backend → "", or why it is not usable."""
    backends = [name for name, why in usable.items() if not why]
    if "prove" in options.parts:
        for dtype in sorted(options.dtypes, key=lambda one: one == "float32"):
            for backend in backends:
                if not backend.startswith("torch-compile") and not backend.startswith("tensorrt"):
                    yield Task("prove", f"{backend} {dtype}", {"backend": backend, "dtype": dtype})
    if "verify" in options.parts:
        for model in options.verified:
            for backend in backends:
                yield Task("verify", f"{backend} {model}", {"backend": backend, "model": model})
    if "bench" in options.parts and backends:
        for model in options.models:
            for precision in options.precisions:
                arguments = {"model": model, "precision": precision, "batches": options.batches, "backends": backends}
                arguments |= {"seconds": options.seconds, "torch_mode": options.torch_mode}
                yield Task("bench", f"{model} {precision}", arguments)
    if "rtx" in options.parts:
        yield Task("rtx", "tensorrt-rtx")
    if "tests" in options.parts:
        yield Task("tests", "marked gpu")


def file_of(task: Task, out: Path) -> Path:
    """Return the file that a task leaves, in the folder beside `out` that has its name."""
    words = "-".join(f"{task.part} {task.name}".split())
    return out.with_suffix("") / f"{words}.json"


def finished(task: Task, out: Path) -> dict[str, Any] | None:
    """Return what an earlier call found, None if the task has to be run."""
    try:
        outcome: dict[str, Any] = json.loads(file_of(task, out).read_text())
    except (OSError, ValueError):
        return None
    return outcome if outcome.get("status") in FINISHED and outcome.get("arguments") == task.arguments else None


def run(task: Task, limit: float, work: Path) -> dict[str, Any]:
    """Return what became of `task` within `limit` seconds: its result as far as it got, and why there is no more."""
    outcome: dict[str, Any] = {"part": task.part, "name": task.name, "status": "done", "reason": "", "seconds": 0.0}
    outcome["arguments"] = task.arguments
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
        "override": "rehearsal" if options.rehearse else options.backend_override,
        "command": sys.argv[1:],
        "tasks": [],
    }

    def keep(task: Task, plan_only: bool = False) -> dict[str, Any]:
        own, share = LIMITS[task.part]
        left = min(own, total * share - (time.monotonic() - began))
        outcome = finished(task, options.out)
        if outcome is None:
            if plan_only:
                outcome = {"part": task.part, "name": task.name, "status": "planned", "reason": "", "seconds": 0.0}
            elif left < 3:
                outcome = {"part": task.part, "name": task.name, "status": "out of time", "reason": "not started", "seconds": 0.0}
            else:
                outcome = run(rehearsed(task) if options.rehearse else task, left, options.work)
                file_of(task, options.out).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file_of(task, options.out), json.dumps(outcome, indent=1, ensure_ascii=False) + "\n")
        report["tasks"].append(outcome)
        report["seconds"] = round(time.monotonic() - began, 1)
        write_atomically(options.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        print(f"[{report['seconds']:6.1f} s] {task.part}: {task.name}: {outcome['status']} {outcome['reason']}", file=sys.stderr)
        return outcome

    override = options.backend_override == "cpu"
    names = [ON_CPU[name] if override else name for name in options.backends if not override or name in ON_CPU]
    first = keep(Task("environment", "environment", {"backends": names, "rates": not override and not options.rehearse}))
    usable = (first.get("result") or {}).get("usable", {})
    if options.rehearse:
        # Every task that a GPU would have: the first of each part is run, to its end without a GPU.
        usable = dict.fromkeys(names, "")
    begun = {"environment"}
    for task in plan(options, usable):
        keep(task, plan_only=options.rehearse and task.part in begun)
        begun.add(task.part)
    return report


def rehearsed(task: Task) -> Task:
    """Return a task with the smallest model and batch: what is rehearsed is the way through the code."""
    smallest = {"model": "digits", "batches": [1], "seconds": 0.1}
    return replace(task, arguments={name: smallest.get(name, value) for name, value in task.arguments.items()})


@contextlib.contextmanager
def fake_driver() -> Iterator[None]:
    """Let the tasks find a fake of NVIDIA's driver, built from the tests' support, in the block."""
    sys.path.insert(0, str(FAKE_DRIVER))
    from fake_driver.fake import build, missing

    if why := missing():
        sys.exit(f"error: {why}")
    kept = os.environ.get("LD_LIBRARY_PATH")
    with tempfile.TemporaryDirectory(prefix="relu-deploy-fake-driver-") as folder:
        build(Path(folder))
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [folder, kept]))
        try:
            yield
        finally:
            os.environ.pop("LD_LIBRARY_PATH")
            if kept is not None:
                os.environ["LD_LIBRARY_PATH"] = kept


def listing(report: dict[str, Any], out: Path) -> str:
    """Return the tasks with their limits, files and outcomes as a list in Markdown."""
    lines = []
    for task in report["tasks"]:
        name = file_of(Task(task["part"], task["name"]), out).name
        reason = f": {task['reason']}" if task["reason"] else ""
        lines.append(f"- {task['part']}, {task['name']}: at most {LIMITS[task['part']][0]} s, `{name}`; {task['status']}{reason}")
    return "\n".join(lines) + "\n"


def listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (default 9)")
    parser.add_argument("--parts", type=listed, default=list(PARTS), help=f"of {','.join(PARTS)}; the environment is always read")
    parser.add_argument("--backends", type=listed, default=list(BACKENDS))
    parser.add_argument("--models", type=listed, default=list(MODELS))
    parser.add_argument("--verified", type=listed, default=list(VERIFIED), help="models of the part verify")
    parser.add_argument("--precisions", type=listed, default=list(PRECISIONS))
    parser.add_argument("--batches", type=lambda text: [int(one) for one in listed(text)], default=list(BATCHES))
    parser.add_argument("--dtypes", type=listed, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed runs per row")
    parser.add_argument("--torch-mode", default="max-autotune", help="of torch.compile")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install, into a folder of their own")
    parser.add_argument("--work", type=Path, help="folder for exported models, to use them again (default: a temporary one)")
    parser.add_argument("--backend-override", choices=["", "cpu"], default="", help="cpu: try out the course of things only")
    parser.add_argument(
        "--rehearse", action="store_true", help="on a fake of NVIDIA's driver: list all tasks, and run the first of each part"
    )
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
        with fake_driver() if options.rehearse else contextlib.nullcontext():
            report = conduct(options)
    if options.rehearse:
        print(listing(report, options.out))
    counts = {status: sum(task["status"] == status for task in report["tasks"]) for status in ("done", "failed", "out of time")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
