"""A real tritonserver in a process of its own, and the plainest of clients."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np

DTYPES = {"FP32": "float32", "UINT8": "uint8", "INT64": "int64", "BYTES": "S"}
NAMES = {"float32": "FP32", "uint8": "UINT8"}


def environment(venv):
    """Return (the server's folder, the variables it needs), or raise FileNotFoundError that says what is missing."""
    packages = next(iter(sorted(Path(venv).glob("lib/python*/site-packages"))), None)
    server = packages and packages / "pytriton" / "tritonserver"
    if not server or not (server / "backends" / "python" / "triton_python_backend_stub").exists():
        raise FileNotFoundError(f"{venv} holds no prepared Triton: run benchmarks/triton_venv.sh {venv}")
    base = subprocess.run(
        [Path(venv) / "bin" / "python", "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    libraries = f"{base}/lib:{packages / 'nvidia_pytriton.libs'}"
    # The stub's interpreter pays no heed to PYTHONPATH; the first python3 on PATH tells it where the packages are.
    path = f"{Path(venv) / 'bin'}:{os.environ['PATH']}"
    return server, {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": path}


class Triton:
    """A started server. strict: every model has to load, else it does not start."""

    def __init__(self, venv, repository, log, strict=True):
        server, variables = environment(venv)
        self.port, grpc, metrics = free_ports(3)
        self.log = log
        words = [
            server / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={server / 'backends'}",
        ]
        words += [f"--http-port={self.port}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--exit-timeout-secs=10"]
        words += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--exit-on-error={str(strict).lower()}"]
        with log.open("wb") as file:
            self.process = subprocess.Popen([str(word) for word in words], env=variables, stdout=file, stderr=file)
        path = "/v2/health/ready" if strict else "/v2/health/live"
        until = time.monotonic() + 90
        while self.status(path) != 200:
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise AssertionError(f"tritonserver did not start:\n{log.read_text()[-6000:]}")
            time.sleep(0.2)

    def status(self, path):
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("GET", path)[0]

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def json(self, path, method="GET", body=None):
        status, text, _ = self.ask(method, path, body)
        assert status == 200, text
        return json.loads(text)

    def infer(self, model, feeds, outputs):
        """Return arrays, which travelled as bytes both ways."""
        inputs, behind = [], b""
        for name, array in feeds.items():
            data = np.ascontiguousarray(array).tobytes()
            reported = {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name]}
            inputs.append({**reported, "parameters": {"binary_data_size": len(data)}})
            behind += data
        expected = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        head = json.dumps({"inputs": inputs, "outputs": expected}).encode()
        status, body, headers = self.ask(
            "POST", f"/v2/models/{model}/infer", head + behind, Inference_Header_Content_Length=str(len(head))
        )
        assert status == 200, body
        length = int(headers["Inference-Header-Content-Length"])
        found, at = {}, length
        for output in json.loads(body[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = np.frombuffer(body[at : at + size], DTYPES[output["datatype"]]).reshape(output["shape"])
            at += size
        assert at == len(body)
        return found

    def infer_many(self, model, many, outputs, workers=16):
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda feeds: self.infer(model, feeds, outputs), many))

    def counts(self, model):
        """Return (rows that were inferred, runs they took)."""
        stats = self.json(f"/v2/models/{model}/stats")["model_stats"][0]
        return stats["inference_count"], stats["execution_count"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_ports(count):
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]
