"""PyTorch on a GPU, as far as a machine without one can tell; with one, the sessions themselves are run."""

import re
import threading

import numpy as np
import pytest

from relu_deploy.backends import Options, load
from relu_deploy.backends.nvidia.driver import Missing, find_driver
from relu_deploy.backends.torch.cuda import float32_arithmetic
from relu_deploy.backends.torch.load import load as load_torch
from relu_deploy.backends.torch.load import program_module
from relu_deploy.errors import BackendUnavailable, UsageError

torch = pytest.importorskip("torch")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")


def test_float32_is_float32_unless_tf32_is_asked_for_and_nobody_elses_setting_is_lost():
    torch.backends.cudnn.allow_tf32, kept = True, torch.backends.cudnn.allow_tf32
    try:
        with float32_arithmetic(tf32=False):
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        with pytest.raises(ZeroDivisionError), float32_arithmetic(tf32=True):
            assert torch.backends.cuda.matmul.allow_tf32
            raise ZeroDivisionError
        assert torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = kept


def test_one_threads_arithmetic_is_not_changed_by_anothers():
    inside, leave, seen = threading.Event(), threading.Event(), []

    def with_tf32():
        with float32_arithmetic(tf32=True):
            inside.set()
            leave.wait(20)
            seen.append(("tf32", torch.backends.cuda.matmul.allow_tf32))

    def without():
        with float32_arithmetic(tf32=False):
            seen.append(("float32", torch.backends.cuda.matmul.allow_tf32))

    first = threading.Thread(target=with_tf32)
    first.start()
    inside.wait(20)
    second = threading.Thread(target=without)
    second.start()
    second.join(0.2)
    assert seen == []
    leave.set()
    first.join(20)
    second.join(20)
    assert seen == [("tf32", True), ("float32", False)]
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_program_moves_with_the_tensors_that_it_makes_while_it_runs(tmp_path):
    from bundles import exported

    bundle = exported("digit_detector", decode="boxes")
    module = program_module(bundle, torch.device("meta"))
    places = {node.kwargs["device"].type for node in module.graph.nodes if node.kwargs.get("device") is not None}
    assert places <= {"meta"}
    outputs = module(torch.empty(2, 1, 128, 128, device="meta"))
    assert {one.device.type for one in outputs} == {"meta"}
    assert [list(one.shape) for one in outputs] == [[2, *spec.shape[1:]] for spec in bundle.outputs]


@pytest.mark.parametrize(("wish", "said"), [({"torch_mode": "fastest"}, "max-autotune"), ({"autocast": "int8"}, "bfloat16")])
def test_wishes_that_torch_does_not_know_are_answered_with_those_that_it_does(digits_bundle, wish, said):
    with pytest.raises(UsageError) as refused:
        load_torch("torch-compile", digits_bundle, Options(**wish))
    assert said in refused.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU: run it on a machine that has none")
def test_without_a_gpu_it_is_said(digits_bundle):
    driver = find_driver()
    with pytest.raises(BackendUnavailable, match=re.escape(driver.reason) if isinstance(driver, Missing) else "CPU build|no GPU"):
        load(digits_bundle, "torch-cuda")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["torch-cuda", "torch-compile-cuda"])
def test_bound_runs_give_the_answers_of_plain_ones(digits_bundle, name):
    session = load(digits_bundle, name)
    x = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    plain = session.run({"x": x})["y"]
    bound = session.bind({"x": x})
    for feed in (np.zeros_like(x), x, torch.from_numpy(x).cuda()):
        bound.upload({"x": feed})
        bound.run()
    assert np.array_equal(bound.download()["y"], plain)
    bound.close()
    session.close()
