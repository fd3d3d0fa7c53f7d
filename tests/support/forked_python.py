"""What `python ARGUMENTS` does from its start to its end, in a process that `fork_server` has forked."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType

__all__ = ["run"]


def run(request: dict) -> int:
    """Run the program that `request` of `fork_client` describes; return its exit code."""
    os.chdir(request["folder"])
    os.environb.clear()
    os.environb.update(request["environment"])
    # The package sets this when it is imported, which it is already: without it ONNX Runtime sends telemetry.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    _open_streams()
    _settle_threads(request["processors"])
    sys.modules["__main__"] = main = ModuleType("__main__")
    sys.argv, sys.executable = list(request["arguments"]), request["executable"]
    try:
        _run_main(main)
        code: object = None
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        # As it would be without the frames of this file.
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return _end(code)


def _run_main(main: ModuleType) -> None:
    """Run `-m MODULE`, `-c CODE`, `-` or the path of a script."""
    kind = sys.argv[0]
    if kind in ("-m", "-c"):
        target = sys.argv.pop(1)
    if kind == "-m":
        _set_path(str(Path.cwd()))
        runpy._run_module_as_main(target)
        return
    if kind == "-c":
        _set_path("")
        name, text = "<string>", target
    elif kind == "-":
        _set_path("")
        name, text = "<stdin>", sys.stdin.read()
    else:
        _set_path(str(Path(kind).resolve().parent))
        name, text = kind, Path(kind).read_bytes()
        main.__dict__["__file__"] = str(Path.cwd() / kind)
    exec(compile(text, name, "exec"), main.__dict__)


def _set_path(first: str) -> None:
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *paths, *(path for path in sys.path if path not in paths)]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    # Another copy of the package, in the folder or on PYTHONPATH, is another program than the one imported here.
    found, loaded = importlib.machinery.PathFinder.find_spec("relu_deploy"), sys.modules.get("relu_deploy")
    if loaded is not None and (found is None or found.origin != loaded.__file__):
        for name in [name for name in sys.modules if name.partition(".")[0] == "relu_deploy"]:
            del sys.modules[name]


def _open_streams() -> None:
    """Open the standard streams anew: where they lead is known only now."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        raw = io.FileIO(number, "w", closefd=False)
        lines = name == "stderr" or raw.isatty()
        stream = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw), "utf-8", errors, line_buffering=lines, write_through=unbuffered
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _settle_threads(processors: list[int]) -> None:
    """Use the client's processors, with as many threads as a Python that starts on them."""
    os.sched_setaffinity(0, processors)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(processors)))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _end(code: object) -> int:
    """Do what Python does at its end, except for the destructors of libraries; return the exit code."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return int(code or 0) & 0xFF
