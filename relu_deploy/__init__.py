"""relu_deploy takes ReLU networks from PyTorch to production and proves what it shipped.

    module  = relu_deploy.build("resnet50")
    bundle  = relu_deploy.export(module, "resnet50.rdb", inputs={"x": (1, 3, 224, 224)}, batch="dynamic")
    report  = relu_deploy.verify(bundle, backends=["onnxruntime-cpu"])
    report  = relu_deploy.census(bundle, "digits")              # dead, always-on and sparse Relus, proven or observed
    with relu_deploy.watch(module): ...                         # warns in training when ReLUs die
    bundle  = relu_deploy.optimize(bundle, target="cpu", precision="int8", calibration="photos/", max_drop=0.005)
    report  = relu_deploy.compile(bundle, "tensorrt-rtx", variant="int8-tensorrt-rtx")   # needs no GPU
    table   = relu_deploy.bench(bundle, backends=["onnxruntime-cpu", "torch"], batch=[1, 8])
    session = bundle.session("onnxruntime-cpu")
    results = relu_deploy.Predictor("digits.rdb").predict(["seven.png"])

Importing the package costs next to nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relu_deploy.activations.census import census as census
    from relu_deploy.activations.watch import watch as watch
    from relu_deploy.benchmark.run import bench as bench
    from relu_deploy.bundle import Bundle as Bundle
    from relu_deploy.compilation.run import compile as compile  # named for the verb  # noqa: A004  # named for the verb
    from relu_deploy.definition import relu as relu
    from relu_deploy.definition import relu6 as relu6
    from relu_deploy.exporting.exporter import export as export
    from relu_deploy.optimization.run import optimize as optimize
    from relu_deploy.packaging.run import package as package
    from relu_deploy.prediction.predictor import Predictor as Predictor
    from relu_deploy.serving.run import serve as serve
    from relu_deploy.verification.exhaustive import prove as prove
    from relu_deploy.verification.run import verify as verify
    from relu_deploy.version import __version__ as __version__
    from relu_deploy.zoo.recipes import build as build

#: public name → module that defines it
_HOME = {
    "Bundle": "bundle",
    "Predictor": "prediction.predictor",
    "__version__": "version",
    "bench": "benchmark.run",
    "build": "zoo.recipes",
    "census": "activations.census",
    "compile": "compilation.run",
    "export": "exporting.exporter",
    "optimize": "optimization.run",
    "package": "packaging.run",
    "prove": "verification.exhaustive",
    "relu": "definition",
    "relu6": "definition",
    "serve": "serving.run",
    "verify": "verification.run",
    "watch": "activations.watch",
}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'relu_deploy' has no attribute {name!r}")
    return getattr(import_module(f"relu_deploy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
