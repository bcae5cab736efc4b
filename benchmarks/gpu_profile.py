"""`python -m benchmarks.gpu_profile`: where a step's time goes on a GPU, in two minutes.

Runs workloads through the engine, a few steps of each under torch's profiler: how long the device
computes and how long it waits, its longest kernels, and the host's longest operators.
Leaves `gpu-profile.json`, rewritten after every workload.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import make_model
from benchmarks.json_file import write_json
from benchmarks.machine import describe, origin
from benchmarks.side_process import ROOT
from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine, sample_call, score_call, step, submit
from benchmarks.workloads import Sampling, Scoring, build

_TIME_LIMIT = 120
"""Seconds after which no further workload begins."""

_STEPS = 6
"""Steps that are watched: those in the middle of a workload."""

_BETWEEN_PRODUCTS = ("rms_norm_rows", "activated_product", "rotate_heads")
"""Kernels of ours that are launched several times a layer; small ones of torch's beside them say
what a body's modules were not recognised for."""


def main() -> None:
    """Profiles and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_profile", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("small", "gpu"), default="gpu")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--workloads", default="grpo,sample-64,topk-128,sample-1,wide")
    parser.add_argument("--out", type=Path, default=ROOT / "build")
    parser.add_argument("--time-limit", type=float, default=_TIME_LIMIT, help="seconds")
    arguments = parser.parse_args()
    began = time.monotonic()
    folder = ROOT / "build" / "models" / f"random-{arguments.layers}"
    model = make_model(folder, arguments.layers, arguments.device)
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    config = SideConfig(str(model), "bfloat16", "bfloat16", arguments.device, 0.5)
    loading = time.monotonic()
    engine = Engine(config)
    report: dict[str, Any] = {
        **origin(),
        "machine": describe(),
        "load_seconds": time.monotonic() - loading,
        **engine.backend,
        "workloads": {},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(arguments.workloads.split(","), 1):
        if time.monotonic() - began > arguments.time_limit:
            break
        work = build(name, arguments.size, vocab)
        try:
            found = watched(engine, work, number)
        except Exception as error:  # noqa: BLE001 - the others are profiled
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        report["workloads"][name] = found
        write_json(arguments.out / "gpu-profile.json", report)
        print(name, json.dumps(found)[:600], flush=True)


def watched(engine: Engine, work: Any, call_id: int) -> dict[str, Any]:
    """A workload's steps: their seconds, and a few of them in detail.

    Raises:
        RuntimeError: the call failed, or an item of it; nothing of it is left in the engine.
    """
    if not isinstance(work, Scoring | Sampling):
        raise TypeError("one call at a time")
    call = score_call(work) if isinstance(work, Scoring) else sample_call(work)
    submit(engine, replace(call, call_id=call_id))
    try:
        return steps_of(engine.runner)
    except Exception:
        engine.runner.cancel(call_id)
        raise


def steps_of(runner: Any) -> dict[str, Any]:
    """The steps of what was submitted."""
    seconds: list[float] = []
    detail: dict[str, Any] = {}
    while runner.can_step:
        if len(seconds) == 8:
            detail = profiled(runner)
        began = time.perf_counter()
        take(runner)
        seconds.append(time.perf_counter() - began)
    steady = sorted(seconds[4:]) or seconds
    return {
        "steps": len(seconds),
        "median_seconds": steady[len(steady) // 2],
        "seconds": seconds,
        **detail,
    }


def take(runner: Any) -> None:
    """A step, whose results are taken at once."""
    for _ in step(runner):
        pass


def profiled(runner: Any) -> dict[str, Any]:
    """A few steps under the profiler."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    began = time.perf_counter()
    steps = 0
    with profile(activities=activities) as found:
        while steps < _STEPS and runner.can_step:
            take(runner)
            steps += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    wall = time.perf_counter() - began
    events = found.key_averages()
    # An operator has the time of the kernels that it launched, which are events of their own.
    on_device = [event for event in events if event.device_type != DeviceType.CPU]
    kernels = sorted(on_device, key=lambda event: -event.self_device_time_total)
    host = sorted(events, key=lambda event: -event.self_cpu_time_total)
    busy = sum(event.self_device_time_total for event in on_device) / 1e6
    launches = sum(event.count for event in on_device if not event.key.startswith("Mem"))
    return {
        "watched_steps": steps,
        "kernels_per_step": launches / max(steps, 1),
        "between_products": {
            event.key: [event.count, event.self_device_time_total]
            for event in kernels
            if event.key in _BETWEEN_PRODUCTS
        },
        "wall_seconds": wall,
        "device_seconds": busy,
        "device_share": busy / wall,
        "kernels": [
            [event.key[:90], event.count, event.self_device_time_total] for event in kernels[:14]
        ],
        "host": [[event.key[:60], event.count, event.self_cpu_time_total] for event in host[:14]],
    }


if __name__ == "__main__":
    main()
