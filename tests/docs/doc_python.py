"""Run blocks of Python that arrive as lines of JSON on stdin; answer each with what it printed and its traceback, if any."""

import json
import os
import sys
import tempfile
import traceback


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    questions = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # By file descriptor: what C++ and child processes print belongs to the block too.
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        sys.path[0] = ""
        namespace = {"__name__": "__main__"}
        for line in questions:
            requested = json.loads(line)
            printed.truncate(0)
            os.lseek(printed.fileno(), 0, os.SEEK_SET)
            error = ""
            try:
                # Blank lines in front give an error the line number that it has in the page.
                exec(compile("\n" * (requested["line"] - 1) + requested["text"], requested["file"], "exec"), namespace)
            except BaseException:
                error = traceback.format_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os.lseek(printed.fileno(), 0, os.SEEK_SET)
            print(json.dumps({"error": error, "output": printed.read().decode(errors="replace")}), file=answers, flush=True)


if __name__ == "__main__":
    main()
