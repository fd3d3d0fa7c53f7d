"""Run a page: its Python in one interpreter, its commands in one shell, both in one folder that is empty at first."""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from doc_output import first_missing
from doc_pages import ROOT, Block, Command, Page, commands
from processes import CONSOLE_SCRIPT, command_folder, python

#: seconds that one command or block may take
PATIENCE = 420
#: of `relu-deploy serve`
DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
DONE = "the-command-before-this-line-ended-with"


class Wrong(Exception):
    """What a page promises did not come; the text names file and line."""


def run_page(page: Page, folder: Path, patience: float = PATIENCE) -> None:
    """Run every block of `page` in `folder`. Raises Wrong for the first that does not do what it shows."""
    page = with_free_ports(page)
    shell: _Shell | None = None
    interpreter: _Interpreter | None = None
    with tempfile.TemporaryDirectory(prefix="relu-deploy-page-") as tools:
        try:
            printed = ""
            for block in page.blocks:
                if block.file is not None and block.reason is None:
                    target = folder / block.file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(block.text, encoding="utf-8")
                if not block.is_run:
                    continue
                if block.language == "output":
                    _check(page, block.line, block.text.splitlines(), printed)
                elif block.language == "python":
                    interpreter = interpreter or _Interpreter(folder, Path(tools), patience)
                    printed = interpreter.run(page, block)
                else:
                    shell = shell or _Shell(folder, Path(tools), patience)
                    hidden = Command(block.text, block.line, (), 0)
                    for command in [hidden] if block.language == "hidden" else commands(block):
                        shell.run(page, command)
        finally:
            for process in (shell, interpreter):
                if process is not None:
                    process.end()


def ports_of(page: Page) -> list[int]:
    """Return the ports that the servers of `page` are going to listen on."""
    blocks = [block for block in page.blocks if block.is_run and block.language == "console"]
    return [port for block in blocks for command in commands(block) if command.serves for port in _ports(command)]


def with_free_ports(page: Page) -> Page:
    """Return `page` with its servers, and what speaks to them, on free ports: several pages may run at a time.

    Only what runs is changed; in what a page shows, a numeral stands for any other.
    """
    moved = {port: free_port() for port in ports_of(page) if port >= 1024}
    spoken_to = re.compile(r"(?<=localhost:)(\d+)|(?<=127\.0\.0\.1:)(\d+)|(?<=-port[ =])(\d+)")

    def move(found: re.Match[str]) -> str:
        return str(moved.get(int(found[0]), found[0]))

    blocks = []
    for block in page.blocks:
        text = block.text
        if block.is_run and block.language == "console":
            for command in commands(block):
                if command.serves:
                    text = text.replace(command.text, _with_every_port(command.text))
        blocks.append(replace(block, text=spoken_to.sub(move, text) if block.is_run else text))
    return replace(page, blocks=tuple(blocks))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _with_every_port(text: str) -> str:
    """Return the command that starts a server with its default ports given as options."""
    for name, port in DEFAULT_PORTS.items():
        if f"--{name}-port" not in text:
            text = re.sub(r"\bserve\b", f"serve --{name}-port {port}", text, count=1)
    return text


def _ports(command: Command) -> list[int]:
    ports = []
    for name, default in DEFAULT_PORTS.items():
        given = re.search(rf"--{name}-port[ =](-?\d+)", command.text)
        port = int(given[1]) if given else default
        if port > 0:
            ports.append(port)
    return ports


def _check(page: Page, line: int, shown: list[str] | tuple[str, ...], real: str) -> None:
    missing = first_missing(shown, real)
    if missing is not None:
        raise Wrong(f"{page.path}:{line + missing}: shown, but not what came: {shown[missing].strip()!r}\nwhat came:\n{real}")


