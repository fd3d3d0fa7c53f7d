"""Generated nodes with unusual attributes: float64 agrees with ONNX Runtime, and with PyTorch where it has the operator.

A few cases of each generator; `PYTHONPATH=tests/support python -m operator_sweep --count 80` runs thousands.
"""

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from operator_sweep.sweep import GENERATORS, run

CASES = 25


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_cases_agree_with_independent_implementations(name):
    verdicts = list(run(name, CASES))
    assert not [f"{one.case}: {one.agrees}: {one.detail}" for one in verdicts if one.agrees != "all"]
    assert any(one.runtime or one.third for one in verdicts)
