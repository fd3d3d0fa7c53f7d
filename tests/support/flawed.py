"""A backend with one flaw at a time, of the kinds that real runtimes have had, to see whether verify finds it."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from relu_deploy.backends import registry
from relu_deploy.backends.base import Executed, Probe
from relu_deploy.backends.onnxruntime.load import load as load_onnx_runtime
from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model, save_model


class Flawed:
    """Wraps an ONNX Runtime session; the flaw changes the graph before, or the answers after."""

    def __init__(self, session, flaw, options):
        self._session, self._flaw, self._options = session, flaw, options
        self.inputs, self.outputs, self.facts = session.inputs, session.outputs, session.facts
        self._runs = 0

    def run(self, feeds):
        self._runs += 1
        results = self._session.run(feeds)
        return self._flaw.answers(results, feeds, self._runs, self._options)

    def executed(self):
        return self._flaw.executed(self._session.executed())

    def close(self):
        self._session.close()


class Flaw:
    def graph(self, model: ir.Model) -> None:
        """Change the graph that is going to run."""

    def answers(self, results, feeds, runs, options):
        return results

    def executed(self, kernels: list[Executed]) -> list[Executed]:
        return kernels


@pytest.fixture
def flawed(monkeypatch, tmp_path):
    """Return a function that installs a backend called "flawed" with the given flaw."""

    def install(flaw: Flaw) -> str:

        def load(name, bundle, options):
            model = load_model(bundle.onnx)
            flaw.graph(model)
            path = tmp_path / f"flawed{len(list(tmp_path.iterdir()))}.onnx"
            save_model(model, path)
            changed = Bundle(path, {**bundle.manifest, "files": {}})
            return Flawed(load_onnx_runtime("onnxruntime-cpu", changed, options), flaw, options)

        backend = SimpleNamespace(probe=lambda name: Probe(name, True, version="0"), load=load)
        monkeypatch.setitem(registry._registered, "flawed", backend)
        return "flawed"

    return install


class LeakyAt(Flaw):
    """One Relu's kernel lets negative values through."""

    def __init__(self, node):
        self.node = node

    def graph(self, model):
        for node in model.graph:
            if node.name == self.node:
                node.op_type = "LeakyRelu"


class WrongOnlyFused(Flaw):
    """Conv and Relu are right alone and wrong together: the fused kernel adds one."""

    def __init__(self, relu):
        self.relu = relu

    def graph(self, model):
        for node in list(model.graph):
            source = node.inputs[0].producer() if node.inputs else None
            if node.name == self.relu and source is not None and source.op_type == "Conv":
                one = ir.Value(
                    name="one", const_value=ir.tensor(np.float32(1), name="one"), type=ir.TensorType(ir.DataType.FLOAT)
                )
                model.graph.initializers["one"] = one
                add = ir.node("Add", [node.inputs[0], one])
                model.graph.insert_before(node, add)
                node.replace_input_with(0, add.outputs[0])


class TapsChangeFusion(Flaw):
    """With more than one tap the kernels are others, and the last bit of the outputs too."""

    def answers(self, results, feeds, runs, options):
        if len(options.taps) < 2:
            return results
        tapped = {relu.output for relu in options.taps}
        return {name: array if name in tapped else np.nextafter(array, np.float32(np.inf)) for name, array in results.items()}


class RowsDiffer(Flaw):
    """The row's place in a batch changes the answer (TensorRT 11.1: four answers for four identical rows)."""

    def answers(self, results, feeds, runs, options):
        return {
            name: array + np.float32(0.01) * np.arange(len(array), dtype=np.float32).reshape(-1, *(1,) * (array.ndim - 1))
            for name, array in results.items()
        }


class EveryRunDiffers(Flaw):
    def answers(self, results, feeds, runs, options):
        return {name: array + np.float32(0.05 * runs) for name, array in results.items()}


class SwallowsNan(Flaw):
    """Relus give 0 for NaN, as max(0, x) does on some hardware."""

    def answers(self, results, feeds, runs, options):
        tapped = {relu.output for relu in options.taps}
        return {name: np.nan_to_num(array, nan=0.0) if name in tapped else array for name, array in results.items()}


class RunsElsewhere(Flaw):
    def executed(self, kernels):
        return [
            Executed(kernel.node, kernel.operator, "SomeOtherExecutionProvider", kernel.precision) for kernel in kernels[:1]
        ] + list(kernels[1:])
