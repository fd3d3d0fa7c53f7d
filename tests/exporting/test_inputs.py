"""Inputs are exported with the names, shapes, types and batch axes that were given; a `.pt2` keeps its own."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'relu-deploy[torch]'")

from torch import nn  # noqa: E402

from relu_deploy.errors import InputError, UsageError  # noqa: E402
from relu_deploy.exporting.exporter import export_source  # noqa: E402


class Camera(nn.Module):
    """Points (N, 4, 3) times a 3x3 camera matrix."""

    def forward(self, points, k):
        return torch.relu(points @ k.T)


class Nested(nn.Module):
    """A keyword-only argument and a dictionary in, a dictionary out."""

    def forward(self, batch, *, offset):
        return {"sum": torch.relu(batch["a"] + offset), "difference": torch.relu(batch["a"] - batch["b"])}


class Cached(nn.Module):
    """Keys and values of two layers, as transformers keep them."""

    def forward(self, x, past):
        return torch.relu(x + past[0][0] - past[0][1] + 10 * past[1][0] - 10 * past[1][1])


class Recurrent(nn.Module):
    """A state (layers, N, 4) beside the input (N, 4)."""

    def forward(self, x, state):
        return torch.relu(x + state.mean(0)), torch.relu(state)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Embedding(100, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.last(torch.relu(self.table(ids)).mean(1))


class Scaled(nn.Module):
    def forward(self, x, factor):
        return torch.relu(x * factor)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Answer:
    scale: Any
    pair: Pair
    missing: Any
    spectrum: Any
    size: Any


class Containers(nn.Module):
    """A data class and a named tuple out, with a number, a parameter, complex numbers, and a field named like the parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 4.0]))

    def forward(self, x):
        y = torch.relu(x) * self.scale
        return Answer(y, Pair(y + 1, self.scale), None, torch.fft.rfft(y), 7)


