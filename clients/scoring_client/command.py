"""The command ``scoring-client``, which says so where its two libraries are not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys

LIBRARIES = ("cyclopts", "rich")
"""Of the extra ``cli``; the Python clients do without them."""


def main() -> None:
    """Run the command line, and exit with its status."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"scoring-client needs {' and '.join(missing)}: pip install '.[cli]' in a clone, or "
            f"pip install {' '.join(missing)}"
        )
    sys.exit(importlib.import_module("scoring_client.cli.app").main(sys.argv[1:]))


if __name__ == "__main__":
    main()
