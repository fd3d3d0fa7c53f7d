"""Hostile files, crashes and hostile clients at scale: what `SECURITY.md` promises, measured.

    python benchmarks/hardening.py files --count 10000 --seed 1 --out files.json
    python benchmarks/hardening.py crashes --count 500 --seed 1 --out crashes.json
    python benchmarks/hardening.py requests --count 50000 --seed 1 --out requests.json
    python benchmarks/hardening.py waits --seconds 3 --out waits.json
    python benchmarks/hardening.py origins --out origins.json
    python benchmarks/hardening.py stops --count 200 --seed 1 --out stops.json
    python benchmarks/hardening.py table benchmarks/results/2026-11-30-cpu-hardening.json

Each part can run in portions: with an --out that exists, the new results are added to it. `--limit SECONDS` ends a portion early, and
`--first N` starts the next one where the last one ended. Results are written while a portion runs, so that one which is interrupted keeps
what it has tried; `ended` in its entry says how it ended. The generators are those of `tests/hardening`, where a few seconds of them run
with the tests; `make fuzz SECONDS=3600 SEED=7` runs files, crashes and requests with new seeds until the time is over.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "hardening"), str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]

import hardening_files  # noqa: E402
import hardening_server  # noqa: E402
import processes  # noqa: E402
from hardening_table import table_of  # noqa: E402

from relu_deploy.benchmark.environment import describe  # noqa: E402
from relu_deploy.exporting.exporter import export_source  # noqa: E402

#: the results of a portion are written as often as this
SAVE_SECONDS = 20.0
#: by name: yields one result after the other, from an empty folder and the options
Part = Callable[[Path, argparse.Namespace], Iterator[dict[str, Any]]]


def _files(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    originals = hardening_files.originals(folder)
    yield from hardening_files.run(originals, folder, options.seed, range(options.first, options.first + options.count))


def _crashes(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import random

    from crash_points import COMMANDS, CrashTrials

    names = options.only or list(COMMANDS)
    for name in names:
        trials = CrashTrials(name, folder / name.replace(" ", "-"))
        print(f"{name}: {trials.calls} calls in {trials.seconds:.1f} s", flush=True)
        draw = random.Random(f"{options.seed} {options.first} {name}")
        for point in trials.points(draw, -(-options.count // len(names))):
            yield asdict(point)


def _server(folder: Path) -> Path:
    bundle = folder / "digits.rdb"
    return bundle if bundle.exists() else export_source("digits", bundle).bundle.path


def _requests(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    yield from hardening_server.requests(_server(folder), options.count, f"{options.seed} {options.first}")


def _waits(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    yield from hardening_server.waits(_server(folder), options.seconds, options.seed, options.only)


def _origins(folder: Path, _: argparse.Namespace) -> Iterator[dict[str, Any]]:
    yield from hardening_server.origins(_server(folder), folder)


def _stops(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    yield from hardening_server.stops(_server(folder), options.count, options.seed)


PARTS: dict[str, Part] = {
    "files": _files,
    "crashes": _crashes,
    "requests": _requests,
    "waits": _waits,
    "origins": _origins,
    "stops": _stops,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "table", "fuzz"])
    parser.add_argument("results", nargs="*", type=Path, help="of table: files of results")
    parser.add_argument("--count", type=int, default=100, help="files, crash points, requests or stops")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each attack, or of fuzz")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which a portion ends")
    parser.add_argument("--only", action="append", help="a command of crashes or an attack of waits; repeatable")
    parser.add_argument("--folder", type=Path, help="where valid files are kept for the next portion (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="file of results; new ones are added")
    options = parser.parse_args()
    if options.part == "table":
        print(table_of([json.loads(file.read_text()) for file in options.results]))
        return
    # `timeout` and a shutdown send SIGTERM: the results of the portion are written then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes.begin()
    try:
        failed = _fuzz(options) if options.part == "fuzz" else _run(options.part, options)
    finally:
        processes.end()
    sys.exit(failed)


def _run(part: str, options: argparse.Namespace) -> bool:
    """Run a portion of `part`, add it to the results, print the faults, and return whether there are any."""
    began, count, faulty = time.monotonic(), 0, 0
    portion = Portion(options.out, part, options.seed, options.first)
    with TemporaryDirectory() as name, portion:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for result in PARTS[part](folder, options):
            portion.add(result)
            count += 1
            if result.get("faults"):
                faulty += 1
                print(json.dumps(result), flush=True)
            if time.monotonic() - began > options.limit:
                break
    print(f"{part}: {count} results, {faulty} with faults, {time.monotonic() - began:.0f} s", flush=True)
    return faulty > 0


class Portion:
    """The results of one run of a part. They are written every `SAVE_SECONDS`, and when the run ends in any way.

    Args:
        file: The file of results, which may hold others; None keeps nothing.
        part: The name of the part.
        seed: As given.
        first: As given.
    """

    def __init__(self, file: Path | None, part: str, seed: int, first: int) -> None:
        self._file, self._part = file, part
        self._entry: dict[str, Any] = {"seed": seed, "first": first, "seconds": 0.0, "environment": {}, "results": 0, "ended": ""}
        self._new: list[dict[str, Any]] = []
        #: place of the portion in the file, None before it is written
        self._place: int | None = None
        self._began = self._saved = time.monotonic()

    def __enter__(self) -> Portion:
        if self._file is not None:
            self._entry["environment"] = describe(1)
        return self

    def add(self, result: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._new.append(result)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save("still running, or killed")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._save("complete" if kind is None else f"ended by {kind.__name__}")

    def _save(self, ended: str) -> None:
        if self._file is None:
            return
        # Other portions may have been added in the meantime.
        content = json.loads(self._file.read_text()) if self._file.exists() else {}
        entry = content.setdefault(self._part, {"portions": [], "results": []})
        self._entry["results"] += len(self._new)
        self._entry |= {"seconds": round(time.monotonic() - self._began, 1), "ended": ended}
        if self._place is None:
            self._place = len(entry["portions"])
            entry["portions"].append(self._entry)
        else:
            entry["portions"][self._place] = self._entry
        entry["results"] += self._new
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")
        temporary.replace(self._file)
        self._new, self._saved = [], time.monotonic()


def _fuzz(options: argparse.Namespace) -> bool:
    """Run files, crashes and requests in turn with new seeds until the time is over; return whether there were faults."""
    until, turn, failed = time.monotonic() + options.seconds, 0, False
    while (left := until - time.monotonic()) > 0:
        for part, count in (("files", 500), ("crashes", 14), ("requests", 2000)):
            portion = argparse.Namespace(**{**vars(options), "count": count, "first": turn * count, "limit": left, "only": None})
            failed |= _run(part, portion)
        turn += 1
    return failed


if __name__ == "__main__":
    main()
