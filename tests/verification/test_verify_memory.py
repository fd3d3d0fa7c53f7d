"""A verification that would need more memory than is allowed is refused before anything is allocated."""

import itertools
import time

import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.graph.loading.resources import set_memory_limit


@pytest.fixture
def small_limit():
    """Tensors of 10 kB at most, so that a verification may take 160 kB: 8 and 16 bytes of each of 1,000 elements, and 96."""
    set_memory_limit(10_000)
    yield
    set_memory_limit(None)


def graph(folder, shape, count=1):
    names = ["x", *(f"t{at}" for at in range(count - 1)), "y"]
    nodes = [helper.make_node("Relu", [read], [made], made) for read, made in itertools.pairwise(names)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_what_fits_is_verified(tmp_path, command, small_limit):
    assert command("verify", graph(tmp_path, ["N", 1000]), "--quiet").code == 0


@pytest.mark.parametrize(
    ("shape", "count", "words"),
    [(["N", 1000], 1, ("--samples", "8")), (["N", 1000], 9, ()), ([1, "W"], 1, ("--shape", "x=1x2000"))],
)
def test_many_rows_many_relus_and_large_inputs_are_refused(tmp_path, command, small_limit, shape, count, words):
    ended = command("verify", graph(tmp_path, shape, count), *words, "--quiet")
    assert ended.code == 2
    assert "verifying m on these inputs needs about" in ended.stderr
    assert "--max-memory" in ended.stderr


def test_tensors_of_gigabytes_are_refused_in_no_time(tmp_path, command):
    began = time.process_time()
    ended = command("verify", graph(tmp_path, [1, 60_000_000]), "--max-memory", "0.25", "--quiet")
    set_memory_limit(None)
    assert (ended.code, "needs about" in ended.stderr) == (2, True), ended.stderr
    assert time.process_time() - began < 20
