"""Have clients that others wrote talk to `relu-deploy serve`, unchanged: tritonclient and perf_analyzer, over HTTP and gRPC.

    python3 -m venv clients && clients/bin/pip install 'tritonclient[http,grpc]'
    python benchmarks/conformance.py digits.rdb --client-python clients/bin/python --perf-analyzer .../perf_analyzer \\
        --out benchmarks/results/conformance.json

Nothing is set up here. perf_analyzer finds its libraries by LD_LIBRARY_PATH (benchmarks/README.md says where it comes from).
It measures with rows of the model's own data, and once with its default, which is random bits: NaN among them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, save

from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.serving.protocol.proto import messages
from relu_deploy.tensors import random_feeds

ROWS = 8
DATATYPES = {
    **{f"{kind}{bits}": getattr(TensorProto, f"{kind}{bits}") for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}


def same_onnx(path: Path, datatype: int) -> Path:
    """Write a model whose output is its input."""
    ends = [helper.make_tensor_value_info(name, datatype, ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@contextlib.contextmanager
def serving(folder: Path, *arguments: Any) -> Iterator[dict[str, Any]]:
    """Yield where a server listens; it has to end with 0 on SIGTERM."""
    reported = folder / f"told-{time.monotonic_ns()}.json"
    words = [*map(str, arguments), "--http-port", "0", "--grpc-port", "0", "--metrics-port", "-1", "--json", str(reported)]
    process = subprocess.Popen([sys.executable, "-m", "relu_deploy", "serve", *words], stdout=subprocess.DEVNULL)
    try:
        while not reported.exists():
            if process.poll() is not None:
                raise SystemExit("the server did not start: see above")
            time.sleep(0.05)
        yield json.loads(reported.read_text())
        process.terminate()
        if code := process.wait(timeout=60):
            raise SystemExit(f"the server ended with {code}")
    finally:
        process.kill()


def triton_clients(python: str, bundle: Bundle, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Return what every check of conformance_client.py came to."""
    types = {datatype: same_onnx(folder / f"same_{datatype.lower()}.onnx", number) for datatype, number in DATATYPES.items()}
    session = bundle.session("onnxruntime-cpu", threads=threads)
    (spec,), output = session.inputs, session.outputs[0].name
    x = random_feeds(session.inputs, ROWS)[spec.name]
    alone = np.stack([session.run({spec.name: x[row : row + 1]})[output] for row in range(ROWS)])
    np.savez(folder / "arrays.npz", x=x, alone=alone, together=session.run({spec.name: x})[output])
    compiled = messages().DESCRIPTOR.serialized_pb
    # A FileDescriptorSet with one file: its field 1, with the length as a varint.
    (folder / "proto").write_bytes(b"\x0a" + varint(len(compiled)) + compiled)
    with serving(folder, bundle.path, *types.values(), "--threads", threads, "--allow-admin") as where:
        reported = {
            **{name: where[name] for name in ("http", "grpc")},
            "model": bundle.name,
            "arrays": str(folder / "arrays.npz"),
            "types": {datatype: path.stem for datatype, path in types.items()},
            "proto": str(folder / "proto"),
        }
        (folder / "told.json").write_text(json.dumps(reported))
        words = [python, str(Path(__file__).with_name("conformance_client.py")), str(folder / "told.json")]
        answer = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=without_project())
    return json.loads(answer.stdout)


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def without_project() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def data_file(bundle: Bundle, path: Path) -> Path:
    """Write rows of numbers as perf_analyzer reads them."""
    (spec,) = bundle.inputs
    rows = random_feeds(bundle.inputs, ROWS)[spec.name]
    reported = [{spec.name: {"content": row.ravel().tolist(), "shape": list(row.shape)}} for row in rows]
    path.write_text(json.dumps({"data": reported}))
    return path


