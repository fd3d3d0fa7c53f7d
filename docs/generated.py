"""Parts of pages that are generated from the code while the site is built.

A page has `<!-- generated: NAME -->` on a line of its own, NAME being a key of `PARTS`, or `<!-- generated: file PATH -->` for the
text of a file of the repository. Links in pages work in the repository; here they are rewritten to pages of the site.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MARKER = re.compile(r"^<!-- generated: ([a-z-]+)(?: (\S+))? -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=(?:#[^)\s]*)?\))")
#: files outside docs/ with a page on the site
PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "benchmarks/README.md": "benchmarks",
    "docker/README.md": "containers",
    "SECURITY.md": "security",
}


def expand_page(app: Any, name: str, source: list[str]) -> None:
    """Replace the markers of a page and rewrite its links.

    Args:
        app: The Sphinx application.
        name: Name of the page.
        source: Its text, the only item, replaced in place.

    Raises:
        KeyError: If a marker names an unknown part.
    """
    page = Path(app.env.doc2path(name))

    def part(found: re.Match[str]) -> str:
        if found[1] == "file":
            return _text_of(ROOT / found[2], page)
        return _with_site_links(PARTS[found[1]](), DOCS, page)

    source[0] = MARKER.sub(part, _with_site_links(source[0], page.parent, page))


# ---------------------------------------------------------------- files


def _text_of(file: Path, page: Path) -> str:
    return _with_site_links(file.read_text(encoding="utf-8"), file.parent, page)


def _with_site_links(text: str, folder: Path, page: Path) -> str:
    """Return `text` of a file in `folder` with its links to files of the repository rewritten for `page`."""

    def rewritten(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / found[1]))
        if not target.exists() or not target.is_relative_to(ROOT):
            return found[1]
        inside = target.relative_to(ROOT).as_posix()
        if inside in PAGES:
            target = DOCS / f"{PAGES[inside]}.md"
        elif target.name == "README.md" and target.parents[1] == ROOT / "models":
            target = DOCS / "models.md"
        return Path(os.path.relpath(target, page.parent)).as_posix()

    return LINK.sub(rewritten, text)


# ---------------------------------------------------------------- the command line


def command_line() -> str:
    """Return a section for each verb: its summary and a table of its options."""
    return "\n".join(_verb(name, verb) for name, verb in verbs().items())


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb by its name, as the command line has them."""
    from relu_deploy.cli.main import create_parser

    actions = create_parser()._actions
    return next(dict(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction))


def _verb(name: str, verb: argparse.ArgumentParser) -> str:
    # Options that every verb has come last.
    common = ("json", "quiet", "debug")
    actions = sorted(
        (one for one in verb._actions if one.dest != "help" and one.help != argparse.SUPPRESS), key=lambda one: one.dest in common
    )
    rows = [_row(action) for action in actions]
    return "\n".join([f"## {name}", "", str(verb.description), "", "| | |", "| --- | --- |", *rows, ""])


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        called = f"`{value}`" + (", any number" if action.nargs in ("*", "+") else "")
    else:
        takes = action.nargs != 0
        called = ", ".join(f"`{option} {value}`" if takes else f"`{option}`" for option in action.option_strings)
    needed = " (needed)" if action.required and action.option_strings else ""
    return f"| {_cell(called)} | {_cell((action.help or '') + needed)} |"


def errors() -> str:
    """Return a table of the exceptions with their exit codes."""
    from relu_deploy import errors as module

    classes = [getattr(module, name) for name in module.__all__]
    rows = [
        f"| `{one.__name__}` | {one.exit_code} | {_first_line(one)} |"
        for one in classes
        if isinstance(one, type) and issubclass(one, module.ReluDeployError) and one is not module.ReluDeployError
    ]
    return "\n".join(["| exception | exit code | |", "| --- | --- | --- |", *rows])


