"""How much memory a process takes at its peak, measured in one of its own."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scoring_service.engine.events import CallFailed, SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.engine.worker.service_loop import make_runner
from scoring_service.types import (
    Call,
    CompletionTask,
    EngineConfig,
    GroupTask,
    Int32Array,
    Processing,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
)

MIB = 1 << 20
_REPOSITORY = Path(__file__).parents[2]


def measured(script: str) -> dict[str, list[float]]:
    """Runs a script in a process of its own, whose peak is nobody else's; the lines it prints.

    Freed memory goes back to the system at once there, so that the peak is what was in use. (A
    server lets the allocator keep it: page faults would take as long as the arithmetic.)
    """
    ran = subprocess.run(
        [sys.executable, "-c", "from tests.engine.peaks import *\n" + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=_REPOSITORY,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "4000000"},
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    return {name: [float(value) for value in values] for name, *values in lines}


def peak_of(work: Callable[[], object]) -> int:
    """Bytes beyond what is resident before it."""
    gc.collect()  # models and runners that were dropped before must not go meanwhile
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) * 1024


def load_touched(source: str, threads: int = 1, **settings: object) -> LoadedModel:
    """A model all of whose pages are resident, so that nobody's peak has them."""
    config = EngineConfig(source, device="cpu", threads=threads, **settings)  # type: ignore[arg-type]
    loaded = load(config, lambda _: None)
    assert loaded.packed is not None
    for tensor in (*loaded.packed.pool.keys, *loaded.packed.pool.values):
        tensor.fill_(0)
    return loaded


def drive(loaded: LoadedModel, call: Call) -> int:
    """Computes a call, its results taken as they come; how many bytes they had."""
    runner = make_runner(loaded, lambda call_id, error: sys.exit(repr(error)))
    runner.submit(call)
    taken = 0
    while runner.can_step:
        for event in runner.step():
            assert not isinstance(event, CallFailed), event
            if isinstance(event, ScoreSlice | SampleSlice):
                runner.add_credit(call.call_id, event.size)
                taken += event.size
    return taken


def scoring(
    vocab_size: int,
    lengths: list[int],
    wants: RowWants,
    *,
    prompt: int = 1,
    candidates: int = 0,
    processing: Processing | None = None,
    seed: int = 0,
) -> ScoreCall:
    """One completion of each length, each after a prompt of its own."""
    rng = np.random.default_rng(seed)

    def ids(*shape: int) -> Int32Array:
        return rng.integers(0, vocab_size, shape).astype(np.int32)

    return ScoreCall(
        1,
        tuple(
            GroupTask(
                index,
                ids(prompt),
                (CompletionTask(0, ids(n), ((0, n),), ids(n, candidates) if candidates else None),),
                processing or Processing(),
                0,
            )
            for index, n in enumerate(lengths)
        ),
        wants,
    )


def sampling(
    vocab_size: int, prompt: int, samples: int, tokens: int, *, top_logprobs: int = 0
) -> SampleCall:
    """Samples of one prompt that may not stop, so that every row has a banned token."""
    ids = np.random.default_rng(0).integers(0, vocab_size, prompt).astype(np.int32)
    task = SamplingTask(
        0,
        ids,
        samples,
        seed=1,
        first_sample_index=0,
        processing=Processing(top_k=50, top_p=0.95),
        processing_index=0,
        max_tokens=tokens,
        min_tokens=tokens,
        stop_token_ids=frozenset({5}),
    )
    return SampleCall(1, (task,), top_logprobs)
