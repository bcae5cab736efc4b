"""Cases that are measured one after another, of which none can end the others.

A part's cases run in a process of their own: a case that raises is put down and the next one
begins; after one that took the device or the process with it, a new process goes on behind it.
Figures are written after every case.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.json_file import write_json

Figure = dict[str, Any]
Case = tuple[str, Callable[[], Figure]]
"""What is measured, and how."""

GRACE_SECONDS = 30.0
"""In which a case that began in time may end."""

LOST = 3
"""How a process ends whose device no longer answers."""


def run_cases(cases: Iterable[Case], output: Path, skip: int, seconds: float) -> int:
    """Measures cases in this process; returns its exit code.

    Args:
        cases: in order.
        output: gets {"figures": [...], "running": what}, also before a case begins.
        skip: cases that an earlier process measured.
        seconds: after which no case begins; those left are put down as skipped.
    """
    began = time.monotonic()
    figures: list[Figure] = []
    for number, (what, measure) in enumerate(cases):
        if number < skip:
            continue
        elapsed = time.monotonic() - began
        if elapsed > seconds:
            figures.append({"what": what, "skipped": "no time was left"})
            _write(output, figures, "")
            continue
        _write(output, figures, what)
        try:
            figure = measure()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next case is measured
            traceback.print_exc()
            figure = {"what": what, "failed": f"{type(error).__name__}: {error}"[:600]}
        figures.append(figure)
        _write(output, figures, "")
        print(f"[{elapsed:4.0f} s] {json.dumps(figure)[:200]}", file=sys.stderr, flush=True)
        sides = figure.get("sides", {}).values()
        if ("failed" in figure or any("failed" in side for side in sides)) and is_lost():
            return LOST
    return 0


def is_lost() -> bool:
    """Whether the device no longer answers this process; what a failed case left is given back."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def run_part(command: Sequence[str], piece: Path, seconds: float) -> list[Figure]:
    """Measures a part in other processes; returns its figures.

    Args:
        command: of a process that calls `run_cases`, but for the arguments added here.
        piece: where its figures go meanwhile.
        seconds: after which it is ended.
    """
    began = time.monotonic()
    figures: list[Figure] = []
    while True:
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            return figures
        piece.unlink(missing_ok=True)
        arguments = ["--piece", str(piece), "--skip", str(len(figures)), "--seconds", f"{left:.0f}"]
        try:
            code = subprocess.run(
                [*command, *arguments], check=False, timeout=left + GRACE_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        found = json.loads(piece.read_text()) if piece.is_file() else {"figures": [], "running": ""}
        piece.unlink(missing_ok=True)
        figures += found["figures"]
        if code == 0:
            return figures
        if code == LOST and found["figures"]:
            continue
        why = "it took too long" if code is None else f"its process ended with {code}"
        figures.append({"what": found["running"] or "the next case", "failed": why})
        if not found["running"]:
            return figures  # nothing began: another process would fare no better


def _write(output: Path, figures: list[Figure], running: str) -> None:
    write_json(output, {"figures": figures, "running": running})
