"""Records which lines of a few files run."""

import contextlib
import sys
import threading
from pathlib import Path


class Lines:
    """The lines of `files` that were executed inside `recording`, and those that could have been."""

    def __init__(self, files):
        self.seen = {str(Path(file).resolve()): set() for file in files}

    @contextlib.contextmanager
    def recording(self):
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            yield self
        finally:
            sys.settrace(None)
            threading.settrace(None)

    def _enter(self, frame, event, argument):
        return self._line if frame.f_code.co_filename in self.seen else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.seen[frame.f_code.co_filename].add(frame.f_lineno)
        return self._line

    def report(self):
        """Return for each file its executable lines inside functions, how many ran, and the numbers of the others."""
        found = {}
        for file, seen in self.seen.items():
            possible = _lines_in_functions(compile(Path(file).read_text(), file, "exec"))
            found[Path(file).name] = {
                "lines": len(possible),
                "covered": len(possible & seen),
                "missing": sorted(possible - seen),
            }
        return found


def _lines_in_functions(code, inside=False):
    """Return the lines of code of functions: what a module or a class does when it is imported always runs."""
    lines = set()
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            lines |= _lines_in_functions(constant, inside=bool(constant.co_flags & 0x2))
    if inside:
        # The line of `def` is not one of the function's own.
        lines |= {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
    return lines
