"""prove counts every difference of a backend's Relu kernels and excuses none."""

import numpy as np
import pytest
from flawed import Flaw, flawed  # noqa: F401

from relu_deploy import prove
from relu_deploy.errors import BackendUnavailable, Unsupported, UsageError

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


@pytest.mark.parametrize(("dtype", "inputs"), [("float16", 65536), ("int8", 256)])
def test_every_bit_pattern_of_a_small_dtype_goes_through_onnx_runtime(dtype, inputs):
    result = prove("onnxruntime-cpu", dtype).to_json()
    assert result["inputs_tested"] == inputs
    assert result["passed"]
    assert (
        result["mismatch_classes"]["value"] == result["mismatch_classes"]["nan"] == result["mismatch_classes"]["subnormal"] == 0
    )


def test_the_sign_of_zero_that_onnx_runtime_keeps_is_told():
    result = prove("onnxruntime-cpu", "float16").to_json()
    assert result["mismatches"] == result["mismatch_classes"]["signed_zero"] == 1
    assert result["negative_zero_policy"] == "-0.0 becomes -0.0"
    assert result["kernels"][0]["examples"] == [{"input": "0x8000", "got": "0x8000", "expected": "0x0000"}]
    assert result["findings"][0].startswith("Relu of -0.0 is -0.0; relu_deploy.relu gives +0.0, NumPy's maximum(x, 0)")
    assert not prove("onnxruntime-cpu", "float16", strict=True).passed


def test_numpys_own_relu_gives_positive_zero():
    result = prove("reference", "bfloat16").to_json()
    assert result["mismatches"] == 0
    assert result["negative_zero_policy"] == "-0.0 becomes +0.0"
    assert (result["nan_policy"], result["subnormals"]) == ("kept", "kept")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pytorch_is_proven_in_its_own_dtypes(dtype):
    pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    result = prove("torch", dtype).to_json()
    for kernel in [kernel for kernel in result["kernels"] if not kernel["left_out"]]:
        wrong = {kind for kind, count in kernel["mismatches"].items() if count}
        # The bfloat16 products of AVX512 and AMX flush subnormals: behind a Conv the machine does so, and the report counts them.
        assert wrong <= ({"signed_zero"} if "alone" in kernel["where"] else {"signed_zero", "subnormal"}), kernel
        assert dtype == "bfloat16" or "subnormal" not in wrong
    flushed = any(kernel["mismatches"]["subnormal"] for kernel in result["kernels"] if not kernel["left_out"])
    assert result["passed"] == (not flushed)
    assert result["inputs_tested"] == 65536
    assert {kernel["where"] for kernel in result["kernels"] if not kernel["left_out"]} > {"alone, every bit pattern"}


def test_a_dtype_without_a_kernel_is_said_so_and_is_exit_3(command):
    with pytest.raises(Unsupported, match="has no Relu and Clip for bfloat16"):
        prove("onnxruntime-cpu", "bfloat16")
    assert command("prove", "--dtype", "bfloat16", "--quiet").code == 3
    with pytest.raises(BackendUnavailable):
        prove("tensorrt", "float16")
    with pytest.raises(UsageError, match="no dtype 'float12'"):
        prove("onnxruntime-cpu", "float12")


class Wrong(Flaw):
    """One kind of wrong kernel."""

    def __init__(self, kind):
        self.kind = kind

    def answers(self, results, feeds, runs, options):
        y = results["relu"].copy()
        x = feeds["x"]
        tiny = np.finfo(x.dtype).smallest_normal
        if self.kind == "nan":
            y[np.isnan(x)] = 0
        elif self.kind == "subnormal":
            y[(np.abs(x) < tiny)] = 0
        elif self.kind == "value":
            y[x == 1.5] = 1.25
        elif self.kind == "tail" and x.ndim == 1 and x.size % 8 == 3:
            y[-1:] = np.float16(-1)
        elif self.kind == "fused" and x.ndim == 4:
            y = np.abs(x)
        return {**results, "relu": y}


@pytest.mark.parametrize(("kind", "count"), [("nan", 2046), ("subnormal", 1023), ("value", 1)])
def test_a_wrong_kernel_is_counted_by_kind(flawed, kind, count):  # noqa: F811
    report = prove(flawed(Wrong(kind)), "float16")
    assert report.kernels[0].mismatches[kind] == count
    assert not report.passed


@pytest.mark.parametrize(("kind", "where"), [("tail", "odd lengths"), ("fused", "behind a Conv")])
def test_a_kernel_that_is_wrong_in_its_tail_or_when_fused_is_found(flawed, kind, where):  # noqa: F811
    report = prove(flawed(Wrong(kind)), "float16")
    wrong = [kernel.where for kernel in report.kernels if kernel.mismatches["value"]]
    assert sum(report.kernels[0].mismatches.values()) == 1  # its -0.0, as ONNX Runtime's
    assert any(where in place for place in wrong)
    assert not report.passed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_float32_bit_patterns_of_onnx_runtime_differ_in_one(command):
    """2^32 inputs: half a minute on two cores."""
    done = command("prove", "--json", "-", "--quiet")
    assert done.code == 0
    assert done.json["inputs_tested"] == 2**32
    assert done.json["mismatches"] == 1
    assert done.json["findings"][0] == "Relu of -0.0 is -0.0; relu_deploy.relu gives +0.0, NumPy's maximum(x, 0) +0.0 (1)"
    assert done.json["kernels"][0]["examples"] == [{"input": "0x80000000", "got": "0x80000000", "expected": "0x00000000"}]
