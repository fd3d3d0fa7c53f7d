"""Loads a model in another process before a running server does, because one that crashes its runtime would end the server.

At the start of a server its command line forks for this; see `cli.isolation`. Later the process has threads, and starts this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, TooLong, Unsupported
from relu_deploy.graph.loading.resources import memory_limit, memory_size, set_memory_limit
from relu_deploy.parent_process import end_with_parent
from relu_deploy.serving.batcher import Limits
from relu_deploy.serving.loading import ModelOptions, load_warm
from relu_deploy.trial_outcome import OUT_OF_MEMORY, OVERDUE, outcome_of

__all__ = ["Trials", "load_and_close"]


def load_and_close(path: str | os.PathLike[str], options: ModelOptions) -> None:
    """Load the model at `path` and run it, as `load_warm` does."""
    load_warm(Bundle.open(path), options).session.close()


class Trials:
    """Loads models in processes of their own."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def try_to_load(self, path: Path, options: ModelOptions) -> None:
        """Load the model at `path` in a process of its own. An error that this raises comes again when the server loads it.

        Raises:
            InputError: If it takes longer than `options.load_seconds`, or all memory.
            TooLong: If there is no such limit, and its graph takes longer than one from elsewhere may.
            Unsupported: If it crashes its process.
        """
        signature_key = None if options.signature_key is None else str(options.signature_key)
        request = [str(path), options.backend, options.threads, options.device, options.limits.max_batch, signature_key]
        own = [os.getpid(), memory_limit(), options.load_seconds is None]
        words = [sys.executable, "-m", "relu_deploy.serving.trial", json.dumps([*own, *request])]
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(words, stdin=nowhere, stdout=nowhere, stderr=nowhere)
        self._running.add(process)
        try:
            code = process.wait(options.load_seconds)
        except subprocess.TimeoutExpired:
            raise InputError(f"loading {path} took longer than {options.load_seconds:g} s", "allow more with --timeout") from None
        finally:
            process.kill()
            process.wait()
            self._running.discard(process)
        if code == OVERDUE:
            raise TooLong(f"loading {path} takes too long", "start the server with --timeout, which says how long it may take")
        if code in (OUT_OF_MEMORY, -signal.SIGKILL):
            raise InputError(f"there is not enough memory for {path}", "use a smaller model or --max-batch")
        if code < 0:
            raise Unsupported(
                f"{path} crashed the runtime that loaded it (signal {-code})",
                "the file may be damaged; try another --backend or version of the runtime",
            )

    def stop(self) -> None:
        """End the processes that run."""
        for process in list(self._running):
            process.kill()


def _main() -> int:
    parent, limit, limited, path, backend, threads, device, max_batch, signature_key = json.loads(sys.argv[1])
    if not end_with_parent(parent):
        return 0
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (memory_size() if most < 0 else min(memory_size(), most), most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    set_memory_limit(limit)
    key = None if signature_key is None else Path(signature_key)
    options = ModelOptions(backend, threads, device, Limits(max_batch, 0.0, 1), signature_key=key)
    return outcome_of(lambda: load_and_close(path, options), limited)


if __name__ == "__main__":
    sys.exit(_main())
