"""The page of operators lists what the reference evaluator has."""

import re
from pathlib import Path

from relu_deploy.backends.reference.registry import registered

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "operators.md"


def test_every_operator_of_the_reference_evaluator_is_in_the_table():
    rows = re.findall(r"^\| ([\w.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = {".".join(filter(None, (entry.domain, entry.name))) for entry in registered()}
    assert expected <= set(rows)
    assert len(rows) == len(set(rows))
