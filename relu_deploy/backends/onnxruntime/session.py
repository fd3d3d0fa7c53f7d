"""A session of ONNX Runtime that runs all nodes on one execution provider.

ONNX Runtime silently assigns nodes that the requested provider does not support to the CPU. The placement is therefore read
back from the session, and nodes on another provider are an error, except shape arithmetic, which belongs on the CPU.
"""

from __future__ import annotations

import atexit
import itertools
import json
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from relu_deploy import run_limit
from relu_deploy.backends.base import Executed, Options
from relu_deploy.backends.layer_times import LayerTime, LayerTimes, run_in_turn
from relu_deploy.backends.onnxruntime.errors import run_error
from relu_deploy.backends.onnxruntime.placement import has_nodes, nodes_by_provider, nodes_elsewhere
from relu_deploy.backends.onnxruntime.probe import PROVIDERS
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.graph.model import read_model
from relu_deploy.run_limit import ended_after, ending_process, overdue, runs_are_limited
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Feeds, TensorSpec, check_feeds

__all__ = ["OnnxRuntimeSession", "settings_for"]

#: ending of the names of events for the run of a kernel
EVENT = "_kernel_time"
#: ending of the names of kernels for blocked channels, which start with the name of the node's output
NCHWC = "_nchwc"
#: what is added to the name of a node for the kernel that replaces it
REPLACED = re.compile(r"^fused |_token_\d+$")


def settings_for(options: Options) -> Any:
    """Return the onnxruntime.SessionOptions for `options`, without providers."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.thread_count
    settings.inter_op_num_threads = 1
    # A session that is refused logs that it has no profile to write as an error, beside the one that it raises.
    settings.log_severity_level = 4 if options.profile else 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spin)))
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    level = "DISABLE_ALL" if options.optimization == "none" else f"ENABLE_{options.optimization.upper()}"
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    if options.profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(_profiles() / f"{next(_numbers)}-run")
    return settings


#: operators that run a graph again and again
LOOPS = ("Loop", "Scan")
#: kernels that only change a precision or a memory layout
CONVERTING = ("Cast", "DequantizeLinear", "QuantizeLinear", "ReorderInput", "ReorderOutput")

_numbers = itertools.count()


@cache
def _profiles() -> Path:
    """Return this process's folder for profiles; it is removed when the process ends, or by a later one if it is killed."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_folder("profiles"))


