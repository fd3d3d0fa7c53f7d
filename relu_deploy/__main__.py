"""`python -m relu_deploy` and the console script `relu-deploy`."""

from __future__ import annotations

import sys

from relu_deploy.interrupts import end_on_interrupt, end_on_signals, raise_on_interrupt

__all__ = ["main"]

end_on_interrupt()

from relu_deploy.cli.main import main as run  # noqa: E402  # Ctrl-C while it is imported shall print no traceback


def main() -> int:
    """Run the command of this process and return its exit code."""
    raise_on_interrupt()
    try:
        return run(isolated=True)
    finally:
        end_on_signals()


if __name__ == "__main__":
    sys.exit(main())
