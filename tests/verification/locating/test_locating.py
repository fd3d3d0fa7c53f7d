"""verify names the very node: of a graph that is wrong, and of a backend that is."""

import numpy as np
import onnx
import pytest
from flawed import EveryRunDiffers, LeakyAt, RowsDiffer, RunsElsewhere, SwallowsNan, TapsChangeFusion, WrongOnlyFused, flawed  # noqa: F401
from onnx import helper, numpy_helper

from relu_deploy.bundle import Bundle
from relu_deploy.errors import UsageError
from relu_deploy.graph import find_relus, load_model
from relu_deploy.verification.run import verify

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


@pytest.fixture(scope="module")
def feeds():
    return {"x": np.random.default_rng(0).random((2, 1, 28, 28), np.float32)}


def faulty(bundle, tmp_path, change):
    proto = onnx.load(bundle.onnx)
    node = change(proto.graph)
    onnx.save(proto, tmp_path / "faulty.onnx")
    return tmp_path / "faulty.onnx", node


def convolution(graph, position):
    return [node for node in graph.node if node.op_type == "Conv"][position]


def change_weight(graph, name, function):
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(function(numpy_helper.to_array(tensor).copy())), name))


def other_sign(w):
    w.reshape(-1)[np.argmax(w)] *= -1
    return w


def one_channel_louder(w):
    w[3] *= 1.5
    return w


def swapped(w):
    w[[2, 5]] = w[[5, 2]]
    return w


def network(generator):
    """Three times Conv and Relu with random weights, so that no channel is dead and no fault without effect."""
    nodes, tensors, source = [], [], "x"
    for layer, (channels, before) in enumerate(((8, 3), (8, 8), (8, 8))):
        nodes.append(helper.make_node("Conv", [source, f"w{layer}"], [f"c{layer}"], name=f"conv{layer}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"], name=f"relu{layer}"))
        weight = generator.standard_normal((channels, before, 3, 3)).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"w{layer}"))
        source = f"r{layer}"
    values = [helper.make_tensor_value_info(name, 1, [1, channels, 12, 12]) for name, channels in (("x", 3), (source, 8))]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (other_sign, "channel"),
        (one_channel_louder, "scale"),
        (swapped, "channel"),
        (np.negative, "sign"),
        (lambda w: w.astype(np.float16).astype(np.float32), "precision"),
    ],
    ids=["one-sign", "scale", "swap", "all-signs", "half"],
)
def test_a_changed_weight_is_located_at_its_convolution_and_its_kind_told(tmp_path, layer, function, kind):
    proto = network(np.random.default_rng(layer))
    onnx.save(proto, tmp_path / "clean.onnx")
    change_weight(proto.graph, f"w{layer}", function)
    onnx.save(proto, tmp_path / "faulty.onnx")
    report = verify(tmp_path / "faulty.onnx", against=str(tmp_path / "clean.onnx"))
    faults = report.backends[0].faults
    assert [(fault.node, fault.kind, fault.where) for fault in faults] == [(f"conv{layer}", kind, "graph")]


def test_nodes_without_names_are_located_by_type_and_position(tmp_path):
    proto = network(np.random.default_rng(0))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, tmp_path / "clean.onnx")
    change_weight(proto.graph, "w1", one_channel_louder)
    onnx.save(proto, tmp_path / "faulty.onnx")
    report = verify(tmp_path / "faulty.onnx", against=str(tmp_path / "clean.onnx"))
    assert report.first_divergence == "Conv_2"
    assert [relu.relu.node for relu in report.backends[0].relus] == ["Relu_1", "Relu_3", "Relu_5"]


def test_a_graph_with_other_tensor_names_is_compared_relu_by_relu(tmp_path):
    proto = network(np.random.default_rng(0))
    onnx.save(proto, tmp_path / "clean.onnx")
    renamed = {name: f"other_{name}" for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed[name] for name in node.output]
    proto.graph.output[0].name = renamed[proto.graph.output[0].name]
    onnx.save(proto, tmp_path / "renamed.onnx")
    assert verify(tmp_path / "renamed.onnx", against=str(tmp_path / "clean.onnx")).passed
    change_weight(proto.graph, "w1", one_channel_louder)
    onnx.save(proto, tmp_path / "faulty.onnx")
    report = verify(tmp_path / "faulty.onnx", against=str(tmp_path / "clean.onnx"))
    assert [relu.passed for relu in report.backends[0].relus] == [True, False, False]
    assert report.first_divergence == "conv1"
    assert report.backends[0].faults[0].region == ("conv1", "relu1")


