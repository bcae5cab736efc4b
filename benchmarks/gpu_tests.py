"""`python -m benchmarks.gpu_tests`: the tests that mean something on a GPU, in five minutes.

Needs a CUDA device, torch, triton, transformers, numpy and pytest. Files run side by side, each in
a process of its own, since one illegal access takes a process's device with it. Tests that failed
in such a process are run again by themselves; a process that time ends says what it found so far.
Leaves `gpu-tests.json`, rewritten after every file, and what pytest said of failures in
`gpu-tests.log`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.json_file import write_json
from benchmarks.machine import describe, origin
from benchmarks.side_process import ROOT

FILES = (
    "test_attention.py",  # loads models of every family, and so comes first
    "test_key_parts.py",
    "test_head_trial.py",
    "test_body_trial.py",
    "test_decode_graphs.py",
    "test_body.py",
    "test_tile.py",
    "test_linear.py",
    "test_grid.py",
    "test_engine.py",
    "test_race.py",
    "test_linear_sample.py",
    "test_layout.py",
    "test_gradient.py",
    "test_traps.py",
    "test_row_parameters.py",
    "test_search.py",
    "test_support.py",
    "test_write_kv.py",
    "test_transfer.py",
    "test_figures.py",
)
PARTS = {"test_attention.py": 4}
"""Files in several processes, each with some of the models: the first of each kind compiles its
kernels, one after another, two hundred in all."""
FOLDER = "tests/kernels/gpu"
PART = "GPU_TESTS_PART"
"""Which part of its tests a process runs, such as 0/4: the conftest of that folder reads it."""
_TIME_LIMIT = 255
_GRACE = 15
"""Seconds in which an interrupted process may write what it found."""

_AGAIN = 16
"""Failed tests of a file that are run again, at most."""


def main() -> int:
    """Runs and writes; 1 where a test failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tests", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build")
    parser.add_argument("--files", default=",".join(FILES))
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--time-limit", type=float, default=_TIME_LIMIT, help="seconds")
    arguments = parser.parse_args()
    # Behind a shell's `&` interrupts are ignored, and processes started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    deadline = time.monotonic() + arguments.time_limit
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**origin(), "machine": describe(), "files": {}}
    log = (arguments.out / "gpu-tests.log").open("w")
    with ThreadPoolExecutor(arguments.processes) as pool:
        running = {
            pool.submit(run_file, f"{FOLDER}/{name}", deadline, part): f"{name} {part}".strip()
            for name in arguments.files.split(",")
            for part in parts_of(name)
        }
        for done in as_completed(running):
            found, said = done.result()
            report["files"][running[done]] = found
            write_json(arguments.out / "gpu-tests.json", report)
            log.write(said)
            log.flush()
            passed, failed = found["passed"], sorted(found["failed"])
            print(f"{running[done]:24} {passed:4} passed, failed: {failed}", flush=True)
    log.close()
    return int(any(found["failed"] for found in report["files"].values()))


def parts_of(name: str) -> list[str]:
    """Of a file, as `PART` has them; an empty one is all of it."""
    count = PARTS.get(name, 1)
    return [f"{number}/{count}" for number in range(count)] if count > 1 else [""]


def run_file(file: str, deadline: float, part: str = "") -> tuple[dict[str, Any], str]:
    """What became of the tests of a file, and what pytest said of those that failed."""
    began = time.monotonic()
    found, said = run_tests([file], deadline, part)
    if found["failed"] and ("CUDA error" in said or "illegal" in said or not found["complete"]):
        # One of them may have taken the device from the others.
        alone = {}
        for test in sorted(found["failed"])[:_AGAIN]:
            if time.monotonic() < deadline:
                again, more = run_tests([test], deadline)
                alone[test] = again["failed"] or "passes alone"
                said += more
        found["alone"] = alone
    found["seconds"] = time.monotonic() - began
    return found, said


def run_tests(tests: Sequence[str], deadline: float, part: str = "") -> tuple[dict[str, Any], str]:
    """One pytest process."""
    results = ROOT / "build" / f"junit-{os.getpid()}-{abs(hash((*tests, part)))}.xml"
    results.parent.mkdir(exist_ok=True)
    # Without the project's settings, which name plugins that a bare machine may not have.
    command = [sys.executable, "-m", "pytest", "-v", "-c", os.devnull, f"--rootdir={ROOT}"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "--tb=short"]
    command += [f"--junitxml={results}", *tests]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, PART: part},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = _all_of(process, max(5.0, deadline - time.monotonic()))
    found = read_results(results) if results.is_file() else {"passed": 0, "failed": {}}
    results.unlink(missing_ok=True)
    # 0: all passed, 1: some failed. Anything else, such as a crash, says nothing of what was left.
    found["complete"] = process.returncode in (0, 1)
    if not found["complete"]:
        found["failed"].setdefault(tests[0], f"pytest ended with {process.returncode}")
    return found, said[-40_000:] if found["failed"] else ""


def _all_of(process: subprocess.Popen[str], seconds: float) -> str:
    """What it says until it ends; after so many seconds it is interrupted, and killed in the end.

    Interrupted between two operations pytest writes what it found; on a device that no longer
    answers it never is between two.
    """
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=_GRACE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def read_results(path: Path) -> dict[str, Any]:
    """Tests that passed, counted, and those that failed, with the first line of why."""
    passed, skipped, failed = 0, 0, {}
    for case in ElementTree.parse(path).iter("testcase"):
        if case.get("name") is None:
            continue  # it was interrupted; pytest's log names it
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            file = case.get("classname", "").replace(".", "/") + ".py"
            failed[f"{file}::{case.get('name')}"] = problem.get("message", "")[:300]
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed}


if __name__ == "__main__":
    sys.exit(main())
