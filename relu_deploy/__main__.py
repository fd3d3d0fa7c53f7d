"""`python -m relu_deploy` and the console script `relu-deploy`."""

from __future__ import annotations

import sys

from relu_deploy.cli.main import main as run

__all__ = ["main"]


def main() -> int:
    """Run the command of this process and return its exit code."""
    return run(isolated=True)


if __name__ == "__main__":
    sys.exit(main())
