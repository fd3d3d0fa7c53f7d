"""Lists, named tuples, data classes and dictionaries are inputs of a module by the names of their parts."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'relu-deploy[torch]'")

from torch import Tensor, nn  # noqa: E402

from relu_deploy.errors import InputError, UsageError  # noqa: E402
from relu_deploy.exporting.exporter import export_source  # noqa: E402


class State(NamedTuple):
    hidden: Tensor
    cell: Tensor


@dataclass
class Batch:
    ids: Tensor
    states: list[State]
    mask: Tensor | None = None


def answer_of(y: Any, a: Any, b: Any) -> Any:
    """Weights that tell the operands apart."""
    return torch.relu(y - 10 * a + 100 * b)


class TakesList(nn.Module):
    """Changes its list, as a cache that grows does."""

    def forward(self, x, past):
        past.append(x)
        return answer_of(past[2], past[0], past[1])


class TakesListOfTuples(nn.Module):
    def forward(self, x, past):
        assert isinstance(past, list)
        first, second = past
        return answer_of(x, (first + second)[0], second[1])


class TakesNamedTuple(nn.Module):
    def forward(self, x, state: State):
        return answer_of(x, state.hidden, state.cell)


class TakesAnnotatedUnion(nn.Module):
    def forward(self, x, state: State | None = None):
        return x if state is None else answer_of(x, state.hidden, state.cell)


class TakesDataClass(nn.Module):
    def forward(self, batch: Batch):
        assert isinstance(batch.states, list)
        return answer_of(batch.ids, batch.states[0].hidden, batch.states[1].cell)


class TakesAttributes(nn.Module):
    def forward(self, batch):
        return answer_of(batch.ids, batch["a"], batch.inner.b)


class TakesNumberedKeys(nn.Module):
    def forward(self, levels: dict[int, Tensor]):
        return answer_of(levels[2], levels[0], levels[1])


class TakesTextKeys(nn.Module):
    def forward(self, levels):
        return answer_of(levels["2"], levels["0"], levels["1"])


class TakesOrderedDict(nn.Module):
    def forward(self, levels: collections.OrderedDict[str, Tensor]):
        levels.move_to_end("a")
        return answer_of(levels["y"], levels["a"], levels["b"])


class TakesMapping(nn.Module):
    def forward(self, x, others: Mapping[str, tuple[Tensor, ...]]):
        return answer_of(x, *others["pair"])


class TakesOptionalList(nn.Module):
    def forward(self, x, parts: list[Tensor] | None = None):
        assert isinstance(parts, list)
        return answer_of(x, *parts)


class TakesVariableContainers(nn.Module):
    def forward(self, x, *pairs):
        return answer_of(x, pairs[0][0], pairs[1]["b"])


#: Module, and the names of what is 1, 2 and 3 in `answer_of`.
CASES = [
    (TakesList, ("x", "past.0", "past.1")),
    (TakesListOfTuples, ("x", "past.0.0", "past.1.1")),
    (TakesNamedTuple, ("x", "state.hidden", "state.cell")),
    (TakesAnnotatedUnion, ("x", "state.hidden", "state.cell")),
    (TakesDataClass, ("batch.ids", "batch.states.0.hidden", "batch.states.1.cell")),
    (TakesAttributes, ("batch.ids", "batch.a", "batch.inner.b")),
    (TakesNumberedKeys, ("levels.2", "levels.0", "levels.1")),
    (TakesTextKeys, ("levels.2", "levels.0", "levels.1")),
    (TakesOrderedDict, ("levels.y", "levels.a", "levels.b")),
    (TakesMapping, ("x", "others.pair.0", "others.pair.1")),
    (TakesOptionalList, ("x", "parts.0", "parts.1")),
    (TakesVariableContainers, ("x", "p.0", "q.b")),
]
#: What a module takes besides, without a use.
UNUSED = {
    TakesListOfTuples: ("past.0.1", "past.1.0"),
    TakesDataClass: ("batch.states.0.cell", "batch.states.1.hidden"),
}


@pytest.mark.parametrize(("kind", "names"), CASES, ids=[kind.__name__ for kind, _ in CASES])
@pytest.mark.parametrize("batch", ["dynamic", 2])
def test_containers_are_given_as_the_module_takes_them(tmp_path, kind, names, batch):
    others = UNUSED.get(kind, ())
    # Not in the order of the parameters.
    shapes = dict.fromkeys([*reversed(names), *others], (2, 3))
    if kind is TakesVariableContainers:
        shapes = dict.fromkeys(names, (2, 3))
    bundle = export_source(kind().eval(), tmp_path / "m.rdb", inputs=shapes, batch=batch).bundle
    assert {spec.name for spec in bundle.inputs} == set(shapes)
    size = "batch" if batch == "dynamic" else "2"
    assert {str(spec).partition(": ")[2] for spec in bundle.inputs} == {f"float32[{size}x3]"}
    assert bundle.program_verdict["passed"]
    feeds = {name: np.full((2, 3), value, np.float32) for name, value in zip((*names, *others), (500, 2, 3, 0, 0), strict=False)}
    for backend in ("onnxruntime-cpu", "torch"):
        answer = bundle.session(backend).run(feeds)["y"]
        assert answer.tolist() == [[500 - 20 + 300] * 3] * 2


def test_the_error_of_a_container_that_the_module_does_not_take_is_its_own(tmp_path):
    with pytest.raises(InputError, match="does not accept an input of shape 2x3, 2x3"):
        export_source(TakesNamedTuple(), tmp_path / "m.rdb", inputs={"x": (2, 3), "state.other": (2, 3)})


def test_an_input_and_a_part_of_it_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match=r"state\.cell is a part of it"):
        export_source(TakesNamedTuple(), tmp_path / "m.rdb", inputs={"x": (2, 3), "state": (2, 3), "state.cell": (2, 3)})


def test_dots_that_are_only_part_of_a_name_are_no_containers(tmp_path):
    class Difference(nn.Module):
        def forward(self, left, right):
            return torch.relu(left - right)

    bundle = export_source(Difference(), tmp_path / "m.rdb", inputs={"images.1": (1, 2), "images.2": (1, 2)}).bundle
    feeds = {"images.1": np.full((3, 2), 5, np.float32), "images.2": np.full((3, 2), 3, np.float32)}
    assert bundle.session("onnxruntime-cpu").run(feeds)["y"].tolist() == [[2, 2]] * 3


def test_trying_containers_leaves_the_state_of_the_module_as_it_was(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.calls = 0

        def forward(self, x, past):
            self.seen += 1
            self.calls += 1
            return torch.relu(x + past[0] + self.seen)

    module = Counting().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    bundle = export_source(module, tmp_path / "m.rdb", inputs={"x": (1, 2), "past.0": (1, 2)}).bundle
    zeros = {name: np.zeros((1, 2), np.float32) for name in ("x", "past.0")}
    assert bundle.session("onnxruntime-cpu").run(zeros)["y"].tolist() == [[1, 1]]
    assert torch.equal(module.seen, before["seen"])