class OnnxRuntimeSession:
    """A loaded onnxruntime.InferenceSession. See `base.Session`."""

    def __init__(self, name: str, bundle: Bundle, session: Any, options: Options) -> None:
        self.name, self._bundle, self._session = name, bundle, session
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self.title, self._profiled = bundle.title, options.profile
        #: runs, those that failed not counted
        self._runs = 0
        self._quiet, self._repeats = _quiet_run(), has_nodes(session, LOOPS)
        self._names = [value.name for value in session.get_outputs()]
        self.facts: Mapping[str, Any] = {
            "providers": session.get_providers(),
            "nodes_by_provider": nodes_by_provider(session),
            "precision": "float32",
            "threads": options.thread_count,
        }
        elsewhere = sorted({provider for provider, _ in nodes_elsewhere(session, PROVIDERS[name], bundle)})
        if elsewhere or session.get_providers()[0] != PROVIDERS[name]:
            raise Unsupported(
                f"{name} would run part of {bundle.name} on {', '.join(elsewhere) or session.get_providers()[0]}",
                "relu-deploy doctor says what is missing",
            )

    @property
    def runtime(self) -> Any:
        """The onnxruntime.InferenceSession."""
        return self._session

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        arrays = check_feeds(feeds, self.inputs, self._bundle.name, by_name=False)
        # What one run takes the next ones take too, unless they have Loops: only the first is watched, which costs microseconds.
        limited = (self._repeats or not self._runs) and runs_are_limited()
        try:
            results = self._run_limited(arrays) if limited else self._session.run(self._names, arrays, self._quiet)
        except InputError:
            raise
        except Exception as error:  # the runtime's exception types share no base class
            raise run_error(error, self.name, self.title, arrays) from error
        self._runs += 1
        return dict(zip(self._names, results, strict=True))

    def _run_limited(self, arrays: Feeds) -> Any:
        """Return the results of a run that is ended if it takes too long. Raises TooLong."""
        options, over = _quiet_run(), threading.Event()
        seconds = run_limit.LOOP_SECONDS if self._repeats else run_limit.RUN_SECONDS

        def end() -> None:
            over.set()
            options.terminate = True

        try:
            # It is ended between two nodes; one that takes long by itself takes the process with it.
            with ended_after(seconds, end), ending_process(self.title, self.name, self._repeats, seconds):
                return self._session.run(self._names, arrays, options)
        except Exception:  # the runtime's exception types share no base class
            if over.is_set():
                raise overdue(self.title, self.name, self._repeats) from None
            raise

    def executed(self) -> Sequence[Executed]:
        kernels = {event["name"]: event for event in self._end_profiling()}
        return [
            Executed(
                name.removesuffix(EVENT),
                event["args"]["op_name"],
                event["args"]["provider"],
                _precision(event["args"]),
                event["args"]["op_name"] in CONVERTING,
            )
            for name, event in kernels.items()
        ]

    def time_layers(self, feeds: Sequence[Feeds], seconds: float) -> LayerTimes:
        """Return the times of the kernels; see `base.ProfilingSession`."""
        runs, milliseconds = run_in_turn(self.run, feeds, seconds)
        kernels: dict[str, list[Any]] = {}
        for event in self._end_profiling():
            kernels.setdefault(event["args"]["node_index"], []).append(event)
        graph = read_model(self._bundle.onnx).graph
        nodes = {str(value.name) + NCHWC: str(node.name) for node in graph for value in node.outputs}
        nodes |= {str(node.name): str(node.name) for node in graph}
        layers = [_layer_time(events, runs, self._runs, nodes) for events in kernels.values()]
        return LayerTimes(layers, runs, milliseconds)

    def _end_profiling(self) -> list[Any]:
        """Return the events of the kernels that ran, in order; none when called again."""
        if not self._profiled:
            return []
        self._profiled = False
        file = Path(self._session.end_profiling())
        try:
            events = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(
                f"ONNX Runtime could not write all of its profile to {file.parent}", "free some space there, or set TMPDIR"
            ) from None
        finally:
            file.unlink(missing_ok=True)
        return [event for event in events if event.get("cat") == "Node" and event["name"].endswith(EVENT)]

    def close(self) -> None:
        self.executed()
        self._session = None


def _layer_time(events: Sequence[Any], counted_runs: int, runs: int, nodes: Mapping[str, str]) -> LayerTime:
    """Return the time of a kernel from its events, which are those of the runs before the counted ones too.

    Args:
        events: Events of one kernel, in order; several a run for a kernel inside a loop.
        counted_runs: Number of the last runs, which count.
        runs: Number of all runs that were profiled.
        nodes: Names of the graph's nodes, by the names of their kernels.
    """
    first = events[0]
    counted = events[len(events) * (runs - counted_runs) // runs :]
    name = first["name"].removesuffix(EVENT)
    base = REPLACED.sub("", name)
    return LayerTime(
        name=name,
        kernel=first["args"]["op_name"],
        nodes=(nodes[base],) if base in nodes else (),
        milliseconds=sum(event["dur"] for event in counted) / counted_runs / 1e3,
        precision=_precision(first["args"]),
    )


def _quiet_run() -> Any:
    """Return options for a run whose error is raised and not logged too."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _precision(arguments: Mapping[str, Any]) -> str:
    """Return the precision of a kernel's first output, from the types in its profile event."""
    types = [name for shapes in arguments.get("output_type_shape", ()) for name in shapes]
    known = {
        "float": "float32",
        "double": "float64",
        "float16": "float16",
        "bfloat16": "bfloat16",
        "int8": "int8",
        "uint8": "int8",
    }
    return known.get(types[0], "") if types else ""
