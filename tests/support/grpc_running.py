"""A server in a process of its own, and the smallest models to put into it."""

import contextlib
import json
import subprocess
import time
from types import SimpleNamespace

import grpc
import numpy as np
from onnx import TensorProto, helper, save
from processes import python

from relu_deploy.serving.protocol.proto import SERVICE, messages

ONNX = {"object": TensorProto.STRING, "bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16}


def onnx_type(dtype):
    return ONNX.get(dtype) or helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def same_onnx(path, dtype):
    """Write a model whose output is its input."""
    ends = [helper.make_tensor_value_info(name, onnx_type(dtype), ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def stub_of(channel):
    """Return a client of the protocol's service: one method for each call, with its name."""
    descriptor = messages().DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]]
    calls = {
        method.name: channel.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(messages(), method.output_type.name).FromString,
        )
        for method in descriptor.methods
    }
    return SimpleNamespace(**calls)


@contextlib.contextmanager
def serving(folder, *arguments):
    """Yield a running server: .stub, .channel, .grpc and .http ports, .process. It has to end well on SIGTERM."""
    reported = folder / f"told-{time.monotonic_ns()}.json"
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "-1")
    command = [python(), "-m", "relu_deploy", "serve", *ports, "--threads", "1", "--json", str(reported), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not reported.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        where = json.loads(reported.read_text())
        with grpc.insecure_channel(f"127.0.0.1:{where['grpc']}") as channel:
            yield SimpleNamespace(stub=stub_of(channel), channel=channel, process=process, grpc=where["grpc"], http=where["http"])
        process.terminate()
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
