"""ONNX Runtime, on the CPU or an NVIDIA GPU.

Its telemetry is switched off here, before any module of this package can import it, unless the user has decided otherwise:
since 1.32 it queues events with a device identifier in the user's cache, and looks up its maker's collector.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
