"""What a benchmark and a verification are fed can be named, for models that have no data set of their own."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import relu_deploy
from relu_deploy.errors import UsageError

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a bundle of a model that nobody knows, which answers 1 for pictures brighter than grey, and labeled pixels for it."""
    folder = tmp_path_factory.mktemp("own")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2), torch.nn.ReLU())
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([-torch.ones(16), torch.ones(16)]))
        module[1].bias.zero_()
    steps = {"scale": 1 / 255, "mean": [0.5], "std": [0.5]}
    shape = {"x": (1, 1, 4, 4)}
    bundle = relu_deploy.export(module.eval(), folder / "m.rdb", inputs=shape, pixels=steps, labels=["dark", "bright"])
    grey = np.array([10, 240, 30, 200, 250, 20], np.uint8)
    labels = (grey > 127).astype(np.int64)
    labels[-1] = 1  # one that the model gets wrong
    np.savez(folder / "pixels.npz", x=np.broadcast_to(grey[:, None, None, None], (6, 4, 4, 1)), labels=labels)
    return bundle, folder / "pixels.npz"


def test_a_benchmark_scores_the_session_that_it_timed_on_the_data_that_are_named(own, forked_workers):
    bundle, data = own
    without = relu_deploy.bench(bundle, ["onnxruntime-cpu"], seconds=0.1).to_json()
    assert without["runs"][0]["accuracy"] is None
    named = relu_deploy.bench(bundle, ["onnxruntime-cpu"], seconds=0.1, data=data).to_json()
    assert named["runs"][0]["accuracy"] == {"name": "top1", "value": round(5 / 6, 6), "samples": 6}
    assert named["environment"]["data"] == str(data)


def test_a_verification_is_fed_rows_of_the_data_that_are_named(own):
    bundle, data = own
    inputs = relu_deploy.verify(bundle, data=data, samples=3).to_json()["inputs"]
    assert inputs["source"] == f"data set {data}"
    assert inputs["shapes"] == {"x": [3, 1, 4, 4]}


def test_named_data_never_give_way_to_random_numbers(own, tmp_path):
    bundle, data = own
    with pytest.raises(UsageError, match="6 rows, fewer than the 8"):
        relu_deploy.verify(bundle, data=data, samples=8)
    with pytest.raises(UsageError, match="no folder of pictures"):
        relu_deploy.verify(bundle, data=tmp_path / "nothing")
    with pytest.raises(UsageError, match="arrays and --data cannot be given together"):
        relu_deploy.verify(bundle, data=data, feeds={"x": np.zeros((1, 1, 4, 4), np.float32)})


def test_several_samples_are_those_of_their_seeds_and_the_data_are_read_once(digits_bundle, monkeypatch):
    from relu_deploy.data import datasets as data

    alone = [data.sample_feeds(digits_bundle, 3, seed) for seed in (5, 6)]
    read = []
    load = data.load_dataset
    monkeypatch.setattr(data, "load_dataset", lambda *given: read.append(given) or load(*given))
    together = data.several_feeds(digits_bundle, 3, (5, 6))
    assert len(read) == 1
    for (feeds, reported), (expected, described) in zip(together, alone, strict=True):
        assert reported == described
        np.testing.assert_array_equal(feeds["x"], expected["x"])
    assert not np.array_equal(together[0][0]["x"], together[1][0]["x"])


def test_a_graph_that_nothing_can_be_compared_with_is_timed_and_not_verified(tmp_path):
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([scaler], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    (run,) = relu_deploy.bench(tmp_path / "m.onnx", backends=["onnxruntime-cpu"], seconds=0.05, threads=1).runs
    assert (run.verified, run.error, run.checked_rows) == (None, "", 0)
    assert run.throughput > 0
