"""`python -m benchmarks`: measures this service, and peers beside it. See README.md."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Plan, Thrift, measure
from benchmarks.json_file import write_json
from benchmarks.machine import origin
from benchmarks.report import plots, tables
from benchmarks.side_process import ROOT, SideProcess
from benchmarks.sides import IN_PEERS_ENVIRONMENT, SIDES, SideConfig
from benchmarks.workloads import WORKLOADS

PEERS_PYTHON = ROOT / "build" / "peers" / "bin" / "python"


def main() -> None:
    """Parses the arguments, measures, writes JSON, plots and a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--model", type=Path, required=True, help="folder in the Hugging Face layout"
    )
    own = "bare,packed-forward,engine,service"
    parser.add_argument("--sides", default=own, help=f"of {', '.join(SIDES)}")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--size", choices=("small", "gpu"), default="small")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--whole-workloads",
        type=int,
        default=None,
        help="the first so many have every side and repetition; default: all",
    )
    parser.add_argument("--later-repetitions", type=int, default=1, help="of those after them")
    parser.add_argument(
        "--slow-sides", default="", help="run once in the whole workloads, and in no others"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--head-dtype", default="bfloat16", help="of this service's head")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-utilization", type=float, default=None, help="the engine's")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=float("inf"),
        help="seconds, loading included; what is left is skipped",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds beyond it that a repetition may take, and as many for all sides to end",
    )
    parser.add_argument("--name", default=None, help="of the result files; default: the date")
    parser.add_argument(
        "--no-plots",
        action="store_true",
        help="JSON and tables alone; `python -m benchmarks.report FILE.json` draws them later",
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    config = SideConfig(
        str(arguments.model),
        arguments.dtype,
        arguments.head_dtype,
        arguments.device,
        arguments.memory_utilization,
    )
    plan = Plan(
        arguments.workloads.split(","),
        arguments.size,
        arguments.repetitions,
        arguments.model,
        arguments.dtype,
        arguments.device,
        began,
        arguments.time_limit,
        arguments.patience,
        Thrift(
            arguments.whole_workloads,
            arguments.later_repetitions,
            tuple(arguments.slow_sides.split(",")),
        ),
    )
    sides, failures = _load(arguments.sides.split(","), config, began + arguments.time_limit)
    facts = {
        **origin(),
        "size": arguments.size,
        "dtype": arguments.dtype,
        "head_dtype": arguments.head_dtype,
        "repetitions": arguments.repetitions,
        "sides": {side.name: side.version for side in sides},
        "backends": {side.name: side.backend for side in sides},
        "not_loaded": failures,
    }
    stem = arguments.name or datetime.date.today().isoformat()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = facts
    for measured in measure(sides, plan, _say):
        report = {**facts, **measured}
        write_json(arguments.out / f"{stem}.json", report)
    close(sides, arguments.patience)
    if not arguments.no_plots:
        plots(report, arguments.out, stem)
    print(tables(report))


def close(sides: list[SideProcess], patience: float) -> None:
    """Ends all of them within so many seconds together."""
    for side in sides:
        side.end()
    deadline = time.monotonic() + patience
    for side in sides:
        side.close(deadline - time.monotonic())


def _load(
    names: list[str], config: SideConfig, deadline: float
) -> tuple[list[SideProcess], dict[str, str]]:
    """The sides that could be loaded before then, and why the others could not."""
    logs = ROOT / "build" / "benchmark-logs"
    logs.mkdir(parents=True, exist_ok=True)
    sides: list[SideProcess] = []
    failures: dict[str, str] = {}
    # A GPU has room and its host has cores for all of them; on a CPU each would slow the others,
    # and a time limit that one of them broke would be another's.
    on_gpu = config.device.partition(":")[0] == "cuda"
    for together in [names] if on_gpu else [[name] for name in names]:
        started: list[SideProcess] = []
        for name in together:
            python = PEERS_PYTHON if name in IN_PEERS_ENVIRONMENT else Path(sys.executable)
            _say(f"loading {name}")
            with _noting(name, failures):
                started.append(SideProcess(name, python, config, logs / f"{name}.log"))
        for side in started:
            with _noting(side.name, failures):
                side.wait(deadline - time.monotonic())
                sides.append(side)
    return sides, failures


@contextmanager
def _noting(name: str, failures: dict[str, str]) -> Iterator[None]:
    """Goes on without a side that cannot be loaded."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # such as: there is no build/peers
        _say(str(error))
        failures[name] = str(error)


def _say(text: str) -> None:
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
