"""The tasks of benchmarks/gpu.py, one a process: `python gpu_tasks.py task.json` writes its result where that file says.

A result is written whenever there is more of it, so that a task which is stopped leaves what it had found.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle, write_atomically
from relu_deploy.errors import BackendUnavailable, InputError, ReluDeployError, Unsupported
from relu_deploy.storage.folders import temporary_folder

Keep = Callable[[Any], None]
#: precision as people call it → options of PyTorch's sessions. int8 has no kernels there: float16 is what it competes with
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"tf32": True},
    "fp16": {"autocast": "float16"},
    "bf16": {"autocast": "bfloat16"},
    "int8": {"autocast": "float16"},
}
TARGETS = {"onnxruntime-cuda": "cuda", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}
LARGEST = 256


def environment(keep: Keep, work: Path, backends: list[str], rates: bool) -> None:
    from relu_deploy.backends import probe
    from relu_deploy.backends.base import default_threads
    from relu_deploy.benchmark.environment import describe
    from relu_deploy.benchmark.gpu_limits import GpuLimits, calibrate_gpu

    probes = [probe(name) for name in backends]
    found: dict[str, Any] = {
        "machine": describe(default_threads()),
        "probes": [one.to_json() for one in probes],
        "usable": {one.name: "" if one.usable else one.reason for one in probes},
        "limits": None,
    }
    keep(found)
    limits = calibrate_gpu() if rates else "this is not a run on a GPU"
    raw = {name: getattr(limits, name) for name in GpuLimits.__dataclass_fields__} if isinstance(limits, GpuLimits) else None
    found["limits"] = limits.to_json() if isinstance(limits, GpuLimits) else {"not_measured": limits}
    write_atomically(work / "limits.json", json.dumps(raw))
    keep(found)


def rtx(keep: Keep, work: Path) -> None:
    """Build an engine, have the library judge it on this GPU, and run it if that is possible."""
    from relu_deploy.backends.base import Options
    from relu_deploy.backends.nvidia.driver import Missing, find_gpu
    from relu_deploy.backends.tensorrt.building.build import build_engine
    from relu_deploy.backends.tensorrt.load import load_session
    from relu_deploy.backends.tensorrt.options import BuildOptions
    from relu_deploy.backends.tensorrt.probe import can_build, probe
    from relu_deploy.data.datasets import sample_feeds

    able = can_build("tensorrt-rtx")
    if not able.usable:
        raise BackendUnavailable(able.reason, able.fix)
    gpu = find_gpu()
    if isinstance(gpu, Missing):
        raise BackendUnavailable(gpu.reason, gpu.fix)
    import tensorrt_rtx as trt

    bundle = exported(work, "digits")
    built = build_engine("tensorrt-rtx", bundle.onnx, BuildOptions(((1, 1, 8),)))
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    validity, diagnoses = runtime.get_engine_validity(built.plan)
    names = [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(diagnoses) & int(bit)]
    found: dict[str, Any] = {
        "version": trt.__version__,
        "gpu": str(gpu),
        "probe": probe("tensorrt-rtx").to_json(),
        "validity": validity.name,
        "diagnoses": names,
        "deserialized": runtime.deserialize_cuda_engine(built.plan) is not None,
        "ran": False,
    }
    keep(found)
    if found["deserialized"]:
        session = load_session("tensorrt-rtx", bundle, Options())
        answer = session.run(sample_feeds(bundle, 1, 0)[0])
        found |= {"ran": all(bool((value == value).all()) for value in answer.values()), "facts": dict(session.facts)}
        session.close()
        keep(found)


def prove(keep: Keep, work: Path, backend: str, dtype: str) -> None:  # one signature for all  # noqa: ARG001  # one signature for all
    from relu_deploy.verification.exhaustive import prove as run

    keep(run(backend, dtype).to_json())


def verify(keep: Keep, work: Path, backend: str, model: str) -> None:
    from relu_deploy.verification.run import verify as run

    keep(run(exported(work, model), [backend]).to_json())


def bench(
    keep: Keep, work: Path, model: str, precision: str, batches: list[int], backends: list[str], seconds: float, torch_mode: str
) -> None:
    from relu_deploy.backends.base import default_threads
    from relu_deploy.benchmark.gpu_limits import GpuLimits
    from relu_deploy.benchmark.process import RowProcesses
    from relu_deploy.benchmark.roofline import calibrate
    from relu_deploy.benchmark.run import ratios_of
    from relu_deploy.benchmark.runner import BenchmarkPlan, measure_rows

    bundle = exported(work, model, precision)
    left_out: dict[str, str] = {}
    variants = variants_for(bundle, precision, backends, left_out)
    bundle = Bundle.open(bundle.path)
    names = []
    for name in backends:
        reason = left_out.get(name) or engines_for(name, bundle, precision, variants, max(batches))
        left_out |= {name: reason} if reason else {}
        names += [] if reason else [name]
    limits = json.loads((work / "limits.json").read_text()) if (work / "limits.json").exists() else None
    on_gpu = any("cuda" in name or "tensorrt" in name for name in backends)
    settings = {**(SETTINGS[precision] if on_gpu else {}), "torch_mode": torch_mode if on_gpu else "default"}
    common = {"settings": settings, "variants": variants, "gpu": GpuLimits(**limits) if limits else None, "may_skip": True}
    plan = BenchmarkPlan(names, seconds, default_threads(), 0, machine=None if on_gpu else calibrate(default_threads()), **common)
    against = next((name for name in names if name.startswith("torch-compile")), None)
    found: dict[str, Any] = {"model": model, "precision": precision, "settings": settings, "against": against}
    found |= {"runs": [], "ratios": [], "left_out": left_out, "not_measured": {}}
    keep(found)
    for batch in batches:
        try:
            with temporary_folder("bench") as folder, closing(RowProcesses(plan.threads, folder)) as started:
                rows, timings = measure_rows(bundle, batch, plan, started)
        except ReluDeployError as error:
            found["not_measured"][str(batch)] = error.message
            keep(found)
            continue
        found["runs"] += [row.to_json() for row in rows]
        found["ratios"] += [ratio.to_json() for ratio in ratios_of(bundle, batch, timings, against)]
        keep(found)


def exported(work: Path, model: str, precision: str = "") -> Bundle:
    """Return the bundle of a zoo model, exported once. TF32 has one of its own: its engines differ in nothing else."""
    from relu_deploy.exporting.exporter import export_source

    place = work / f"{model}.rdb"
    if not place.exists():
        export_source(model, place)
    if precision == "tf32":
        copy = work / f"{model}-tf32" / f"{model}.rdb"
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copytree(place, copy, ignore=shutil.ignore_patterns("engines"))
        place = copy
    return Bundle.open(place)


def variants_for(bundle: Bundle, precision: str, backends: list[str], left_out: dict[str, str]) -> list[str]:
    """Return the names of the variants to measure, made if need be; a backend that has none in this precision is left out."""
    from relu_deploy.optimization.run import OptimizeOptions, optimize_bundle
    from relu_deploy.optimization.targets import TARGETS as KNOWN

    if precision in ("fp32", "tf32"):
        return []
    names = []
    for backend in backends:
        target = TARGETS.get(backend)
        if target is None:
            if precision == "int8" and not backend.startswith("torch-compile"):
                left_out[backend] = "PyTorch has no int8 convolutions; torch.compile in float16 is what int8 is compared with"
            continue
        if precision not in KNOWN[target].precisions:
            left_out[backend] = KNOWN[target].refused.get(precision, "it has no such kernels")
            continue
        name = f"{precision}-{target}"
        if name not in bundle.manifest["variants"]:
            try:
                report = optimize_bundle(bundle, target, precision, options=OptimizeOptions(samples=16, eval_samples=64))
            except ReluDeployError as error:
                left_out[backend] = error.message
                continue
            if report.bundle is None:
                left_out[backend] = f"{precision} missed its accuracy gate"
                continue
            bundle = report.bundle
        names.append(name)
    return names


def engines_for(backend: str, bundle: Bundle, precision: str, variants: list[str], largest: int) -> str:
    """Build the engine that `backend` will take, and return "" or why it cannot be."""
    if not backend.startswith("tensorrt"):
        return ""
    from relu_deploy.backends.tensorrt.building.engine_cache import engine_for
    from relu_deploy.backends.tensorrt.options import BuildOptions

    name = f"{precision}-{TARGETS[backend]}"
    graph = bundle.with_variant(name) if name in variants else bundle
    # Two profiles: one that is tuned for a lone picture, and one for many.
    profiles = ((1, 1, 8), (1, min(64, largest), max(largest, LARGEST)))
    try:
        engine_for(
            backend, graph, BuildOptions(profiles, tf32=precision == "tf32"), warn=lambda line: print(line, file=sys.stderr)
        )
    except ReluDeployError as error:
        return error.message
    return ""


def tests(keep: Keep, work: Path) -> None:  # one signature for all  # noqa: ARG001
    """Run the tests that need a GPU, and count their outcomes."""
    from importlib.util import find_spec

    if find_spec("pytest") is None:
        raise BackendUnavailable("pytest is not installed", "pip install 'relu-deploy[dev]'")
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "-p", "no:cacheprovider", "tests/backends"]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = finished.stdout.splitlines()
    found = {word.lower(): [line for line in lines if line.startswith(word)] for word in ("PASSED", "FAILED", "SKIPPED", "ERROR")}
    keep({"outcomes": found, "exit_code": finished.returncode, "end": lines[-12:]})
    # 1: tests failed, which is a result; 5: there are none.
    if finished.returncode not in (0, 1):
        sys.exit(f"pytest ended with {finished.returncode}: {lines[-1] if lines else finished.stderr[-200:]}")


TASKS = {function.__name__: function for function in (environment, prove, verify, bench, rtx, tests)}


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    target = Path(given["result"])

    def keep(found: Any) -> None:
        write_atomically(target, json.dumps({"result": found}, ensure_ascii=False))

    try:
        TASKS[given["part"]](keep, Path(given["work"]), **given["arguments"])
    except (BackendUnavailable, Unsupported) as error:
        write_atomically(target, json.dumps({"unusable": error.message}))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
