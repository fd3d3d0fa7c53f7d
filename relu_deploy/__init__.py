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

Importing the package costs next to nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relu_deploy.bench import bench as bench
    from relu_deploy.bundle import Bundle as Bundle
    from relu_deploy.compile import compile as compile  # noqa: A004  # named for the verb
    from relu_deploy.export import export as export
    from relu_deploy.nn.watch import watch as watch
    from relu_deploy.optimize import optimize as optimize
    from relu_deploy.package import package as package
    from relu_deploy.relu import relu as relu
    from relu_deploy.relu import relu6 as relu6
    from relu_deploy.serve import serve as serve
    from relu_deploy.verify import verify as verify
    from relu_deploy.verify.census import census as census
    from relu_deploy.verify.prove import prove as prove
    from relu_deploy.zoo import build as build

__version__ = "0.1.0"

#: public name → module that defines it
_HOME = {
    "Bundle": "bundle",
    "bench": "bench",
    "build": "zoo",
    "census": "verify.census",
    "compile": "compile",
    "export": "export",
    "optimize": "optimize",
    "package": "package",
    "prove": "verify.prove",
    "relu": "relu",
    "relu6": "relu",
    "serve": "serve",
    "verify": "verify",
    "watch": "nn.watch",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


class _Package(ModuleType):
    """The package, whose verbs share their names with the modules they live in: the name means the verb.

    Importing `relu_deploy.verify` would make Python bind the module over the function of the same name; it stays
    reachable as every module does, with `from relu_deploy.verify import …`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'relu_deploy' has no attribute {name!r}")
    return getattr(import_module(f"relu_deploy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
