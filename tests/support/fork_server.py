"""A warmed-up Python that forks once for each command of the tests, so that a command need not import torch anew.

It is run as a script: `python fork_server.py FOLDER OWNER`. It listens on FOLDER/socket and ends when the process OWNER
has ended or when it receives SIGTERM. `fork_client` is the other end: it sends the arguments, the working directory, the
environment and the three standard streams of a Python that is to run; it then forwards signals and receives the status.

Only packages that start no thread are imported here, because a thread does not survive a fork. This is why onnxruntime is
left to the commands themselves: importing it starts one, and takes a twentieth of a second.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import marshal
import os
import pkgutil
import selectors
import signal
import socket
import struct
import sys
import tempfile
import traceback
from pathlib import Path

from forked_python import run
from internal_errors import EXIT_INTERNAL, WORKER, note
from timing import measure_briefly

ROOT = Path(__file__).resolve().parents[2]
FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


class ForkServer:
    """Accepts requests, forks a child for each, and passes its exit status to the client that waits for it."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._owner, self._folder = owner, folder
        self._clients: dict[int, socket.socket] = {}
        self._requests: dict[int, dict] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen(64)
        self._wakeup, written = socket.socketpair()
        self._inherited = [self._listener, self._wakeup, written]
        for end in (self._wakeup, written):
            end.setblocking(False)
        signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end())

    def serve(self) -> None:
        """Serve until the owner has ended."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._reap)
        while True:
            for key, _ in self._selector.select(timeout=2):
                key.data(key.fileobj)
            try:
                os.kill(self._owner, 0)
            except ProcessLookupError:
                self._end()

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        received, streams, _, _ = socket.recv_fds(client, 2**16, 3)
        try:
            (size,) = struct.unpack("!I", received[:4])
            message = received[4:]
            while len(message) < size:
                piece = client.recv(size - len(message))
                if not piece:
                    raise ValueError("the client has gone")
                message += piece
            request = marshal.loads(message)
        except (OSError, ValueError, EOFError, struct.error):
            client.close()
        else:
            pid = os.fork()
            if pid == 0:
                self._become(request, streams, client)
            self._clients[pid], self._requests[pid] = client, request
            self._selector.register(client, selectors.EVENT_READ, lambda client: self._forward(client, pid))
        for stream in streams:
            os.close(stream)

    def _forward(self, client: socket.socket, pid: int) -> None:
        """Send the signal that came from `client` to its process; a client that was killed takes its process with it."""
        try:
            numbers = client.recv(64)
        except OSError:
            numbers = b""
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if not numbers:
            self._selector.unregister(client)
            client.close()
            if self._clients.pop(pid, None) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _reap(self, wakeup: socket.socket) -> None:
        wakeup.recv(2**12)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._note(self._requests.pop(pid), os.waitstatus_to_exitcode(status))
            client = self._clients.pop(pid, None)
            if client is not None:
                self._selector.unregister(client)
                with contextlib.suppress(OSError):
                    client.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))
                client.close()

    def _note(self, request: dict, code: int) -> None:
        if code == EXIT_INTERNAL:
            worker = request["environment"].get(WORKER.encode(), b"").decode()
            note(self._folder, worker, " ".join(request["arguments"])[:500])

    def _end(self) -> None:
        for pid in self._clients:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def _become(self, request: dict, streams: list[int], client: socket.socket) -> None:
        """In the child: be the Python that `request` describes, and never return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in ("SIGCHLD", *FORWARDED):
                signal.signal(getattr(signal, number), signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN if request["ignores_sigint"] else signal.default_int_handler)
            self._selector.close()
            for inherited in (*self._inherited, *self._clients.values(), client):
                inherited.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            code = run(request)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def warm_up() -> None:
    """Import the package with what it imports, and export a small network once: this fills torch's registry of operators."""
    sys.path.insert(0, str(ROOT))
    sys.modules["onnxruntime"] = None  # type: ignore[assignment]  # importing it fails
    import relu_deploy

    for module in pkgutil.walk_packages(relu_deploy.__path__, "relu_deploy."):
        # Packages that are not installed here are imported, and missed, by the commands that need them. The adapters of other
        # engines import these, which start threads.
        if not module.name.endswith("__main__") and not module.name.startswith("relu_deploy.integrations"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    with contextlib.suppress(ImportError), tempfile.TemporaryDirectory() as folder:
        import torch

        torch.set_num_threads(1)
        relu_deploy.export("digits", Path(folder) / "digits.rdb")
    measure_briefly()
    sys.path.remove(str(ROOT))
    del sys.modules["onnxruntime"]
    threads = list(Path("/proc/self/task").iterdir())
    if len(threads) > 1:
        raise RuntimeError(f"warming up has started {len(threads) - 1} threads")


def main() -> None:
    folder, owner = Path(sys.argv[1]), int(sys.argv[2])
    # This folder is no place for commands to import from.
    del sys.path[0]
    # The worker that started it may have a share of the processors only.
    os.sched_setaffinity(0, os.sched_getaffinity(owner))
    # Clients that connect while it warms up wait.
    server = ForkServer(folder, owner)
    warm_up()
    gc.collect()
    gc.freeze()
    server.serve()


if __name__ == "__main__":
    main()
