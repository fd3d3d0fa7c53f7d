"""Every TensorRT variant of the small models is parsed and built ahead of time, on a machine without a GPU."""

import numpy as np
import pytest

from relu_deploy.optimization.run import OptimizeOptions, optimize_bundle

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'relu-deploy[rtx]'")


@pytest.fixture(scope="module", params=["digits", "digit_detector", "digit_segmenter"])
def bundle(request, digits_bundle, tmp_path_factory):
    if request.param == "digits":
        return digits_bundle
    pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    from bundles import exported

    return exported(request.param)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_a_variant_is_parsed_and_built_for_gpus_that_are_not_here(bundle, tmp_path, precision):
    from relu_deploy.backends.tensorrt.building.build import build_engine
    from relu_deploy.backends.tensorrt.options import BuildOptions

    settings = OptimizeOptions(calibration=bundle.manifest["dataset"], samples=32, eval_samples=32, max_drop=0.05)
    report = optimize_bundle(bundle, "tensorrt-rtx", precision, out=tmp_path / "out.rdb", options=settings)
    assert report.passed
    capabilities = ("SM89", "SM120") if precision == "fp8" else ("SM86", "SM89")
    variant = report.bundle.with_variant(f"{precision}-tensorrt-rtx")
    built = build_engine("tensorrt-rtx", variant.onnx, BuildOptions(((1, 1, 8),), capabilities))
    assert len(built.plan) > 10_000
    assert np.isfinite(built.seconds)
    assert not [line for line in built.warnings if "uint8" in line.lower()]
