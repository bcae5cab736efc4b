"""`python -m benchmarks`: measures this service, and peers beside it. See README.md."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import measure
from benchmarks.report import plots, table
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
    parser.add_argument("--sides", default="bare,engine,service", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--size", choices=("small", "gpu"), default="small")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--head-dtype", default="bfloat16", help="of this service's head")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--name", default=None, help="of the result files; default: the date")
    arguments = parser.parse_args()
    config = SideConfig(
        str(arguments.model), arguments.dtype, arguments.head_dtype, arguments.device
    )
    logs = ROOT / "build" / "benchmark-logs"
    logs.mkdir(parents=True, exist_ok=True)
    sides = []
    for name in arguments.sides.split(","):
        python = PEERS_PYTHON if name in IN_PEERS_ENVIRONMENT else Path(sys.executable)
        _say(f"loading {name}")
        sides.append(SideProcess(name, python, config, logs / f"{name}.log"))
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": " ".join(sys.argv[1:]),
        "size": arguments.size,
        "dtype": arguments.dtype,
        "head_dtype": arguments.head_dtype,
        "sides": {side.name: side.version for side in sides},
        **measure(
            sides,
            arguments.workloads.split(","),
            arguments.size,
            arguments.repetitions,
            arguments.model,
            arguments.dtype,
            arguments.device,
            _say,
        ),
    }
    for side in sides:
        side.close()
    stem = arguments.name or datetime.date.today().isoformat()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    plots(report, arguments.out, stem)
    print(table(report, ours="service" if "service" in report["sides"] else "engine"))


def _say(text: str) -> None:
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
