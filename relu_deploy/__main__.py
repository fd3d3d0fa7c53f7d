"""`python -m relu_deploy` and the console script `relu-deploy`."""

from __future__ import annotations

import sys

from relu_deploy.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
