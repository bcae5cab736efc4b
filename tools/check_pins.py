"""Checks that everything in this environment is the version that constraints.txt pins.

A dependency that nobody pinned is one that nobody chose: it is named here, and so is one that is
installed in another version. `make audit` asks a public database about the pinned ones.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"pip", "scoring-service"}
"""pip comes with Python, and the last one is this project."""


def main() -> int:
    pins = {
        canonical(name): version
        for name, version in re.findall(
            r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE
        )
    }
    wrong = []
    for found in distributions():
        name, version = canonical(found.name), found.version
        # A build of torch for one kind of device adds its name: 2.13.0+cpu.
        if name in TOOLS or pins.get(name) == version.partition("+")[0]:
            continue
        if name.startswith(("nvidia-", "cuda-")) or name == "triton":
            continue  # what a torch for GPUs brings along, pinned by torch itself
        wrong.append(f"{name}=={version}: constraints.txt has {pins.get(name, 'nothing')}")
    for line in sorted(set(wrong)):
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
