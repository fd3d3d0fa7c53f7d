"""What every runtime that is usable here does with NaN, signed zeros, subnormals and infinities, for each dtype: `prove` as a table.

    python benchmarks/prove_table.py --out benchmarks/results/DATE-cpu-special-values.json
    python benchmarks/prove_table.py --page benchmarks/results/DATE-cpu-special-values.json    # writes docs/reference/special-values.md

Further runs with the same --out replace the dtypes that they measure. Each backend and dtype is a process of its own, so that a runtime that crashes costs one row. float32 runs all 2^32 bit patterns
through two kernels, which takes from half a minute to several minutes on each backend.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "special-values.md"
MARKER = "<!-- the tables below are written by benchmarks/prove_table.py -->\n"
DTYPES = ("float32", "float16", "bfloat16", "int8")
NAMES = {"signed_zero": "sign of zero", "nan": "NaN", "subnormal": "subnormals", "value": "other numbers"}


def measure(backend: str, dtype: str, threads: int, minutes: float) -> dict[str, Any]:
    """Return what `prove` answers for a backend and dtype, or why there is no answer."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "prove.json"
        command = [sys.executable, "-m", "relu_deploy", "prove", "--backend", backend, "--dtype", dtype, "--json", str(result)]
        command += ["--threads", str(threads), "--quiet"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            return {"backend": backend, "dtype": dtype, "not_run": f"not finished after {minutes:g} minutes"}
        if result.exists():
            return json.loads(result.read_text())
        lines = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
        reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
        return {"backend": backend, "dtype": dtype, "not_run": reason}


def run(arguments: argparse.Namespace) -> None:
    """Measure all backends and write the raw JSON after each row."""
    from relu_deploy.backends import names, probe
    from relu_deploy.benchmark.environment import describe

    probes = {name: probe(name) for name in arguments.backend or names()}
    usable = [name for name, found in probes.items() if found.usable]
    document: dict[str, Any] = {
        "environment": describe(arguments.threads),
        "left_out": {name: found.reason for name, found in probes.items() if not found.usable},
        "results": [],
    }
    dtypes = arguments.dtype or list(reversed(DTYPES))
    if arguments.out.exists():
        measured = json.loads(arguments.out.read_text())["results"]
        document["results"] = [one for one in measured if one["dtype"] not in dtypes]
    for dtype in dtypes:
        for backend in usable:
            started = time.perf_counter()
            answer = measure(backend, dtype, arguments.threads, arguments.minutes)
            seconds = time.perf_counter() - started
            document["results"].append(answer)
            print(f"{seconds:7.1f} s  {backend} {dtype}: {answer.get('not_run') or answer['mismatch_classes']}", flush=True)
            arguments.out.write_text(json.dumps(document, indent=1) + "\n")


# ---------------------------------------------------------------- the page


def tables(document: dict[str, Any]) -> str:
    """Return the Markdown of all tables."""
    environment = document["environment"]
    versions = {one["backend"]: one["version"] for one in document["results"] if "version" in one}
    parts = [
        f"Measured on {environment['cpu']['model']}, {environment['time'][:10]}: "
        + ", ".join(f"{backend} {version}" for backend, version in versions.items())
        + ".\n"
    ]
    for dtype in DTYPES:
        rows = [one for one in document["results"] if one["dtype"] == dtype]
        if rows:
            parts.append(f"\n## {dtype}\n\n{_table(rows)}")
            notes = [note for one in rows for note in _other_kernels(one)]
            parts.append("\n" + "\n".join(f"- {note}" for note in notes) + "\n" if notes else "")
    if document["left_out"]:
        parts.append("\n## Not usable on this machine\n\n| backend | reason |\n| --- | --- |\n")
        parts += [f"| `{name}` | {reason} |\n" for name, reason in document["left_out"].items()]
    return "".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| backend | Relu of NaN | Relu of -0.0 | subnormals | other numbers, ±∞ | passed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        if "not_run" in one:
            lines.append(f"| `{one['backend']}` | not run: {one['not_run']} | | | | |")
            continue
        found = one["mismatch_classes"]
        whole = one["dtype"] == "int8"
        cells = (
            "" if whole else "NaN" if not found["nan"] else _lost(one),
            "" if whole else "-0.0" if found["signed_zero"] else "+0.0",
            "" if whole else "kept" if not found["subnormal"] else f"{found['subnormal']:,} changed",
            "right" if not found["value"] else f"{found['value']:,} of {one['inputs_tested']:,} differ",
            "yes" if one["passed"] else "no",
        )
        lines.append(f"| `{one['backend']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _lost(one: dict[str, Any]) -> str:
    # "2046 of 2046 not kept"
    lost, _, every = one["nan_policy"].split()[:3]
    return f"a number, for {'all' if lost == every else f'{int(lost):,} of'} {int(every):,} NaNs"


def _other_kernels(one: dict[str, Any]) -> list[str]:
    """Return a sentence for each kernel with kinds of difference that the plain Relu does not have."""
    if "not_run" in one:
        return []
    plain = _kinds(one["kernels"][0])
    notes = []
    for kernel in one["kernels"][1:]:
        if more := [kind for kind in _kinds(kernel) if kind not in plain]:
            listed = ", ".join(f"{NAMES[kind]} ({kernel['mismatches'][kind]:,})" for kind in more)
            notes.append(f"`{one['backend']}`, {kernel['kernel']} {kernel['where']}: also differs in {listed}")
    return notes


def _kinds(kernel: dict[str, Any]) -> list[str]:
    return [kind for kind, count in kernel["mismatches"].items() if count]


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", help="repeatable; by default every backend")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; by default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=20, help="limit of one backend and dtype (default 20)")
    parser.add_argument("--out", type=Path, help="where to write the raw JSON")
    parser.add_argument("--page", type=Path, metavar="RESULTS", help="write the tables of this file into the page")
    arguments = parser.parse_args()
    if arguments.out:
        run(arguments)
    if arguments.page:
        head = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
        PAGE.write_text(f"{head}{MARKER}\n{tables(json.loads(arguments.page.read_text()))}", encoding="utf-8")


if __name__ == "__main__":
    main()
