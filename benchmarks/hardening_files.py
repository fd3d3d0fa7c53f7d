"""Hostile files through the command line, for `hardening.py`."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from command_runner import ALLOWED_CODES, CommandRunner
from file_cases import KINDS, Case, Originals, make_case
from hardening_originals import make_originals

__all__ = ["originals", "run"]

#: one file in as many goes through the console script in a process of its own, too
REAL_SHARE = 100
REAL_SECONDS = 120


def originals(folder: Path) -> Originals:
    place = folder / "originals"
    place.mkdir(exist_ok=True)
    return make_originals(place)


def run(valid: Originals, folder: Path, seed: int, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the result of each file: its kind, what was done, the commands, their exit codes, seconds and faults."""
    with CommandRunner(valid.canary) as runner:
        for number in numbers:
            kind = random.Random(f"{seed} {number}").choices(list(KINDS), KINDS.values())[0]
            place = folder / "case"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            case = make_case(kind, seed * 10**6 + number, place, valid)
            result: dict[str, Any] = {"number": number, "kind": kind, "label": case.label[:200], "commands": [], "faults": []}
            for words in case.commands:
                outcome = runner.run(words)
                seconds = outcome.reply.get("seconds")
                result["commands"].append([words[0], outcome.code, None if seconds is None else round(seconds, 2)])
                result["faults"] += [f"{words[0]}: {fault}" for fault in outcome.faults]
                if outcome.faults:
                    result["trace"] = _without_folders(runner.trace(outcome)) if "exit code" in outcome.faults else ""
                    result["output"] = _without_folders(outcome.reply.get("output", "")[-800:] + outcome.reply.get("escaped", ""))
            if number % REAL_SHARE == 0 and not result["faults"]:
                _through_script(case, valid, result)
            shutil.rmtree(place)
            yield result


def _without_folders(text: str) -> str:
    """Return `text` with the paths of the project's files relative to it: results are read on other machines."""
    return text.replace(f"{Path(__file__).parents[1]}/", "")


def _through_script(case: Case, valid: Originals, result: dict[str, Any]) -> None:
    """Run the case's first command as a user does, in a new process."""
    words = case.commands[0]
    for name in ("out.rdb", "fast.rdb", "repository", "image"):
        shutil.rmtree(Path(valid.canary).parent / name, ignore_errors=True)
    place = next((Path(words[at + 1]) for at, word in enumerate(words) if word == "-o"), None)
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "relu_deploy", *words], capture_output=True, timeout=REAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        result["faults"].append("script: hang")
        return
    result["script"] = ended.returncode
    if ended.returncode not in ALLOWED_CODES:
        result["faults"].append("script: crash" if ended.returncode < 0 else "script: exit code")
    if b"Traceback (most recent call last)" in ended.stderr:
        result["faults"].append("script: traceback")
    if valid.canary.exists():
        valid.canary.rmdir()
        result["faults"].append("script: code run")
    if result["faults"]:
        result["output"] = _without_folders(ended.stderr.decode(errors="replace")[-800:])