class MixedTypes(nn.Module):
    """A layer in half precision, and a batch norm that has no statistics of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(8, 16).half(), nn.BatchNorm1d(16, track_running_stats=False)

    def forward(self, x):
        return self.norm(torch.relu(self.first(x.half())).float())


class Sum(nn.Module):
    def forward(self, x, *others):
        return torch.relu(x - sum(others))


def exported(module, folder, **options):
    return export_source(module.eval(), folder / "m.rdb", **options).bundle


def saved(module, arguments, folder, keywords=None, **shapes):
    program = torch.export.export(module.eval(), arguments, keywords, **shapes)
    torch.export.save(program, folder / "m.pt2")
    return str(folder / "m.pt2")


def described(bundle):
    return [(str(spec), spec.batch_axis) for spec in bundle.inputs], [(str(spec), spec.batch_axis) for spec in bundle.outputs]


@pytest.mark.parametrize(("batch", "size"), [("dynamic", "batch"), (1, "1")])
def test_an_input_without_a_batch_keeps_its_shape(tmp_path, batch, size):
    bundle = exported(Camera(), tmp_path, inputs={"points": (1, 4, 3), "k": (3, 3)}, batch=batch)
    assert described(bundle) == (
        [(f"points: float32[{size}x4x3]", 0), ("k: float32[3x3]", None)],
        [(f"y: float32[{size}x4x3]", 0 if batch == "dynamic" else None)],
    )
    rows = 5 if batch == "dynamic" else 1
    points, k = np.random.default_rng(0).standard_normal((rows, 4, 3), np.float32), np.eye(3, dtype=np.float32)[::-1].copy()
    answer = bundle.session("onnxruntime-cpu").run({"points": points, "k": k})["y"]
    np.testing.assert_array_equal(answer, np.maximum(points[:, :, ::-1], 0))


def test_a_batch_that_is_not_in_front_is_where_the_option_says(tmp_path):
    bundle = exported(Recurrent(), tmp_path, inputs={"x": (1, 4), "state": (2, 1, 4)}, batch_axes={"state": 1})
    inputs, outputs = described(bundle)
    assert inputs == [("x: float32[batchx4]", 0), ("state: float32[2xbatchx4]", 1)]
    assert outputs == [("y0: float32[batchx4]", 0), ("y1: float32[2xbatchx4]", 1)]
    assert bundle.manifest["inputs"][1]["batch_axis"] == 1
    assert "batch_axis" not in bundle.manifest["inputs"][0]


@pytest.mark.parametrize("axes", [{"state": 7}, {"stat": 1}])
def test_a_batch_axis_that_cannot_be_is_refused(tmp_path, axes):
    with pytest.raises(UsageError, match="--batch-axis"):
        exported(Recurrent(), tmp_path, inputs={"x": (1, 4), "state": (2, 1, 4)}, batch_axes=axes)
    assert not (tmp_path / "m.rdb").exists()


def test_keyword_and_dictionary_arguments_become_inputs_and_outputs_by_their_keys(tmp_path):
    bundle = exported(Nested(), tmp_path, inputs={"offset": (1, 3), "batch.b": (1, 3), "batch.a": (1, 3)})
    feeds = {spec.name: np.full((2, 3), value, np.float32) for spec, value in zip(bundle.inputs, (5, 7, 1), strict=True)}
    assert list(feeds) == ["batch.b", "batch.a", "offset"]
    for backend in ("onnxruntime-cpu", "torch"):
        answer = bundle.session(backend).run(feeds)
        assert answer["sum"][0, 0] == 8
        assert answer["difference"][0, 0] == 2


def test_elements_of_nested_tuples_become_inputs_by_their_places(tmp_path):
    names = ["past.1.0", "past.0.1", "past.0.0", "past.1.1"]
    bundle = exported(Cached(), tmp_path, inputs={"x": (1, 3), **dict.fromkeys(names, (1, 3))})
    feeds = {"x": 100, "past.0.0": 1, "past.0.1": 2, "past.1.0": 3, "past.1.1": 4}
    assert [spec.name for spec in bundle.inputs] == list(feeds)
    arrays = {name: np.full((2, 3), value, np.float32) for name, value in feeds.items()}
    assert bundle.session("onnxruntime-cpu").run(arrays)["y"].tolist() == [[100 + 1 - 2 + 30 - 40] * 3] * 2


def test_any_container_of_results_becomes_outputs_by_the_names_of_its_fields(tmp_path):
    module = Containers()
    bundle = exported(module, tmp_path, inputs={"x": (1, 3)})
    assert "forward" not in vars(module)
    assert bundle.program_verdict["passed"]
    x = np.array([[1, -1, 2], [3, 4, -5]], np.float32)
    y = np.maximum(x, 0) * [2, 3, 4]
    spectrum = np.fft.rfft(y)
    expected = {
        "scale": y,
        "pair.first": y + 1,
        "pair.second": [2, 3, 4],
        "spectrum": np.stack([spectrum.real, spectrum.imag], -1),
        "size": 7,
    }
    assert [spec.name for spec in bundle.outputs] == list(expected)
    for backend in ("onnxruntime-cpu", "torch"):
        answer = bundle.session(backend).run({"x": x})
        for name, values in expected.items():
            np.testing.assert_allclose(answer[name], values, atol=1e-5)


def test_a_program_of_several_types_is_compared_in_float64(tmp_path):
    bundle = exported(MixedTypes(), tmp_path, inputs={"x": ((2, 8), "float32")})
    assert bundle.program_verdict["passed"]


def test_variable_arguments_are_inputs_in_their_order(tmp_path):
    bundle = exported(Sum(), tmp_path, inputs=dict.fromkeys(("a", "b", "c"), (1, 3)))
    feeds = {name: np.full((2, 3), value, np.float32) for name, value in (("a", 7), ("b", 2), ("c", 1))}
    assert bundle.session("onnxruntime-cpu").run(feeds)["y"].tolist() == [[4] * 3] * 2


def test_keywords_beside_named_parameters_are_inputs_of_a_fixed_batch(tmp_path):
    class Weighted(nn.Module):
        def forward(self, x, **others):
            return torch.relu(x - others["y"] * others["z"])

    bundle = exported(Weighted(), tmp_path, inputs={"x": (1, 3), "y": (1, 3), "z": (1, 3)}, batch=2)
    assert [str(spec) for spec in bundle.inputs] == [f"{name}: float32[2x3]" for name in "xyz"]
    feeds = {name: np.arange(6, dtype=np.float32).reshape(2, 3) * scale for name, scale in (("x", 9), ("y", 2), ("z", 1))}
    # 9a - 2a·a for a = 0 … 5, and 0 where that is negative.
    np.testing.assert_array_equal(bundle.session("onnxruntime-cpu").run(feeds)["y_out"], [[0, 7, 10], [9, 4, 0]])


def test_an_input_and_a_part_of_it_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"past: past\.0 is a part of it"):
        exported(Cached(), tmp_path, inputs={"x": (1, 3), "past": (1, 3), "past.0": (1, 3)})


def test_integer_inputs_take_their_type_and_without_it_the_error_says_how(tmp_path):
    bundle = exported(Words(), tmp_path, inputs={"ids": ((1, 6), "int64")})
    assert [str(spec) for spec in bundle.inputs] == ["ids: int64[batchx6]"]
    with pytest.raises(InputError, match="Long, Int") as raised:
        export_source(Words(), tmp_path / "other.rdb", inputs={"ids": (1, 6)})
    assert "ids=1x64:int64" in raised.value.hint


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floating_inputs_have_the_type_of_the_weights(tmp_path, dtype):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).to(getattr(torch, dtype))
    assert [str(spec) for spec in exported(module, tmp_path, inputs={"x": (1, 4)}).inputs] == [f"x: {dtype}[batchx4]"]


def test_a_scalar_input_has_no_batch(tmp_path):
    bundle = exported(Scaled(), tmp_path, inputs={"x": (1, 4), "factor": ()})
    assert [str(spec) for spec in bundle.inputs] == ["x: float32[batchx4]", "factor: float32[]"]
    assert bundle.inputs[1].batch is None


@pytest.mark.parametrize("opset", [13, 14, 17, 18])
def test_an_older_operator_set_is_written_with_a_varying_batch_and_the_names_of_the_modules(tmp_path, opset):
    from relu_deploy.graph import find_relus, load_model

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    bundle = exported(module, tmp_path, inputs={"x": (1, 3, 8, 8)}, opset=opset)
    assert bundle.manifest["opset"] == opset
    assert [str(spec) for spec in bundle.inputs] == ["x: float32[batchx3x8x8]"]
    assert [relu.scope for relu in find_relus(load_model(bundle.onnx))] == ["2"]
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(bundle.session("onnxruntime-cpu").run({"x": x})["y"], expected, atol=1e-5)


def test_sizes_that_are_computed_from_the_input_are_written_at_the_oldest_operator_set(tmp_path):
    class Resized(nn.Module):
        """Halved and brought back to the height and width of the input, with as many rows as that has."""

        def forward(self, x):
            half = nn.functional.max_pool2d(torch.relu(x), 2)
            return nn.functional.interpolate(half, size=x.shape[2:]) + x.new_zeros(x.shape[0], 1, 1, 1)

    bundle = exported(Resized(), tmp_path, inputs={"x": (1, 1, 2, 4)}, opset=13)
    assert onnx.load(bundle.onnx).opset_import[0].version == 13
    assert bundle.program_verdict["passed"]
    x = np.arange(24, dtype=np.float32).reshape(3, 1, 2, 4)
    answer = bundle.session("onnxruntime-cpu").run({"x": x})["y"]
    assert answer[:, 0, 0].tolist() == answer[:, 0, 1].tolist() == [[5, 5, 7, 7], [13, 13, 15, 15], [21, 21, 23, 23]]


def test_an_operator_set_that_is_too_old_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="opset 12"):
        exported(nn.ReLU(), tmp_path, inputs={"x": (1, 4)}, opset=12)


def pictures():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def picture_program(folder):
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    return saved(pictures(), (torch.randn(2, 3, 32, 48),), folder, dynamic_shapes=(dims,))


def test_a_program_keeps_its_varying_height_and_width(tmp_path):
    bundle = export_source(picture_program(tmp_path), tmp_path / "m.rdb").bundle
    batch, channels, height, width = bundle.inputs[0].shape
    assert (batch, channels) == ("batch", 3)
    assert isinstance(height, str)
    assert isinstance(width, str)
    for size in (20, 33):
        x = np.random.default_rng(0).standard_normal((3, 3, size, size + 5), np.float32)
        expected = pictures().eval()(torch.from_numpy(x)).detach().numpy()
        answer = bundle.session("onnxruntime-cpu").run({"input": x})["y"]
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_sizes_of_a_program_can_be_fixed(tmp_path):
    bundle = export_source(picture_program(tmp_path), tmp_path / "m.rdb", inputs={"input": (1, 3, 32, 48)}).bundle
    assert [str(spec) for spec in bundle.inputs] == ["input: float32[batchx3x32x48]"]


def test_a_program_keeps_its_element_types(tmp_path):
    dims = ({0: torch.export.Dim("n")},)
    program = saved(Words(), (torch.randint(0, 100, (2, 7)),), tmp_path, dynamic_shapes=dims)
    assert [str(spec) for spec in export_source(program, tmp_path / "m.rdb").bundle.inputs] == ["ids: int64[batchx7]"]


def test_a_program_of_a_fixed_batch_keeps_it_and_another_one_is_refused(tmp_path):
    program = saved(nn.Sequential(nn.Linear(6, 2), nn.ReLU()), (torch.randn(4, 6),), tmp_path)
    assert export_source(program, tmp_path / "m.rdb", batch=4).bundle.inputs[0].shape == (4, 6)
    with pytest.raises(UsageError, match="fixes its batch to 4"):
        export_source(program, tmp_path / "other.rdb", batch=2)


class Stateful(nn.Module):
    """A GRU of sequences (N, time, 8) with its state (1, N, 6)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.GRU(8, 6, batch_first=True)

    def forward(self, x, state):
        answers, state = self.layer(x, state)
        return torch.relu(answers[:, -1]), state


