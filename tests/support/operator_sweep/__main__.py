"""Run the sweep at length and print every case in which two implementations differ."""

from __future__ import annotations

import argparse
from collections import Counter

from operator_sweep.sweep import GENERATORS, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="cases of each generator (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="generators: " + ", ".join(GENERATORS))
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for name in options.only or GENERATORS:
        for verdict in run(name, options.count, options.seed):
            counts["cases"] += 1
            counts["beside ONNX Runtime"] += verdict.runtime
            counts["beside a third opinion"] += verdict.third
            counts["known differences of ONNX Runtime"] += bool(verdict.known)
            if verdict.agrees != "all":
                counts["differ"] += 1
                print(f"{name}: {verdict.case}: {verdict.agrees}: {verdict.detail}")
            elif not verdict.runtime and not verdict.third:
                counts["alone"] += 1
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
