"""The models of the fault bench: clean graphs with their BatchNorms, a bundle of each, and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

#: name → input shape: small pictures, so that several hundred verifications take minutes
MODELS = {
    "digits": (2, 1, 28, 28),
    "digit_detector": (1, 1, 64, 64),
    "mobilenet_v2": (1, 3, 64, 64),
    "squeezenet1_1": (1, 3, 64, 64),
    "resnet18": (1, 3, 64, 64),
}


@dataclass(frozen=True)
class Subject:
    """clean: graph with BatchNorms kept, every node named. bundle: the same model exported by relu_deploy, with its program."""

    name: str
    clean: Path
    bundle: Path
    feeds: dict[str, np.ndarray]


def prepare(name: str, folder: Path) -> Subject:
    import torch

    from relu_deploy import build, export

    shape = MODELS[name]
    clean, bundle = folder / f"{name}.onnx", folder / f"{name}.rdb"
    from relu_deploy.zoo.recipes import recipes

    torch.manual_seed(0)
    module = build(name, weights="default" if recipes()[name].to_json()["weights"] else None).eval()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if recipes()[name].to_json()["weights"] is None:
        settle_statistics(module, shape)
    if not clean.exists():
        program = torch.onnx.export(
            module, (torch.from_numpy(x),), dynamo=True, optimize=False, input_names=["x"], opset_version=20, verbose=False
        )
        raw = folder / f"{name}.raw.onnx"
        program.save(str(raw))
        adopt_named(raw, clean)
        export(module, bundle, inputs={"x": shape}, batch=shape[0], force=True)
    return Subject(name, clean, bundle, {"x": x})


def settle_statistics(module, shape) -> None:
    """Give an untrained network biases, and its BatchNorms the statistics of random pictures: zeros and ones hide faults."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
            with torch.no_grad():
                layer.bias.uniform_(-0.1, 0.1, generator=generator)
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = None
        with torch.no_grad():
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.bias.uniform_(-0.5, 0.5, generator=generator)
    if norms:
        module.train()
        with torch.no_grad():
            for _ in range(2):
                module(torch.randn((4, *shape[1:]), generator=generator))
        module.eval()


def adopt_named(raw: Path, clean: Path) -> None:
    """Write `raw` with constants as initializers and a name for every node, as any tool would before looking at nodes."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    from relu_deploy.graph import load_normalized_model, save_model

    model = load_normalized_model(raw)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    model = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).model
    for node in model.graph:
        node.metadata_props.clear()
    save_model(model, clean)
    onnx.checker.check_model(str(clean), full_check=True)