class TimeFirst(nn.Module):
    """A GRU of sequences (time, N, 8) with its state (1, N, 6)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.GRU(8, 6)

    def forward(self, x, state):
        answers, state = self.layer(x, state)
        return torch.relu(answers), state


def axes_of(bundle):
    return [(spec.shape, spec.batch_axis) for spec in (*bundle.inputs, *bundle.outputs)]


def test_the_batch_axis_of_a_state_is_found_where_the_model_accepts_only_one(tmp_path):
    bundle = exported(Stateful(), tmp_path, inputs={"x": (1, 5, 8), "state": (1, 1, 6)})
    assert axes_of(bundle) == [(("batch", 5, 8), 0), ((1, "batch", 6), 1), (("batch", 6), 0), ((1, "batch", 6), 1)]


def test_a_state_that_is_given_with_a_batch_of_two_varies_as_well(tmp_path):
    bundle = exported(Stateful(), tmp_path, inputs={"x": (2, 5, 8), "state": (1, 2, 6)})
    assert [spec.shape for spec in bundle.inputs] == [("batch", 5, 8), (1, "batch", 6)]


def test_a_fixed_batch_replaces_no_other_size(tmp_path):
    shapes = {"x": (5, 1, 8), "state": (1, 1, 6)}
    with pytest.raises(UsageError, match="the first size of --input x is 5"):
        exported(TimeFirst(), tmp_path, inputs=shapes, batch=1)
    bundle = exported(TimeFirst(), tmp_path, inputs=shapes, batch=1, batch_axes={"x": 1, "state": 1})
    assert [spec.shape for spec in bundle.inputs] == [(5, 1, 8), (1, 1, 6)]


def test_a_table_of_the_size_of_the_batch_is_no_batch(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 4)

        def forward(self, x, table):
            return self.last(torch.relu(x @ table))

    bundle = exported(Mixed(), tmp_path, inputs={"x": (8, 8), "table": (8, 8)})
    assert axes_of(bundle)[:2] == [(("batch", 8), 0), ((8, 8), None)]


def test_a_model_that_accepts_no_choice_of_batch_axes_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not accept an input of shape"):
        exported(Stateful(), tmp_path, inputs={"x": (1, 5, 8), "state": (1, 1, 7)})


def test_a_program_has_its_batch_where_its_symbol_is(tmp_path):
    batch = torch.export.Dim("n")
    arguments = (torch.zeros(5, 2, 8), torch.zeros(1, 2, 6))
    program = saved(TimeFirst(), arguments, tmp_path, dynamic_shapes=({1: batch}, {1: batch}))
    free = export_source(program, tmp_path / "free.rdb").bundle
    assert axes_of(free) == [((5, "batch", 8), 1), ((1, "batch", 6), 1), ((5, "batch", 6), 1), ((1, "batch", 6), 1)]
    fixed = export_source(program, tmp_path / "fixed.rdb", batch=3).bundle
    assert axes_of(fixed)[:2] == [((5, 3, 8), 1), ((1, 3, 6), 1)]


def test_a_fixed_batch_of_a_program_is_fixed_in_every_input(tmp_path):
    batch = torch.export.Dim("n")
    arguments = (torch.zeros(2, 5, 8), torch.zeros(1, 2, 6))
    program = saved(Stateful(), arguments, tmp_path, dynamic_shapes=({0: batch}, {1: batch}))
    fixed = export_source(program, tmp_path / "m.rdb", batch=3).bundle
    assert axes_of(fixed)[:2] == [((3, 5, 8), 0), ((1, 3, 6), 1)]
    shaped = export_source(program, tmp_path / "s.rdb", inputs={"x": (1, 5, 8), "state": (1, 1, 6)}).bundle
    assert axes_of(shaped) == [(("batch", 5, 8), 0), ((1, "batch", 6), 1), (("batch", 6), 0), ((1, "batch", 6), 1)]


def test_a_program_whose_sizes_are_multiples_is_written(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2))
    dims = {0: torch.export.Dim("n"), 2: 2 * torch.export.Dim("half", min=2, max=64)}
    program = saved(network, (torch.zeros(2, 3, 16, 8),), tmp_path, dynamic_shapes=(dims,))
    bundle = export_source(program, tmp_path / "m.rdb").bundle
    batch, _, height, width = bundle.inputs[0].shape
    assert (batch, width) == ("batch", 8)
    assert isinstance(height, str)
    x = np.random.default_rng(0).standard_normal((3, 3, 12, 8), np.float32)
    expected = network(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(bundle.session("onnxruntime-cpu").run({"input": x})["y"], expected, atol=1e-5)


def test_a_program_of_large_pictures_only_is_traced_again_with_the_sizes_that_it_accepts(tmp_path):
    layers = [layer for _ in range(4) for layer in (nn.LazyConv2d(4, 3, stride=2), nn.ReLU())]
    height = torch.export.Dim("h", min=48, max=400)
    network = nn.Sequential(*layers)
    network(torch.zeros(1, 3, 64, 96))
    program = saved(network, (torch.zeros(2, 3, 64, 96),), tmp_path, dynamic_shapes=({0: torch.export.Dim("n"), 2: height},))
    (spec,) = export_source(program, tmp_path / "m.rdb", batch=1).bundle.inputs
    assert (spec.shape[:2], spec.shape[3]) == ((1, 3), 96)
    assert isinstance(spec.shape[2], str)


def test_an_output_does_not_take_the_name_of_an_input(tmp_path):
    class Difference(nn.Module):
        def forward(self, x, *, y):
            return torch.relu(x - y)

    class Named(nn.Module):
        def forward(self, x):
            return {"x": torch.relu(x), "x_out": x - 1}

    made = exported(Difference(), tmp_path, inputs={"x": (1, 3), "y": (1, 3)})
    x, y = np.float32([[1, 5, -2]]), np.float32([[2, 3, -4]])
    assert [each.name for each in made.outputs] == ["y_out"]
    assert made.session("onnxruntime-cpu").run({"x": x, "y": y})["y_out"].tolist() == [[0, 2, 2]]
    (tmp_path / "of_a_dictionary").mkdir()
    made = exported(Named(), tmp_path / "of_a_dictionary", inputs={"x": (1, 3)})
    assert [each.name for each in made.outputs] == ["x_out_out", "x_out"]


class AnyKeywords(nn.Module):
    """Differences of what only `**others` takes, so that exchanged inputs would show."""

    def forward(self, x, shift=None, **others):
        y = torch.relu(x - others["batch"]["low"])
        return y * others["factor"] if shift is None else y * others["factor"] + shift


def test_keywords_that_no_parameter_names_have_a_varying_batch_and_reach_their_places(tmp_path):
    shapes = {"factor": (1, 1), "x": (1, 4), "batch.low": (1, 4)}
    bundle = exported(AnyKeywords(), tmp_path, inputs=shapes)
    assert {str(spec) for spec in bundle.inputs} == {
        "x: float32[batchx4]",
        "factor: float32[batchx1]",
        "batch.low: float32[batchx4]",
    }
    assert bundle.program_verdict["passed"]
    x, low = np.arange(12, dtype=np.float32).reshape(3, 4), np.full((3, 4), 5, np.float32)
    feeds = {"x": x, "batch.low": low, "factor": np.array([[1], [10], [100]], np.float32)}
    expected = [[0, 0, 0, 0], [0, 0, 10, 20], [300, 400, 500, 600]]
    np.testing.assert_array_equal(bundle.session("onnxruntime-cpu").run(feeds)["y"], expected)


def test_an_operation_that_takes_the_traced_size_only_is_said_and_a_fixed_batch_is_exported(tmp_path):
    class Along(nn.Module):
        def forward(self, x, index):
            return torch.relu(torch.take_along_dim(x, index, 1))

    inputs = {"x": (1, 6), "index": ((1, 3), "int64")}
    with pytest.raises(InputError, match="an operation takes no other size than the one that it is traced with, 2") as refused:
        exported(Along(), tmp_path, inputs=inputs)
    assert "--batch 1" in refused.value.hint
    assert [spec.shape for spec in exported(Along(), tmp_path, inputs=inputs, batch=1).inputs] == [(1, 6), (1, 3)]


def test_a_size_that_is_not_accepted_is_named(tmp_path):
    class Halved(nn.Module):
        def forward(self, x):
            return torch.relu(x.reshape(x.shape[0] // 2 * 2, -1))

    with pytest.raises(InputError, match=r"Not all values of batch = x\.shape\[0\] in the specified range"):
        exported(Halved(), tmp_path, inputs={"x": (1, 8)})
