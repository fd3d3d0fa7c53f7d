"""What a page of documentation promises to run: its fenced blocks, in order, and what is wrong with how they are written.

```python             run in one namespace a page
```console            lines that begin with `$ ` (and `> ` right after one) are run by one shell a page; the others are
                      what comes, see `doc_output`; `# … exit 2` at the end of a command's line is the exit code it ends with
```output             what the Python block before it printed
<!-- not run: why --> on the line before a block: it cannot run here, for this reason
<!-- file: name -->   on the line before a block: it is written to this file instead of being run
<!-- run              a command of its own, that a reader does not see
…
-->
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,}) *(?P<language>[^\s`]*)[^`]*$")
PARSERS = {"json": json.loads, "yaml": lambda text: list(yaml.safe_load_all(text)), "toml": tomllib.loads}
#: what a comment may say about the block on the next line
SAID = ("not run", "needs", "file")
RUN = ("python", "console", "output", "hidden")


@dataclass(frozen=True)
class Block:
    """One fenced block. line: of its first line of text, from 1. reason: why it is not run, file: where it is written, or None."""

    language: str
    text: str
    line: int
    reason: str | None = None
    file: str | None = None

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.reason is None and self.file is None


@dataclass(frozen=True)
class Command:
    """One command of a console block, the lines shown below it, and the exit code that it is to have."""

    text: str
    line: int
    shown: tuple[str, ...]
    code: int

    @property
    def serves(self) -> bool:
        return bool(re.search(r"\bserve\b.*&\s*(#.*)?$", self.text, re.DOTALL))


@dataclass(frozen=True)
class Page:
    """The blocks of one file and the lines that keep it from being run as it is written, each as `file:line: what`."""

    path: Path
    blocks: tuple[Block, ...]
    problems: tuple[str, ...]

    @property
    def is_run(self) -> bool:
        return any(block.is_run for block in self.blocks)


def pages() -> list[Path]:
    """Return the files whose examples are run, those that are only read on the site included."""
    folders = ("*.md", "docs/**/*.md", "models/*/README.md", "benchmarks/README.md", "docker/README.md")
    return sorted({file for folder in folders for file in ROOT.glob(folder)})


def page_at(path: Path) -> Page:
    return read_page(path, path.read_text(encoding="utf-8"))


def read_page(path: Path, text: str) -> Page:
    """Return the page whose text is `text`. path: only for messages."""
    blocks: list[Block] = []
    problems: list[str] = []
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    lines = text.splitlines()
    said: dict[str, str] = {}
    at, in_indented = 0, False
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is not None:
            end = _closing(lines, at, fence)
            indent = len(fence["indent"])
            inner = "".join(f"{line[indent:] if not line[:indent].strip() else line}\n" for line in lines[at + 1 : end])
            blocks.append(Block(fence["language"], inner, at + 2, _reason(said), said.get("file")))
            problems += [f"{name}:{at + 1}: {what}" for what in _wrong_with(blocks[-1])]
            said, at = {}, end + 1
            continue
        if said:
            problems.append(f"{name}:{at}: a comment that says how to run a block stands on the line right before that block")
            said = {}
        if lines[at].lstrip().startswith("<!--"):
            end = next((number for number in range(at, len(lines)) if "-->" in lines[number]), len(lines) - 1)
            comment = "\n".join(lines[at : end + 1]).strip().removeprefix("<!--").removesuffix("-->")
            kind, content = _comment(comment)
            if kind == "run":
                blocks.append(Block("hidden", content, at + 2))
            elif kind and not content:
                problems.append(f"{name}:{at + 1}: `{kind}` without saying what: write <!-- {kind}: … -->")
            # A second comment about the same block follows the first.
            if kind in SAID:
                said[kind] = content
            at = end + 1
            continue
        # An indented block goes on for as long as its lines are indented.
        in_indented = lines[at].startswith("    ") and (in_indented or at == 0 or not lines[at - 1].strip())
        if in_indented and re.match(r"\s+(\S*relu-deploy|python3? -m relu_deploy) ", lines[at]):
            problems.append(f"{name}:{at + 1}: a command in an indented block is never run: use ```console")
        at += 1
    return Page(path, tuple(blocks), tuple(problems))


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block."""
    found: list[Command] = []
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        if not lines[at].startswith("$ "):
            raise ValueError("a console block begins with a command: `$ …`")
        start, text = at, [lines[at][2:]]
        at += 1
        while at < len(lines) and (text[-1].endswith("\\") or lines[at].startswith("> ") or lines[at] == ">"):
            text.append(lines[at].removeprefix(">").removeprefix(" ") if lines[at].startswith(">") else lines[at])
            at += 1
        shown = at
        while at < len(lines) and not lines[at].startswith("$ "):
            at += 1
        code = re.search(r"#.*\bexit (\d+)\s*$", text[-1])
        found.append(Command("\n".join(text), block.line + start, tuple(lines[shown:at]), int(code[1]) if code else 0))
    return found


def _closing(lines: list[str], at: int, fence: re.Match[str]) -> int:
    mark, least = fence["ticks"][0], len(fence["ticks"])
    for number in range(at + 1, len(lines)):
        stripped = lines[number].strip()
        if len(stripped) >= least and set(stripped) == {mark}:
            return number
    return len(lines)


def _reason(said: dict[str, str]) -> str | None:
    needed = said.get("needs")
    missing = f"{needed} is not installed" if needed and find_spec(needed) is None else None
    return said.get("not run", missing)


def _comment(text: str) -> tuple[str, str]:
    """Return what a comment says about a block (`run`, one of `SAID`, or nothing) and the rest of it."""
    if text.strip() == "run" or text.lstrip().startswith("run\n"):
        return "run", text.lstrip()[len("run\n") :]
    kind, _, content = text.strip().partition(":")
    return (kind, " ".join(content.split())) if kind in SAID else ("", "")


def _wrong_with(block: Block) -> list[str]:
    """Return what keeps `block` from being run, or from being read by whoever copies it."""
    if block.language in PARSERS:
        try:
            PARSERS[block.language](block.text)
        except Exception as error:
            return [f"not {block.language}: {' '.join(str(error).split())}"]
    if block.language == "python":
        try:
            compile(block.text, "block", "exec")
        except SyntaxError as error:
            return [f"not Python: {error.msg} in line {error.lineno} of the block"]
    if block.language == "console":
        try:
            commands(block)
        except ValueError as error:
            return [str(error)]
    says_commands = re.search(r"^\s*(\$ |relu-deploy )", block.text, re.MULTILINE)
    if says_commands and block.language not in RUN and block.reason is None and block.file is None:
        return ["a command that is never run: use ```console, or say <!-- not run: why --> on the line before"]
    return []
