"""`bench --layers` shows the runtime's own times of its layers by Relu segment, beside what the machine could do."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from relu_deploy.backends.layer_times import WARM_UP_RUNS, LayerTime, LayerTimes, run_in_turn
from relu_deploy.benchmark.layers import profile_by_segment
from relu_deploy.benchmark.roofline import Machine
from relu_deploy.errors import Unsupported
from relu_deploy.graph import count_cost, find_relus, load_model


def test_layers_are_summed_by_segment_and_what_the_runtime_added_is_apart(digits_bundle):
    relus = find_relus(load_model(digits_bundle.onnx))
    layers = [
        LayerTime("reorder", "ReorderInput", (), 0.5),
        LayerTime("one", "FusedConv", (relus[0].fused_with[0],), 1.0),
        LayerTime("two", "FusedConv", (relus[1].fused_with[0],), 2.0),
        # A kernel of two segments ends in the later one.
        LayerTime("three", "Fused", (relus[1].node, relus[2].node), 4.0),
    ]
    machine = Machine(flops_per_second=1e9, bytes_per_second=1e9)
    report = profile_by_segment(digits_bundle, digits_bundle, LayerTimes(layers, 7, 8.0), 2, machine).to_json()
    assert [segment["relu"] for segment in report["segments"]] == [*(relu.node for relu in relus), None]
    assert [segment["milliseconds"] for segment in report["segments"]][:4] == [1.0, 2.0, 4.0, 0.0]
    assert [layer["name"] for layer in report["added"]] == ["reorder"]
    assert (report["runs"], report["call_ms"], report["layers_ms"]) == (7, 8.0, 7.5)
    first = report["segments"][0]
    # At 10^9 of both a second, a million takes a millisecond.
    assert first["limit_ms"] == pytest.approx(max(first["flops"], first["bytes"]) / 1e6, abs=1e-6)
    assert first["limited_by"] == ("compute" if first["flops"] > first["bytes"] else "memory")
    assert first["share"] == pytest.approx(first["limit_ms"] / 1.0, abs=1e-4)
    assert sum(segment["flops"] for segment in report["segments"]) == count_cost(load_model(digits_bundle.onnx), 2).flops


def test_another_precision_than_that_of_the_measured_rate_has_no_limit(digits_bundle):
    times = LayerTimes([LayerTime("one", "QLinearConv", (find_relus(load_model(digits_bundle.onnx))[0].node,), 1.0)], 1, 1.0)
    first = profile_by_segment(digits_bundle, digits_bundle, times, 1, None).to_json()["segments"][0]
    assert first["gflops_per_s"] == pytest.approx(first["flops"] / 1e6, rel=1e-3)
    assert (first["limit_ms"], first["limited_by"], first["share"]) == (None, None, None)


def test_the_first_runs_are_not_counted():
    fed = []
    count, milliseconds = run_in_turn(fed.append, [{"x": 1}, {"x": 2}], 0.0)
    assert len(fed) == count + WARM_UP_RUNS
    assert [feeds["x"] for feeds in fed[:4]] == [1, 2, 1, 2]
    assert milliseconds > 0


BACKENDS = ["onnxruntime-cpu", *(["openvino"] if find_spec("openvino") else [])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runtime_reports_a_time_for_the_segment_of_each_relu(backend, digits_bundle):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    from relu_deploy.backends import capabilities, load
    from relu_deploy.data.datasets import sample_feeds

    assert capabilities(backend).times_layers
    session = load(digits_bundle, backend, profile=True, threads=1)
    # Slow runs before do not count.
    for _ in range(3):
        session.run(sample_feeds(digits_bundle, 64, 0)[0])
    times = session.time_layers([sample_feeds(digits_bundle, 4, 0)[0]], 0.1)
    session.close()
    report = profile_by_segment(digits_bundle, digits_bundle, times, 4, Machine(1e11, 1e10)).to_json()
    assert all(segment["milliseconds"] > 0 for segment in report["segments"])
    # Runtimes round the time of each layer, and read another clock.
    assert 0 < report["layers_ms"] <= report["call_ms"] * 1.02


def test_bench_shows_layers_and_says_which_backends_cannot_report_them(command, forked_workers, digits_bundle):
    pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    named = command("bench", digits_bundle.path, "--layers", "--backend", "torch", "--quiet")
    assert named.code == Unsupported.exit_code
    assert "torch does not report the times of its layers" in named.stderr
    assert "onnxruntime-cpu" in named.stderr
    made = command(
        *("bench", digits_bundle.path, "--layers", "--backend", "onnxruntime-cpu", "--seconds", "0.1", "--threads", "1"),
        *("--html", "b.html", "--json", "b.json", "--quiet"),
    )
    assert made.code == 0, made.stderr
    relu = find_relus(load_model(digits_bundle.onnx))[0].node
    assert relu in made.stdout
    assert "of limit" in made.stdout
    page = Path("b.html").read_text()
    assert "Relu segment on onnxruntime-cpu" in page
    assert "Roofline of digits" in page


def test_a_benchmark_of_all_backends_gives_the_reason_for_those_without_layers(monkeypatch):
    from relu_deploy.backends.base import Capabilities
    from relu_deploy.benchmark import runner

    monkeypatch.setattr(runner, "capabilities", lambda name: Capabilities())
    found = runner._layers(None, None, None, "other", 1, None)
    assert found == {"not_measured": "other does not report the times of its layers"}


@pytest.mark.parametrize(
    ("kernel", "node"),
    [
        ("conv", "conv"),
        ("fused conv", "conv"),
        ("conv_token_12", "conv"),
        ("out_nchwc", "conv"),
        ("Transpose_token_2", None),
        ("ReorderOutput", None),
    ],
)
def test_kernels_of_onnx_runtime_are_those_of_the_nodes_whose_names_they_are_made_of(kernel, node):
    from relu_deploy.backends.onnxruntime.session import EVENT, _layer_time

    # Three runs that are not counted, then two of 1 and 3 microseconds.
    arguments = {"op_name": "Conv", "output_type_shape": [{"float": [1]}]}
    events = [{"name": kernel + EVENT, "dur": each, "args": arguments} for each in (100, 100, 100, 1, 3)]
    found = _layer_time(events, 2, 5, {"conv": "conv", "out_nchwc": "conv"})
    assert found == LayerTime(kernel, "Conv", () if node is None else (node,), 0.002, "float32")


def test_runs_before_the_layers_are_timed_do_not_count_however_few_follow(digits_bundle):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    from relu_deploy.backends import load
    from relu_deploy.data.datasets import sample_feeds

    session = load(digits_bundle, "onnxruntime-cpu", profile=True, threads=1)
    for _ in range(20):
        session.run(sample_feeds(digits_bundle, 256, 0)[0])
    times = session.time_layers([sample_feeds(digits_bundle, 1, 0)[0]], 0.0)
    session.close()
    # Were one of the runs of 256 rows among them, the layers would take far longer than the call.
    assert times.runs < 20
    assert sum(layer.milliseconds for layer in times.layers) < 4 * times.call_milliseconds
