"""The two tools under test, asked alike: which tensor or node differs first, if any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx


class Ours:
    """relu_deploy.verify: its verdict and the node that it names."""

    name = "relu_deploy"

    def __init__(self, backend: str = "onnxruntime-cpu", optimization: str = "all") -> None:
        self.backend, self.optimization = backend, optimization

    def first(self, model: Path, against: str, feeds: Mapping[str, np.ndarray]) -> tuple[bool, str | None, dict]:
        from relu_deploy.verification.run import verify

        report = verify(model, [self.backend], feeds=dict(feeds), against=against, optimization=self.optimization, threads=2)
        backend = report.backends[0]
        ratios = [relu.comparison.error_ratio for relu in backend.relus if relu.comparison]
        ratios += [comparison.error_ratio for comparison in backend.outputs.values()]
        facts = {
            "largest_ratio": float(min(max(ratios, default=0), 1e300)),
            "kind": backend.faults[0].kind if backend.faults else None,
        }
        return not report.passed, report.first_divergence, facts


def tensors_of(model: Path, feeds: Mapping[str, np.ndarray], optimization: str = "all") -> dict[str, np.ndarray]:
    """Return every tensor of `model` on ONNX Runtime, in the graph's order: what `--onnxrt --onnx-outputs mark all` runs."""
    import onnxruntime

    proto = onnx.load(model)
    known = {value.name for value in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in known:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 2
    level = "DISABLE_ALL" if optimization == "none" else f"ENABLE_{optimization.upper()}"
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    return {name: values[name] for node in proto.graph.node for name in node.output if name in values}


def polygraphy_mismatches(reference: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray]) -> list[str]:
    """Return the tensors that Polygraphy's comparison calls different, in the order of `measured`.

    CompareFunc.simple() with its defaults, which are those of `polygraphy run`: rtol = atol = 1e-5, element by element.
    """
    from polygraphy.comparator import Comparator, CompareFunc, IterationResult, RunResults
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    common = [name for name in measured if name in reference]
    reference, measured = ({name: np.ascontiguousarray(values[name]) for name in common} for values in (reference, measured))
    results = RunResults()
    results.append(("reference", [IterationResult({name: reference[name] for name in common}, runner_name="reference")]))
    results.append(("measured", [IterationResult({name: measured[name] for name in common}, runner_name="measured")]))
    matched = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple())
    verdicts = next(iter(matched[0].values()))[0]
    return [name for name in common if not bool(verdicts[name])]


def maker_of(model: Path, tensor: str | None) -> str | None:
    if tensor is None:
        return None
    return next((node.name for node in onnx.load(model).graph.node if tensor in node.output), None)
