"""Draw the diagrams of ``docs/diagrams``.

python -m tools.diagrams            rewrite them
python -m tools.diagrams --check    fail when one is stale; write nothing
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.diagrams import architecture, call, rows, segments

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "diagrams"
DIAGRAMS = {
    "architecture": architecture.draw,
    "call": call.draw,
    "rows": rows.draw,
    "segments": segments.draw,
}


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    stale = []
    for name, draw in DIAGRAMS.items():
        path, svg = OUTPUT / f"{name}.svg", draw().svg()
        if path.exists() and path.read_text() == svg:
            continue
        stale.append(path.name)
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(svg)
    if stale and "--check" in arguments:
        print(f"docs/diagrams: stale: {', '.join(stale)}; run: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
