"""In float64 a program has the limits of the types that it was written in."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'relu-deploy[torch]'")

from relu_deploy.exporting.exporter import export_source  # noqa: E402


@pytest.mark.parametrize("given", [{}, {"nan": 5.0}, {"posinf": 7.0}, {"neginf": -7.0}])
@pytest.mark.parametrize("in_place", [False, True])
def test_infinities_become_the_largest_numbers_of_float32(tmp_path, given, in_place):
    class Finite(torch.nn.Module):
        def forward(self, x):
            y = torch.where(x > 0, torch.relu(x) / 0.0, torch.where(x > -2, float("-inf"), float("nan")))
            return y.nan_to_num_(**given) if in_place else torch.nan_to_num(y, **given)

    bundle = export_source(Finite(), tmp_path / "m.rdb", inputs={"x": (1, 3)}).bundle
    assert bundle.program_verdict["passed"]
    largest = float(np.finfo(np.float32).max)
    answer = bundle.session("torch").evaluate({"x": np.array([[1, -1, -3]], np.float32)})["y"]
    assert answer.tolist() == [[given.get("posinf", largest), given.get("neginf", -largest), given.get("nan", 0.0)]]


def test_an_infinity_of_a_half_precision_program_becomes_its_largest_number(tmp_path):
    class Finite(torch.nn.Module):
        def forward(self, x):
            return torch.nan_to_num(torch.relu(x) * float("inf"))

    bundle = export_source(Finite(), tmp_path / "m.rdb", inputs={"x": ((1, 2), "float16")}).bundle
    assert bundle.session("torch").evaluate({"x": np.array([[1, 2]], np.float16)})["y"].tolist() == [[65504, 65504]]
