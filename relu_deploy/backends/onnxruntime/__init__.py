"""Backends that run ONNX Runtime, on the CPU or a GPU.

Its telemetry is disabled before a module of this package can import it, unless the environment variable is set already: since
version 1.32 it stores events with a device identifier in the user's cache and contacts its vendor's collector.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
