"""Kill `relu-deploy compile` at random moments: the next call uses what is there or builds it anew, and never a broken engine.

    pip install 'relu-deploy[rtx]'
    python benchmarks/compile_kills.py --model resnet50 --times 50 --out benchmarks/results/compile-kills.json

Half of the builds start from an empty cache, half replace an engine that is kept. A build ahead of time has one size for
one graph, so an engine counts as whole if its bytes are the ones its note names and as many as an undisturbed build gives.
Lastly two processes ask for one engine at the same time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from relu_deploy.benchmark.environment import describe
from relu_deploy.exporting.exporter import export_source


def call(bundle: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "relu_deploy", "compile", str(bundle), "--backend", "tensorrt-rtx", "--json", "-", "--quiet"]
    return subprocess.Popen([*words, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict:
    stdout, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"compile ended with {process.returncode}: {stderr}")
    return {**json.loads(stdout), "stderr": stderr}


def state_of(folder: Path) -> str:
    """Return what a killed build left: an engine with its note, an engine alone, half a file, or nothing."""
    files = [file for file in folder.iterdir() if file.suffix != ".lock"]
    if any(file.name.startswith(".") for file in files):
        return "half a file"
    suffixes = {file.suffix for file in files}
    return (
        "engine and note" if suffixes >= {".engine", ".json"} else "engine without a note" if ".engine" in suffixes else "nothing"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as parent:
        bundle = export_source(arguments.model, Path(parent) / f"{arguments.model}.rdb").bundle.path
        folder = bundle / "engines"
        started = time.perf_counter()
        whole = answer(call(bundle))
        lasts = time.perf_counter() - started
        rows = []
        for turn in range(arguments.times):
            if turn % 2:
                shutil.rmtree(folder)
            after = draw.uniform(0.3, 1.0) * lasts
            killed = call(bundle, "--rebuild")
            time.sleep(after)
            killed.send_signal(signal.SIGKILL)
            killed.communicate()
            left = state_of(folder) if folder.exists() else "nothing"
            engine = answer(call(bundle))
            plan, note = Path(engine["engine"]).read_bytes(), json.loads(Path(engine["engine"]).with_suffix(".json").read_text())
            sound = hashlib.sha256(plan).hexdigest() == note["sha256"] and len(plan) == whole["bytes"]
            rows.append(
                {
                    "from": "empty" if turn % 2 else "kept",
                    "killed_after_seconds": round(after, 3),
                    "ended_before_the_kill": killed.returncode == 0,
                    "left": left,
                    "next_call": "used" if engine["cache_hit"] else "rebuilt",
                    "warned": engine["stderr"].strip(),
                    "sound": sound,
                }
            )
            print(turn, rows[-1], flush=True)
        shutil.rmtree(folder)
        pair = [call(bundle), call(bundle)]
        hits = sorted(answer(process)["cache_hit"] for process in pair)
    counted = Counter(f"{row['from']}, left {row['left']}, {row['next_call']}" for row in rows)
    result = {
        "environment": describe(2),
        "model": arguments.model,
        "undisturbed_seconds": round(lasts, 3),
        "bytes": whole["bytes"],
        "sound": sum(row["sound"] for row in rows),
        "of": len(rows),
        "counted": dict(counted),
        "two_at_once_cache_hits": hits,
        "rows": rows,
    }
    print(json.dumps({key: result[key] for key in ("sound", "of", "counted", "two_at_once_cache_hits")}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    assert result["sound"] == result["of"], "a killed build left a broken engine: see above"
    assert hits == [False, True], "two at once did not build one engine"


if __name__ == "__main__":
    main()
