"""Inputs that are given by name reach the parameters of `forward`, whatever its signature is."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'relu-deploy[torch]'")

from torch import nn  # noqa: E402

from relu_deploy.exporting.calls import Call, calls_of  # noqa: E402
from relu_deploy.exporting.exporter import export_source  # noqa: E402


class Difference(nn.Module):
    def forward(self, ids, mask=None, *, shift=None):
        y = torch.relu(ids - 10 * (0 if mask is None else mask))
        return y if shift is None else y + 1000 * shift


class Wrapper(nn.Module):
    """Passes everything on, as wrappers of training frameworks do."""

    def __init__(self):
        super().__init__()
        self.inner = Difference()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Mixed(nn.Module):
    def forward(self, *args, **kwargs):
        return torch.relu(args[0] - 10 * kwargs["mask"]) + 1000 * kwargs["shift"]


class ByPosition(nn.Module):
    def forward(self, *args, **kwargs):
        first, second, third = args
        return torch.relu(first - 10 * second) + 1000 * third


class AfterOneParameter(nn.Module):
    def forward(self, ids, *args, **kwargs):
        return torch.relu(ids - 10 * args[0]) + 1000 * kwargs["shift"]


class Decorated(nn.Module):
    @staticmethod
    def passing(function):
        def call(*args, **kwargs):
            return function(*args, **kwargs)

        return call

    def __init__(self):
        super().__init__()
        self.forward = self.passing(Difference().forward)


#: Module, and names of the inputs in an order in which it takes them.
MODULES = [
    (Wrapper, ("shift", "mask", "ids")),
    (Wrapper, ("ids", "mask", "shift")),
    (Decorated, ("mask", "shift", "ids")),
    (Mixed, ("ids", "mask", "shift")),
    (Mixed, ("ids", "shift", "mask")),
    (ByPosition, ("ids", "mask", "shift")),
    (AfterOneParameter, ("mask", "ids", "shift")),
]


@pytest.mark.parametrize(("kind", "order"), MODULES, ids=[f"{kind.__name__}-{'-'.join(order)}" for kind, order in MODULES])
@pytest.mark.parametrize("batch", ["dynamic", 1])
def test_inputs_reach_their_places(tmp_path, kind, order, batch):
    bundle = export_source(kind().eval(), tmp_path / "m.rdb", inputs=dict.fromkeys(order, (1, 3)), batch=batch).bundle
    assert bundle.program_verdict["passed"]
    rows = 2 if batch == "dynamic" else 1
    feeds = {name: np.full((rows, 3), value, np.float32) for name, value in (("ids", 75), ("mask", 4), ("shift", 2))}
    for backend in ("onnxruntime-cpu", "torch"):
        assert bundle.session(backend).run(feeds)["y"].tolist() == [[35 + 2000] * 3] * rows


def test_only_the_inputs_that_are_given_are_passed(tmp_path):
    bundle = export_source(Wrapper(), tmp_path / "m.rdb", inputs={"ids": (1, 3)}).bundle
    assert bundle.session("onnxruntime-cpu").run({"ids": np.full((2, 3), 7, np.float32)})["y"].tolist() == [[7] * 3] * 2


@pytest.mark.parametrize("wrap", ["compile", "data_parallel", "averaged", "both"])
def test_a_wrapper_of_pytorch_is_exported_as_the_model_inside_it(tmp_path, wrap):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    wrapped = {
        "compile": lambda: torch.compile(inner),
        "data_parallel": lambda: nn.DataParallel(inner),
        "averaged": lambda: torch.optim.swa_utils.AveragedModel(inner),
        "both": lambda: nn.DataParallel(torch.compile(inner)),
    }[wrap]()
    made = export_source(wrapped, tmp_path / "m.rdb", inputs={"x": (1, 3)})
    assert made.bundle.name == "Sequential"
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    expected = inner(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(made.bundle.session("onnxruntime-cpu").run({"x": x})["y"], expected, atol=1e-6)


def test_a_compiled_part_of_a_model_is_exported(tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x))

    module = Outer().eval()
    bundle = export_source(module, tmp_path / "m.rdb", inputs={"x": (1, 3)}).bundle
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    expected = module.head(torch.relu(module.body._orig_mod[0](torch.from_numpy(x)))).detach().numpy()
    np.testing.assert_allclose(bundle.session("onnxruntime-cpu").run({"x": x})["y"], expected, atol=1e-6)
    assert isinstance(module.body, torch._dynamo.eval_frame.OptimizedModule)


def calls(function, *arguments):
    return list(calls_of(arguments, inspect.signature(function).parameters))


def test_names_that_are_parameters_leave_one_way():
    assert calls(lambda x, y: 0, "y", "x") == [Call(("x", "y"))]
    assert calls(lambda x, y=0, *, z: 0, "z", "x") == [Call(("x",), (), ("z",))]
    assert calls(lambda x, y=0, z=0: 0, "z", "x") == [Call(("x",), (), ("z",))]


def test_other_names_fill_the_parameters_that_are_left_in_order():
    assert calls(lambda x, y: 0, "a", "b") == [Call(("a", "b"))]
    assert calls(lambda x, y: 0, "y", "a") == [Call(("a", "y"))]
    assert calls(lambda x, *more: 0, "a", "x", "b") == [Call(("x",), ("a", "b"))]
    assert calls(lambda x, y, *, z: 0, "z", "a", "b") == [Call(("a", "b"), (), ("z",))]


def test_a_function_of_anything_has_every_way_from_all_names_to_all_positions():
    everything = lambda *args, **kwargs: 0  # noqa: E731
    assert calls(everything, "a", "b") == [Call((), (), ("a", "b")), Call((), ("a", "b")), Call((), ("a",), ("b",))]
    # What is no identifier cannot be a keyword.
    assert calls(everything, "input:0", "b") == [Call((), ("input:0", "b"))]


def test_a_decorator_that_keeps_the_signature_is_no_function_of_anything():
    def decorated(function):
        return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))

    assert calls(decorated(lambda x, y: 0), "y", "x") == [Call(("x", "y"))]