def test_a_fault_behind_the_last_relu_is_located(digits_bundle, tmp_path, feeds):
    def change(graph):
        node = next(node for node in graph.node if node.op_type == "Gemm")
        change_weight(graph, node.input[2], lambda b: b + 1)
        return node.name

    path, node = faulty(digits_bundle, tmp_path, change)
    report = verify(path, feeds=feeds, against=str(digits_bundle.path))
    assert report.first_divergence == node
    assert report.backends[0].faults[0].kind == "offset"
    assert all(relu.passed for relu in report.backends[0].relus)


def test_two_faults_on_parallel_branches_are_both_named(tmp_path):
    """x → (Conv a → Relu, Conv b → Relu) → Add: neither fault stands before the other."""

    def model(wrong):
        generator = np.random.default_rng(0)
        weights = {name: generator.standard_normal((4, 2, 3, 3)).astype(np.float32) for name in "ab"}
        nodes = []
        for name in "ab":
            nodes.append(helper.make_node("Conv", ["x", name], [f"{name}_conv"], name=f"conv_{name}", pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [f"{name}_conv"], [f"{name}_relu"], name=f"relu_{name}"))
            if wrong:
                weights[name][1] *= 2
        nodes.append(helper.make_node("Add", ["a_relu", "b_relu"], ["y"], name="add"))
        values = [helper.make_tensor_value_info(name, 1, [1, channels, 8, 8]) for name, channels in (("x", 2), ("y", 4))]
        tensors = [numpy_helper.from_array(w, name) for name, w in weights.items()]
        graph = helper.make_graph(nodes, "branches", values[:1], values[1:], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    onnx.save(model(False), tmp_path / "clean.onnx")
    onnx.save(model(True), tmp_path / "faulty.onnx")
    report = verify(tmp_path / "faulty.onnx", against=str(tmp_path / "clean.onnx"))
    assert [fault.node for fault in report.backends[0].faults] == ["conv_a", "conv_b"]


@pytest.mark.parametrize("position", [0, 2, 5])
def test_a_wrong_graph_is_located_against_the_pytorch_program_too(digits_copy, position):
    proto = onnx.load(digits_copy.onnx)
    node = convolution(proto.graph, position)
    change_weight(proto.graph, node.input[1], one_channel_louder)
    changed = digits_copy.add("model.onnx", proto.SerializeToString())
    report = verify(changed, ["onnxruntime-cpu", "torch"])
    assert report.against == "torch"
    assert report.first_divergence == node.name
    # PyTorch runs its own program, which is right.
    assert [backend.passed for backend in report.backends] == [False, True]


def test_folding_and_reordering_are_no_faults(digits_bundle, tmp_path, feeds):
    import onnxruntime

    for level in ("BASIC", "EXTENDED", "ALL"):
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(str(digits_bundle.onnx), settings, providers=["CPUExecutionProvider"])
        report = verify(tmp_path / "optimized.onnx", feeds=feeds, against=str(digits_bundle.path))
        assert report.passed, report.backends[0].to_json()


@pytest.mark.parametrize("level", ["none", "basic", "extended", "all"])
def test_every_level_of_graph_rewriting_is_verified_when_asked_for(digits_bundle, feeds, level):
    assert verify(digits_bundle, feeds=feeds, optimization=level).passed


def test_an_unknown_level_is_a_usage_error(digits_bundle):
    with pytest.raises(UsageError, match="there is no optimization level 'most'"):
        verify(digits_bundle, optimization="most")


# ---------------------------------------------------------------- flaws of the backend


@pytest.mark.parametrize("position", [0, 4])
def test_a_relu_kernel_that_is_wrong_is_located_by_running_pieces_alone(digits_bundle, flawed, position):  # noqa: F811
    node = find_relus(load_model(digits_bundle.onnx))[position].node
    report = verify(digits_bundle.onnx, [flawed(LeakyAt(node))])
    fault = report.backends[0].faults[0]
    assert report.first_divergence == node
    assert (fault.where, fault.kind) == ("flawed", "sign")
    assert report.backends[0].relus[position].contract.broken.startswith("negative output")


def test_kernels_that_are_wrong_only_together_are_told_with_their_neighbors(digits_bundle, flawed):  # noqa: F811
    relu = find_relus(load_model(digits_bundle.onnx))[2]
    report = verify(digits_bundle.onnx, [flawed(WrongOnlyFused(relu.node))])
    fault = report.backends[0].faults[0]
    assert relu.node in fault.region
    assert "only together" in fault.detail


def test_taps_are_spread_until_they_change_nothing(digits_bundle, flawed):  # noqa: F811
    report = verify(digits_bundle.onnx, [flawed(TapsChangeFusion())])
    assert report.backends[0].as_deployed
    assert all(relu.as_deployed for relu in report.backends[0].relus)
    assert "spread over" in report.backends[0].note
    assert report.passed


def test_a_row_that_depends_on_its_place_in_the_batch_is_found_without_a_reference(digits_bundle, flawed):  # noqa: F811
    report = verify(digits_bundle.onnx, [flawed(RowsDiffer())])
    checks = {check.name.split(" (")[0].split(" 1,")[0]: check.passed for check in report.backends[0].checks}
    assert checks == {"same input twice": True, "identical rows": False, "permuted rows": False, "batch sizes": False} | {
        "batch sizes": checks["batch sizes"]
    }
    assert not report.passed


def test_an_answer_that_changes_from_run_to_run_is_found(digits_bundle, flawed):  # noqa: F811
    report = verify(digits_bundle.onnx, [flawed(EveryRunDiffers())])
    assert report.backends[0].checks[0].passed is False
    assert "times the largest noise" in report.backends[0].checks[0].detail


def test_a_relu_that_swallows_nan_breaks_the_contract(digits_bundle, flawed):  # noqa: F811
    report = verify(digits_bundle.onnx, [flawed(SwallowsNan())])
    broken = {relu.contract.broken for relu in report.backends[0].relus}
    assert "swallows NaN" in broken
    assert not report.passed


def test_swallowed_nan_is_a_finding_that_can_be_accepted(digits_bundle, flawed):  # noqa: F811
    name = flawed(SwallowsNan())
    (refused,) = verify(digits_bundle.onnx, [name]).to_json()["backends"]
    (finding,) = refused["findings"]
    assert [(fault["kind"], fault["node"]) for fault in refused["faults"]] == [("NaN", refused["relus"][0]["node"])]
    assert (finding["kind"], finding["accepted"]) == ("nan-not-propagated", False)
    assert "return a number for NaN" in finding["detail"]
    accepted = verify(digits_bundle.onnx, [name], accept=["nan-not-propagated"])
    assert accepted.passed
    (backend,) = accepted.to_json()["backends"]
    assert [(one["kind"], one["accepted"]) for one in backend["findings"]] == [("nan-not-propagated", True)]
    assert {relu["contract"]["nan_kept"] for relu in backend["relus"]} >= {False}
    assert {relu["contract"]["broken"] for relu in backend["relus"]} == {""}
    with pytest.raises(UsageError, match="no finding 'anything'"):
        verify(digits_bundle.onnx, [name], accept=["anything"])


def test_accepted_nan_hides_no_other_difference(digits_bundle, flawed):  # noqa: F811
    report = verify(digits_bundle.onnx, [flawed(RowsDiffer())], accept=["nan-not-propagated"])
    assert not report.passed


def test_honest_relus_keep_nan(digits_bundle):
    report = verify(digits_bundle, ["onnxruntime-cpu", "torch"])
    for backend in report.backends:
        assert backend.relus[0].contract.nan_kept is True
        assert not [relu for relu in backend.relus if relu.contract.nan_kept is False]


# ---------------------------------------------------------------- requested against delivered


def test_a_kernel_on_another_execution_provider_is_reported(digits_bundle, flawed):  # noqa: F811
    report = verify(digits_bundle.onnx, [flawed(RunsElsewhere())])
    assert not report.as_requested
    assert "another execution provider" in report.backends[0].execution.differences[0]


def half_precision(bundle, path):
    transformers = pytest.importorskip(
        "onnxruntime.transformers.float16",
        reason="this onnxruntime has no onnxruntime.transformers.float16: install another release of it",
    )
    onnx.save(transformers.convert_float_to_float16(onnx.load(bundle.onnx), keep_io_types=True), path)
    return path


def test_float16_that_is_computed_in_float32_is_exit_3_where_the_backend_was_named(digits_bundle, tmp_path, command):
    path = half_precision(digits_bundle, tmp_path / "half.onnx")
    named = command("verify", path, "--against", digits_bundle.path, "--backend", "onnxruntime-cpu", "--json", "-")
    if named.json["as_requested"]:
        pytest.skip("ONNX Runtime has float16 kernels for the whole model here: run it on a processor without them")
    assert named.code == 3
    assert named.json["precision"] == "float16"
    assert "float16 nodes ran in float32" in named.json["backends"][0]["delivered"]["differences"][0]
    automatic = command("verify", path, "--against", digits_bundle.path, "--json", "-")
    assert (automatic.code, automatic.json["passed"], automatic.json["as_requested"]) == (0, True, False)


def test_float32_is_delivered_as_requested(digits_bundle):
    delivered = verify(digits_bundle).backends[0].execution
    assert delivered.differences == []
    assert {precision for _, precision, _ in delivered.kernels} == {"float32"}


def test_a_fault_is_told_from_the_noise_of_float16(digits_bundle, tmp_path):
    proto = onnx.load(digits_bundle.onnx)
    node = convolution(proto.graph, 2)
    change_weight(proto.graph, node.input[1], other_sign)
    onnx.save(proto, tmp_path / "faulty.onnx")
    bad = half_precision(Bundle.open(tmp_path / "faulty.onnx"), tmp_path / "bad.onnx")
    good = half_precision(digits_bundle, tmp_path / "good.onnx")
    against = str(digits_bundle.path)
    assert verify(good, against=against).passed
    report = verify(bad, against=against)
    assert report.first_divergence == node.name


def eight_bits(source, target, feeds):
    quantization = pytest.importorskip(
        "onnxruntime.quantization", reason="this onnxruntime has no onnxruntime.quantization: install another release of it"
    )

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([feeds])

        def get_next(self):
            return next(self.feeds, None)

    # Seven bits for weights: with eight, CPUs without VNNI overflow inside the kernel, which is a fault and would be found.
    quantization.quantize_static(source, target, Reader(), per_channel=True, reduce_range=True)
    return target


def test_a_fault_is_told_from_the_noise_of_int8(digits_bundle, tmp_path):
    from relu_deploy.data.datasets import sample_feeds

    feeds, _ = sample_feeds(digits_bundle, 8, 0)
    proto = onnx.load(digits_bundle.onnx)
    node = convolution(proto.graph, 2)
    change_weight(proto.graph, node.input[1], one_channel_louder)
    onnx.save(proto, tmp_path / "faulty.onnx")
    good = eight_bits(digits_bundle.onnx, tmp_path / "good.onnx", feeds)
    bad = eight_bits(tmp_path / "faulty.onnx", tmp_path / "bad.onnx", feeds)
    clean = verify(good, feeds=feeds, against=str(digits_bundle.path))
    assert clean.precision == "int8"
    assert clean.passed, clean.backends[0].to_json()
    report = verify(bad, feeds=feeds, against=str(digits_bundle.path))
    assert report.first_divergence == node.name


def test_a_scale_that_saturates_is_located_at_its_quantizer(digits_bundle, tmp_path):
    from relu_deploy.data.datasets import sample_feeds

    feeds, _ = sample_feeds(digits_bundle, 8, 0)
    good = eight_bits(digits_bundle.onnx, tmp_path / "good.onnx", feeds)
    proto = onnx.load(good)
    relu = [node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0].startswith("relu")][1]
    change_weight(proto.graph, relu.input[1], lambda scale: scale / 4)
    onnx.save(proto, tmp_path / "bad.onnx")
    report = verify(tmp_path / "bad.onnx", feeds=feeds, against=str(digits_bundle.path))
    fault = report.backends[0].faults[0]
    assert fault.kind == "saturation"
    assert relu.name in (fault.node, *fault.region)


def test_the_report_is_a_page_that_names_the_fault(digits_bundle, tmp_path, command):
    proto = onnx.load(digits_bundle.onnx)
    node = convolution(proto.graph, 1)
    change_weight(proto.graph, node.input[1], one_channel_louder)
    onnx.save(proto, tmp_path / "faulty.onnx")
    done = command("verify", tmp_path / "faulty.onnx", "--against", digits_bundle.path, "--html", "report.html")
    assert done.code == 1
    page = (tmp_path / "report.html").read_text()
    assert node.name in page
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert f"at {node.name}" in done.stdout
    again = command("verify", tmp_path / "faulty.onnx", "--against", digits_bundle.path, "--html", "report.html")
    assert again.code == 2
    assert "--force" in again.stderr


def test_a_bundle_keeps_its_report_as_json_and_as_a_page(digits_copy, command):
    assert command("verify", digits_copy.path).code == 0
    kept = Bundle.open(digits_copy.path).manifest["files"]
    assert {"reports/verify.json", "reports/verify.html"} <= set(kept)