def backends() -> str:
    """Return a table of the backends' names and the packages that they are in."""
    from relu_deploy.backends import BACKENDS

    rows = [f"| `{name}` | `relu_deploy.backends.{package}` |" for name, package in BACKENDS.items()]
    return "\n".join(["| backend | package |", "| --- | --- |", *rows])


# ---------------------------------------------------------------- the bundle


def manifest() -> str:
    """Return a table of every field of a manifest, from its JSON Schema."""
    schema = json.loads((ROOT / "relu_deploy" / "manifest.schema.json").read_text(encoding="utf-8"))
    rows = [f"| `{name}` | {kind} | {_cell(text)} |" for name, kind, text in _fields(schema, schema, "")]
    return "\n".join(["| field | type | |", "| --- | --- | --- |", *rows])


def _fields(part: Mapping[str, Any], whole: Mapping[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    required = part.get("required", ())
    for name, written in part.get("properties", {}).items():
        field = _resolved(written, whole)
        path = f"{above}{name}"
        notes = [*(["needed"] if name in required else []), *([field["description"]] if "description" in field else [])]
        yield path, _type(field, whole), "; ".join(notes)
        yield from _fields(field, whole, f"{path}.")
        for inner, mark in ((field.get("items"), "[]"), (field.get("additionalProperties"), ".*")):
            if isinstance(inner, dict):
                yield from _fields(_resolved(inner, whole), whole, f"{path}{mark}.")


def _resolved(field: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref")
    return whole["$defs"][reference.rsplit("/", 1)[1]] if reference else field


def _type(field: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return _cell(" or ".join(f"`{json.dumps(one)}`" for one in field["enum"]))
    kinds = field.get("type", "anything")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if "array" in kinds and isinstance(field.get("items"), dict):
        inner = _type(_resolved(field["items"], whole), whole)
        kinds = [f"array of {inner}" if kind == "array" else kind for kind in kinds]
    return " or ".join(kinds)


# ---------------------------------------------------------------- models


def zoo() -> str:
    """Return a table of the zoo: each model, its task, size, weights and measured metric."""
    from relu_deploy.zoo.recipes import recipes

    rows = []
    for model in sorted(recipes().values(), key=lambda one: (one.metric is None, one.name)):
        metric = f"{model.metric['name']} {model.metric['value']:.4f} on {model.metric['on']}" if model.metric else ""
        weights = model.weights or ("published" if model.published else "yours")
        size = "x".join(map(str, model.shape))
        rows.append(
            f"| `{model.name}` | {model.task} | {model.parameters:,} | {model.activation} | {size} | {weights} | {metric} |"
        )
    return "\n".join(["| model | task | parameters | activation | input | weights | metric |", "| --- " * 7 + "|", *rows])


def cards() -> str:
    """Return the cards of the shipped models, one section each."""
    files = sorted((ROOT / "models").glob("*/README.md"))
    return "\n".join(
        _lower(_with_site_links(file.read_text(encoding="utf-8"), file.parent, DOCS / "models.md")) for file in files
    )


def tutorials() -> str:
    """Return the tutorials for a toctree, one a line: the tour, then the others by name."""
    names = sorted((file.stem for file in (DOCS / "tutorials").glob("*.md")), key=lambda name: (name != "five_minute_tour", name))
    return "\n".join(f"tutorials/{name}" for name in names)


def _lower(text: str) -> str:
    """Return `text` with each heading one level lower, except lines with # in code."""
    lines, in_code = [], False
    for line in text.splitlines():
        in_code ^= line.lstrip().startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not in_code else line)
    return "\n".join([*lines, ""])


# ----------------------------------------------------------------


def _first_line(thing: object) -> str:
    return _cell((thing.__doc__ or "").strip().splitlines()[0])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


PARTS = {
    "backends": backends,
    "cards": cards,
    "command-line": command_line,
    "errors": errors,
    "manifest": manifest,
    "tutorials": tutorials,
    "zoo": zoo,
}
