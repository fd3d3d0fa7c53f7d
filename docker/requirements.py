"""Print what relu_deploy and some of its extras depend on, one requirement a line, for a layer that holds only those.

    python requirements.py EXTRA… < pyproject.toml

An extra that names another of ours, as "relu-deploy[cuda]", is replaced by what that one needs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any


def requirements(project: Mapping[str, Any], extras: Sequence[str]) -> list[str]:
    """Return the requirements of `project` (the table of that name) and of `extras`, each once, sorted.

    Raises KeyError for an extra that there is not.
    """
    optional = project["optional-dependencies"]
    found: set[str] = set(project["dependencies"])
    waiting: list[str] = list(extras)
    seen: set[str] = set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in optional[extra]:
            ours = re.fullmatch(rf"{re.escape(project['name'])}\[([\w,-]+)\]", requirement)
            if ours:
                waiting += ours[1].split(",")
            else:
                found.add(requirement)
    return sorted(found)


if __name__ == "__main__":
    table = tomllib.load(sys.stdin.buffer)["project"]
    try:
        print("\n".join(requirements(table, sys.argv[1:])))
    except KeyError as error:
        print(f"error: pyproject.toml has no extra {error}", file=sys.stderr)
        print(f"hint: EXTRAS is some of: {' '.join(sorted(table['optional-dependencies']))}", file=sys.stderr)
        sys.exit(2)
