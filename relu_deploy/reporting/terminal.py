"""Printing on the terminal: text from files and runtimes made safe, lines with markup, tables.

Names of nodes, texts of a manifest and messages of a runtime come from files that anybody may have written. They pass
`printable` before they reach the terminal, so that they can neither move the cursor nor change colors or the window's title.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unicodedata import category

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DIM", "GOOD", "escape_library_output", "markup", "new_table", "number", "printable", "show"]

GOOD, DIM = "[green]yes[/]", "[dim]-[/]"
#: width where the output is no terminal: nothing is cut or wrapped in a pipe or a log
PIPE_WIDTH = 220
#: categories that `str.isprintable` excludes although terminals show them: spaces, private use, newer characters than Python's
_SHOWN = ("Zs", "Co", "Cn")


def printable(text: object) -> str:
    """Return `text` with every control character written as an escape such as `\\x1b` or `\\u202e`.

    Covers C0 and C1 controls, line breaks, bidirectional overrides and other format characters, and lone surrogates.

    Args:
        text: Text from anywhere; anything else is converted by `str`.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(one if one.isprintable() or category(one) in _SHOWN else repr(one)[1:-1] for one in plain)


def markup(text: object) -> str:
    """Return `printable(text)` for use inside rich markup, where its square brackets stay square brackets."""
    from rich.markup import escape

    return escape(printable(text))


def escape_library_output() -> None:
    """Make what libraries log or warn of printable: they quote names of nodes and files.

    Applies to Python's handler of last resort, which prints warnings of libraries without a logging configuration, and to
    the module `warnings`.
    """
    import logging
    import warnings

    class PrintableFormatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(printable, super().format(record).splitlines()))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    original = warnings.formatwarning

    def format_warning(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        return "\n".join(map(printable, original(message, category, filename, lineno, line).splitlines())) + "\n"

    if getattr(original, "__name__", "") != format_warning.__name__:
        warnings.formatwarning = format_warning


def show(content: Any) -> None:
    """Print a line with rich markup, or a rich renderable such as a table.

    Args:
        content: Text in it that comes from elsewhere has passed `markup`.
    """
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            # rich's own ends the process with exit code 1, which says that a check failed.
            raise BrokenPipeError

    console = Terminal(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Terminal(highlight=False, emoji=False, width=PIPE_WIDTH)
    console.print(content)


def new_table(*columns: str) -> Table:
    """Return an empty table with these headings; one that starts with ">" is of a column aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def number(value: float | None) -> str:
    """Return three significant digits, whole numbers from 1,000 on, "-" for None."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
