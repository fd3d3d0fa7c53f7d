"""The worker process of cpu_race.py: sessions of any backend, and of models that NNCF quantized, timed on command."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from relu_deploy.backends import Probe, register
from relu_deploy.optimization.auto.worker import Worker
from relu_deploy.worker_process import serve

__all__ = ["NNCF", "RaceWorker"]

#: backend that runs the OpenVINO model beside an ONNX file: the same name, with this ending
NNCF, ENDING = "nncf", ".nncf.xml"


class NncfSession:
    """A model of OpenVINO's own format, with the settings of this project's backend openvino."""

    def __init__(self, bundle: Any, options: Any) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.thread_count,
            "NUM_STREAMS": 1,
        }
        self._compiled = core.compile_model(core.read_model(str(bundle.onnx.with_suffix(ENDING))), "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._names = [spec.name for spec in bundle.outputs]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        results = self._request.infer(dict(feeds), share_inputs=True)
        return {name: results[port] for port in self._compiled.outputs for name in self._names if name in port.get_names()}

    def close(self) -> None:
        self._compiled = self._request = None


class RaceWorker(Worker):
    """Adds a command that returns outputs."""

    def outputs(self, key: str, feeds: str, results: str) -> dict[str, Any]:
        """Run a session on the arrays in the .npz file `feeds` and write the outputs to the .npz file `results`."""
        with np.load(feeds) as archive:
            arrays = self.session(key).run({name: archive[name] for name in archive.files})
        np.savez(results, **arrays)  # type: ignore[arg-type]
        return {}


if __name__ == "__main__":
    register(
        NNCF,
        SimpleNamespace(probe=lambda name: Probe(name, True), load=lambda _name, bundle, options: NncfSession(bundle, options)),
    )
    serve(RaceWorker())