def perf_analyzer(
    binary: str, where: dict[str, Any], protocol: str, model: str, folder: Path, more: Sequence[str]
) -> dict[str, Any]:
    """Return what perf_analyzer was asked, how it ended, and the rows of its own table."""
    table = folder / f"perf-{time.monotonic_ns()}.csv"
    command = [binary, "-m", model, "-u", f"127.0.0.1:{where[protocol]}", "-i", protocol, "--percentile", "99", "-f", str(table)]
    # A busy machine is never as steady as it asks for by default: this is about whether it gets its answers.
    command += ["--measurement-mode", "count_windows", "--measurement-request-count", "100", "-s", "999", *more]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    said = (answer.stdout + answer.stderr).strip().splitlines()
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    requested = " ".join(word if word != str(folder / "data.json") else "data.json" for word in more)
    detail = f"{len(rows)} rows" if answer.returncode == 0 else " ".join(said[-6:])
    return {
        "client": "perf_analyzer",
        "check": f"{protocol} {requested}",
        "passed": answer.returncode == 0 and bool(rows),
        "detail": detail,
        "rows": rows,
    }


def measured(binary: str, bundle: Bundle, folder: Path, threads: int) -> list[dict[str, Any]]:
    data = str(data_file(bundle, folder / "data.json"))
    runs = (
        ("--concurrency-range", "1:8", "--input-data", data),
        ("--concurrency-range", "1:8", "--async", "--input-data", data),
        ("--concurrency-range", "2", "-b", "4", "--input-data", data),
        ("--request-rate-range", "50", "--request-distribution", "poisson", "--input-data", data),
        ("--concurrency-range", "2", "--input-data", "zero"),
    )
    json_runs = (
        ("--concurrency-range", "2", "--input-tensor-format", "json", "--output-tensor-format", "json", "--input-data", data),
    )
    results = []
    with serving(folder, bundle.path, "--threads", threads) as where:
        for protocol in ("http", "grpc"):
            for more in (*runs, *(json_runs if protocol == "http" else ())):
                results.append(perf_analyzer(binary, where, protocol, bundle.name, folder, more))
                print(results[-1]["passed"], results[-1]["check"], results[-1]["detail"], flush=True)
    with serving(folder, bundle.path, "--threads", threads, "--allow-nan") as where:
        for protocol in ("http", "grpc"):
            results.append(perf_analyzer(binary, where, protocol, bundle.name, folder, ("--concurrency-range", "1:8")))
            results[-1]["check"] += " (its default data, --allow-nan)"
            print(results[-1]["passed"], results[-1]["check"], results[-1]["detail"], flush=True)
    return results


def version_of(command: Sequence[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=without_project())
    return (answer.stdout or answer.stderr).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a bundle or .onnx file with one float32 input and a batch that may vary")
    parser.add_argument("--client-python", required=True, help="a Python with tritonclient[http,grpc]")
    parser.add_argument("--perf-analyzer", help="the program; left out, it is not run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    requested = parser.parse_args()
    bundle = Bundle.open(requested.path)
    versions = "import importlib.metadata as m; print(*[f'{p} {m.version(p)}' for p in ('tritonclient', 'grpcio', 'protobuf')])"
    clients = [version_of([requested.client_python, "-c", versions])]
    with tempfile.TemporaryDirectory() as folder:
        results = triton_clients(requested.client_python, bundle, Path(folder), requested.threads)
        for one in results:
            print(one["passed"], one["client"], one["check"], one["detail"], flush=True)
        if requested.perf_analyzer:
            clients.append(version_of([requested.perf_analyzer, "--version"]))
            results += measured(requested.perf_analyzer, bundle, Path(folder), requested.threads)
    failed = [one for one in results if not one["passed"]]
    result = {
        "environment": describe(requested.threads),
        "server": {name: version(name) for name in ("grpcio", "protobuf", "uvicorn", "httptools")},
        "clients": clients,
        "model": bundle.name,
        "passed": len(results) - len(failed),
        "of": len(results),
        "checks": results,
    }
    if requested.out:
        requested.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(results) - len(failed)} of {len(results)} passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
