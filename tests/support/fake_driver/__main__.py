"""Prints what the fake driver covers: `PYTHONPATH=tests/support python -m fake_driver [--json FILE]`."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fake_driver.fake import build, environment, missing


def run(folder):
    """Build the libraries in `folder`, run all scenarios in a process that loads them, and return their results."""
    build(folder)
    models = folder / "models"
    models.mkdir()
    command = [sys.executable, "-m", "fake_driver.scenarios", str(models)]
    finished = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=240, check=False)
    if finished.returncode:
        raise RuntimeError(f"the scenarios ended with {finished.returncode}:\n{finished.stderr[-4000:]}")
    return json.loads(finished.stdout)


def summary(result):
    """Return the lines that `main` prints."""
    lines = []
    for name, found in result["lines"].items():
        missed = ", ".join(map(str, found["missing"][:12])) + (", …" if len(found["missing"]) > 12 else "")
        share = found["covered"] / found["lines"]
        lines.append(f"{name:18} {found['covered']:4} of {found['lines']:4} lines ({share:4.0%})  not run: {missed or 'none'}")
    for name, rows in result["injected"].items():
        outcomes = Counter(row["outcome"] for row in rows)
        leaks = sum(sum(row["leaks"].values()) for row in rows)
        lines.append(
            f"{name:18} {len(rows):4} calls failed in turn: {outcomes['raised']} raised an error of ours, {outcomes['right']} did "
            f"not change the result, {outcomes['broken']} neither; {leaks} leaks"
        )
    lines.append(f"left at the end    {result['alive'] or 'nothing'}; misuse: {result['faults'] or 'none'}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write everything that was found")
    options = parser.parse_args()
    if why := missing():
        sys.exit(why)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print("\n".join(summary(result)))


if __name__ == "__main__":
    main()