class _Child:
    """A process in a session of its own, read by a thread so that waiting for it can end."""

    def __init__(self, words: list[str], folder: Path, tools: Path, patience: float) -> None:
        self._patience, self._gone = patience, False
        self._process = subprocess.Popen(
            words,
            cwd=folder,
            env=_environment(tools),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def _next(self, until: float) -> str | None:
        """Return the next line, None when the process has gone or the time is up; `_late` then says which."""
        try:
            line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        self._gone = line is None
        return line

    def _late(self, what: str) -> str:
        return f"{what} ended" if self._gone else f"not finished after {self._patience:g} s"

    def end(self) -> None:
        """End the process and all that it started, and wait until they are gone."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, how)
            except ProcessLookupError:
                break
            until = time.monotonic() + 10
            while time.monotonic() < until and _has_members(self._process.pid):
                self._process.poll()
                time.sleep(0.05)
        self._process.wait()


class _Shell(_Child):
    def __init__(self, folder: Path, tools: Path, patience: float) -> None:
        super().__init__(["bash", "--noprofile", "--norc"], folder, tools, patience)
        self._script = tools / "command.sh"

    def run(self, page: Page, command: Command) -> None:
        where = f"{page.path}:{command.line}"
        said, code = self._run(command.text, where)
        if code != command.code:
            raise Wrong(f"{where}: exit code {code} instead of {command.code}: {command.text.strip()}\n{said}")
        if command.serves:
            said += self._until_it_answers(command, where, said)
        _check(page, command.line + command.text.count("\n") + 1, command.shown, said)

    def _run(self, text: str, where: str) -> tuple[str, int]:
        # From a file, so that the command cannot read the shell's own input.
        self._script.write_text(f"{text}\n", encoding="utf-8")
        self._say(f". {shlex.quote(str(self._script))} </dev/null; printf '\\n{DONE} %d\\n' $?\n")
        said, until = "", time.monotonic() + self._patience
        while (line := self._next(until)) is not None:
            if line.startswith(DONE):
                return said, int(line.split()[-1])
            said += line
        raise Wrong(f"{where}: {self._late('the shell')}: {text.strip()}\n{said}")

    def _until_it_answers(self, command: Command, where: str, said: str) -> str:
        ports = _ports(command)
        if not ports:
            raise Wrong(f"{where}: a server on a free port cannot be waited for: name its --http-port")
        until, more = time.monotonic() + min(self._patience, 120), ""
        while time.monotonic() < until:
            if all(_answers(port) for port in ports):
                # What it printed before it listened has been written by now; one more turn of the shell brings it here.
                return more + self._run("sleep 0.2", where)[0]
            line, code = self._run("sleep 0.1; kill -0 $! 2>/dev/null", where)
            more += line
            if code != 0:
                break
        raise Wrong(f"{where}: the server does not answer on {ports}: {command.text.strip()}\n{said}{more}")


class _Interpreter(_Child):
    def __init__(self, folder: Path, tools: Path, patience: float) -> None:
        super().__init__([python(), str(Path(__file__).with_name("doc_python.py"))], folder, tools, patience)

    def run(self, page: Page, block: Block) -> str:
        """Return what the block printed."""
        self._say(json.dumps({"text": block.text, "line": block.line, "file": str(page.path)}) + "\n")
        answer = self._next(time.monotonic() + self._patience)
        if answer is None:
            raise Wrong(f"{page.path}:{block.line}: {self._late('Python')}")
        result = json.loads(answer)
        if result["error"]:
            inner = re.findall(rf'File "{re.escape(str(page.path))}", line (\d+)', result["error"])
            line = inner[-1] if inner else block.line
            raise Wrong(f"{page.path}:{line}: {result['error'].strip().splitlines()[-1]}\n{result['output']}\n{result['error']}")
        return str(result["output"])


def _environment(tools: Path) -> dict[str, str]:
    """Return an environment in which `relu-deploy` and `python` are this working tree's, whatever is installed."""
    forked = command_folder()
    script = tools / "relu-deploy"
    if forked is None and not script.exists():
        script.write_text(f"#!{sys.executable}\n{CONSOLE_SCRIPT}", encoding="utf-8")
        script.chmod(0o755)
    folders = [str(forked or tools), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    path = os.pathsep.join(folders)
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # Without TERM and with a fixed width a page's output is the same wherever it is checked.
    plain = {"TERM": "dumb", "COLUMNS": "120", "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    return {**os.environ, **plain, "PATH": path, "PYTHONPATH": python_path}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def can_run() -> str:
    """Return why pages cannot be run here, "" when they can."""
    return (
        "" if shutil.which("bash") and hasattr(os, "killpg") else "the examples are run by bash on a POSIX system: install bash"
    )
