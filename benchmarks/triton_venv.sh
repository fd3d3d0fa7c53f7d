#!/usr/bin/env bash
# Prepare an environment with a real Triton Inference Server that needs no GPU and no container, for tests/e2e/test_triton.py.
#
#   benchmarks/triton_venv.sh DIR && RELU_DEPLOY_TRITON=DIR python -m pytest tests/e2e/test_triton.py
#
# The wheel of PyTriton holds the server with its Python backend only. Linux, Python 3.8 to 3.13; PYTHON names which.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -ne 1 ]; then
    echo "usage: benchmarks/triton_venv.sh DIR" >&2
    exit 2
fi
python=${PYTHON:-python3}
# The same ONNX Runtime as the project's, so that answers can be compared bit by bit.
onnxruntime=$(grep '^onnxruntime==' constraints.txt)
"$python" -m venv "$1"
"$1/bin/pip" install --quiet nvidia-pytriton==0.7.0 'numpy<2' "$onnxruntime"
"$1/bin/python" - <<'END'
import pathlib
import shutil
import sys

import pytriton

server = pathlib.Path(pytriton.__file__).parent / "tritonserver"
stub = "triton_python_backend_stub"
version = f"{sys.version_info.major}.{sys.version_info.minor}"
shutil.copy2(server / "python_backend_stubs" / version / stub, server / "backends" / "python" / stub)
END
echo "Triton is ready: RELU_DEPLOY_TRITON=$1"
