"""A session of ONNX Runtime on an NVIDIA GPU, whose inputs and outputs can be bound to buffers on the GPU."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relu_deploy.backends.base import Options
from relu_deploy.backends.nvidia.cuda import Stream
from relu_deploy.backends.nvidia.driver import Gpu
from relu_deploy.backends.onnxruntime.io_binding import OnnxRuntimeIoBinding
from relu_deploy.backends.onnxruntime.probe import PROVIDERS
from relu_deploy.backends.onnxruntime.providers import Profile, require_in_profile
from relu_deploy.backends.onnxruntime.session import OnnxRuntimeSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, missing_package
from relu_deploy.storage.engine_files import trust
from relu_deploy.tensors import Feeds

__all__ = ["OnnxRuntimeGpuSession"]


class OnnxRuntimeGpuSession(OnnxRuntimeSession):
    """A loaded onnxruntime.InferenceSession on one GPU. See `base.DeviceSession`.

    Runs are serialized with a lock, because operations of two threads would interleave on the stream.
    """

    #: ONNX Runtime's name of the memory that holds bound buffers
    place = "cuda"

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        session: Any,
        options: Options,
        gpu: Gpu,
        stream: Stream | None,
        profile: Profile | None = None,
    ) -> None:
        super().__init__(name, bundle, session, options)
        self.stream, self._gpu, self._profile = stream, gpu, profile
        self._lock = threading.Lock()
        self._lent: weakref.WeakSet[OnnxRuntimeIoBinding] = weakref.WeakSet()
        self._engines: Path | None = None
        reported = session.get_provider_options().get(PROVIDERS[name], {})
        private = ("has_user_compute_stream", "user_compute_stream")
        self.facts = {
            **self.facts,
            "device": str(gpu),
            "stream": "ONNX Runtime's" if stream is None else "shared",
            "tf32": _tf32(name, reported),
            # TensorRT 10 may compute float32 nodes in a lower precision if the graph has any that needs it enabled.
            "weakly_typed": name == "onnxruntime-tensorrt",
            "provider_options": {key: value for key, value in reported.items() if key not in private},
            **({"profile": {key: [list(shape) for shape in shapes] for key, shapes in profile.items()}} if profile else {}),
        }

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        if self._profile:
            shapes = {key: tuple(getattr(value, "shape", ())) for key, value in feeds.items()}
            require_in_profile({key: shape for key, shape in self._profile.items() if key in shapes}, shapes, self.title)
        with self._lock:
            return super().run(feeds)

    def bind(self, feeds: Mapping[str, Any]) -> OnnxRuntimeIoBinding:
        """Return buffers on the GPU for inputs of the shapes in `feeds`; see `base.DeviceSession`."""
        if self.stream is None:
            raise missing_package("cuda-bindings")
        bound = OnnxRuntimeIoBinding(self, self.stream, feeds, self.place, self._profile, self._lock)
        self._lent.add(bound)
        return bound

    def trust_engines(self, folder: Path | None) -> None:
        """List what the provider has compiled into `folder` in the manifest, now and when the session is closed."""
        self._engines = folder
        if folder is not None:
            # Without the list the engines are only compiled again.
            with contextlib.suppress(InputError, OSError):
                trust([file for file in folder.iterdir() if not file.name.startswith(".")])

    def close(self) -> None:
        # The bindings wait for work on the stream, so they are closed before it.
        for bound in list(self._lent):
            bound.close()
        super().close()
        self.trust_engines(self._engines)
        if self.stream is not None:
            self.stream.close()


def _tf32(name: str, reported: Mapping[str, str]) -> bool | None:
    """Return whether float32 may be multiplied in TF32; None if the provider does not report it."""
    if name == "onnxruntime-cuda":
        return reported.get("use_tf32") != "0"
    if name == "onnxruntime-tensorrt":
        return os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
    return None
