"""Write docs/reference/operators.md: the operators that the reference evaluator has, and how each was verified.

    python docs/operator_table.py            about a minute; needs onnxruntime and torch

Counted are onnx's node tests in which an operator occurs and agrees, generated cases beside ONNX Runtime and beside PyTorch
(tests/support/operator_sweep), and tests with a value worked out by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "operators.md"
HEAD = """# Operators of the reference evaluator

<!-- written by docs/operator_table.py -->

`verify --against reference` computes the truth with operators of this project, in float64. This page lists them and says how each
was verified. An operator that is not listed makes `verify` answer with exit code 3 and the names of its nodes.

- **Versions**: of the operator set, as far as onnx {onnx} defines them.
- **Node tests**: of the {tests} node tests of onnx {onnx}, those in which the operator occurs and all results agree, in the types of the
  graph and in float64.
- **ONNX Runtime, PyTorch**: generated nodes with unusual attributes whose results agree with ONNX Runtime {runtime}, and with
  PyTorch {torch} in float64.
- **By hand**: tests with a value worked out from the specification.
- **Not known** stands where nothing independent has verified an operator.

{expected} of the node tests do not agree, for reasons that
`python -m relu_deploy.backends.reference.conformance` prints: operators of ai.onnx.ml, random numbers, and expected values that were
rounded to 16 bits several times. ONNX Runtime differs from the specification in these cases, which do not count:

{known}

| Operator | Versions | Node tests | ONNX Runtime | PyTorch | By hand |
| --- | --- | ---: | ---: | ---: | ---: |
"""
CALL = re.compile(r'(?:evaluate|make_node|node_model)\(\s*"(\w+)"')


def versions() -> dict[tuple[str, str], str]:
    """Return the versions of every operator that can be evaluated, and whether a body of the specification is used."""
    import onnx

    from relu_deploy.backends.reference.registry import find, registered

    schemas: dict[tuple[str, str], set[int]] = {}
    bodies = set()
    for schema in onnx.defs.get_all_schemas_with_history():
        key = (schema.domain, schema.name)
        if find(*key, schema.since_version):
            schemas.setdefault(key, set()).add(schema.since_version)
        elif schema.domain != "ai.onnx.ml" and (schema.has_function or schema.has_context_dependent_function):
            schemas.setdefault(key, set()).add(schema.since_version)
            bodies.add(key)
    for entry in registered():
        schemas.setdefault((entry.domain, entry.name), {1})
    marked = {key: ", ".join(map(str, sorted(found))) for key, found in schemas.items()}
    return {key: text + (" (function body)" if key in bodies else "") for key, text in marked.items()}


def node_test_counts() -> tuple[Counter[tuple[str, str]], int, int]:
    """Return in how many agreeing node tests each operator occurs, how many tests there are, and how many do not agree."""
    from relu_deploy.backends.reference.conformance import node_tests, outcomes

    tests = node_tests()
    wrong = {one.name for one in outcomes(tests) if one.answer != "agrees"}
    counts: Counter[tuple[str, str]] = Counter()
    for test in tests:
        if test.name not in wrong:
            counts.update(set(_operators(test.model.graph)))
    return counts, len(tests), len(wrong)


def _operators(graph: Any) -> list[tuple[str, str]]:
    found = []
    for node in graph.node:
        found.append((node.domain, node.op_type))
        for attribute in node.attribute:
            found += _operators(attribute.g)
    return found


def sweep_counts(count: int) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]], set[str]]:
    """Return how many generated cases of each operator agree with ONNX Runtime and with PyTorch, and the known differences."""
    from operator_sweep.sweep import GENERATORS, run

    runtime: Counter[tuple[str, str]] = Counter()
    third: Counter[tuple[str, str]] = Counter()
    known = set()
    for name in GENERATORS:
        for verdict in run(name, count):
            key = (verdict.case.domain, verdict.case.operator)
            if verdict.known:
                known.add(f"{key[1]}: {verdict.known}")
            elif verdict.agrees == "all":
                runtime[key] += verdict.runtime
                third[key] += verdict.third
    return runtime, third, known


def page(count: int) -> str:
    """Return the text of the page. count: generated cases of each generator."""
    import onnx
    import onnxruntime
    import torch

    tests, total, wrong = node_test_counts()
    runtime, third, known = sweep_counts(count)
    folder = ROOT / "tests" / "backends" / "reference"
    by_hand = Counter(CALL.findall("".join(file.read_text(encoding="utf-8") for file in folder.glob("test_*.py"))))
    lines = []
    for key, text in sorted(versions().items()):
        counts = [tests[key], runtime[key], third[key], by_hand[key[1]]]
        cells = [str(number or "") for number in counts] if any(counts) else ["not known", "", "", ""]
        lines.append(f"| {'.'.join(filter(None, key))} | {text} | " + " | ".join(cells) + " |")
    head = HEAD.format(
        onnx=onnx.__version__, runtime=onnxruntime.__version__, torch=torch.__version__.split("+")[0], tests=total,
        expected=wrong, known="\n".join(f"- {line}." for line in sorted(known)),
    )  # fmt: skip
    return head + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=80, help="generated cases of each generator (default: 80)")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    PAGE.write_text(page(options.count), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
