"""The engine in this process: no server, no transport."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.workloads import Mixed, Sampling, Scoring, Work
from scoring_service import __version__
from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    ItemFailed,
    SampleSlice,
    ScoreSlice,
)
from scoring_service.engine.loading.loader import load
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.engine.worker.service_loop import CallRunner, make_runner
from scoring_service.peak_memory import part_credit
from scoring_service.types import (
    Call,
    CompletionTask,
    EngineConfig,
    GroupTask,
    Processing,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
)


class Engine:
    """Drives the engine's runner as a worker does, and takes every result at once."""

    def __init__(self, config: SideConfig) -> None:
        self.version = f"scoring-service {__version__}"
        self.pids: dict[str, int] = {}
        settings = EngineConfig(
            model=config.model,
            dtype=config.dtype,
            residual_dtype=config.residual_dtype,
            head_dtype=config.head_dtype,
            device=config.device,
            memory_utilization=config.memory_utilization,
            cuda_graphs=config.cuda_graphs,
        )
        loaded = load(settings, on_stage=lambda _stage: None)
        self.info = loaded.info
        self.runner = make_runner(loaded, _raise)
        # A kernel that was given up must not pass for a slow one.
        self.backend = {"backend": self.info.backend, "path_reason": self.info.path_reason}

    def run(self, work: Work) -> Outcome:
        """Does the work."""
        try:
            return self._mixed(work) if isinstance(work, Mixed) else self._one_call(work)
        except Exception:
            for call_id in (0, 1):
                self.runner.cancel(call_id)
            raise

    def _one_call(self, work: Scoring | Sampling) -> Outcome:
        runner = self.runner
        began = time.perf_counter()
        submit(self, score_call(work) if isinstance(work, Scoring) else sample_call(work))
        sums: dict[int, float] = {}
        latencies: list[float] = []
        cached = 0
        while runner.can_step:
            for event in step(runner):
                if isinstance(event, ScoreSlice | SampleSlice) and event.last:
                    latencies.append(time.perf_counter() - began)
                if isinstance(event, ScoreSlice):
                    key = event.group_index * 1_000_000 + event.completion_index
                    sums[key] = sums.get(key, 0.0) + float(event.block.logprobs.sum())
                if isinstance(event, CallFinished):
                    cached = event.usage.cached_tokens
        ordered = [sums[key] for key in sorted(sums)]
        return Outcome(time.perf_counter() - began, latencies, ordered, cached)

    def _mixed(self, work: Mixed) -> Outcome:
        """Scores group by group while samples are drawn; latencies are between sampled slices."""
        runner = self.runner
        waiting = [score_call(Scoring([group])) for group in work.scoring.groups]
        sampling = sample_call(work.sampling)
        gaps: list[float] = []
        cached = 0
        began = last = time.perf_counter()
        submit(self, replace(sampling, call_id=0))
        submit(self, waiting.pop(0))
        while True:
            for event in step(runner):
                if isinstance(event, SampleSlice):
                    now = time.perf_counter()
                    gaps.append((now - last) / max(1, len(event.token_ids)))
                    last = now
                if isinstance(event, CallFinished) and event.call_id == 0:
                    submit(self, replace(sampling, call_id=0))
                elif isinstance(event, CallFinished):
                    cached += event.usage.cached_tokens
                    if not waiting:
                        runner.cancel(0)
                        return Outcome(time.perf_counter() - began, gaps, cached_tokens=cached)
                    submit(self, waiting.pop(0))

    def close(self) -> None:
        """Nothing to end."""


def submit(engine: Engine, call: Call) -> None:
    """Submits a call with at least the credit that a pool gives its parts."""
    engine.runner.submit(call)
    more = part_credit(engine.info.max_batch_tokens) - INITIAL_CREDIT
    engine.runner.add_credit(call.call_id, max(0, more))


def score_call(work: Scoring) -> ScoreCall:
    """The workload as the engine takes it."""
    groups = tuple(
        GroupTask(
            index=index,
            prompt_ids=np.array(prompt, dtype=np.int32),
            completions=tuple(
                CompletionTask(i, np.array(ids, dtype=np.int32), ((0, len(ids)),))
                for i, ids in enumerate(completions)
            ),
            processing=Processing(),
            processing_index=0,
        )
        for index, (prompt, completions) in enumerate(work.groups)
    )
    return ScoreCall(1, groups, RowWants(top_k=work.k, support_size=work.k > 0))


def sample_call(work: Sampling) -> SampleCall:
    """The workload as the engine takes it."""
    processing = Processing(top_k=work.top_k, top_p=work.top_p)
    tasks = tuple(
        SamplingTask(
            index=index,
            prompt_ids=np.array(prompt, dtype=np.int32),
            n=1,
            seed=index,
            first_sample_index=0,
            processing=processing,
            processing_index=0,
            max_tokens=work.max_tokens,
            ignore_eos=True,
        )
        for index, prompt in enumerate(work.prompts)
    )
    return SampleCall(1, tasks)


def step(runner: CallRunner) -> Iterator[CallEvent]:
    """Events of a step, their bytes taken at once."""
    for event in runner.step():
        if isinstance(event, ItemFailed | CallFailed):
            raise RuntimeError(event.fault.message)
        if isinstance(event, ScoreSlice | SampleSlice):
            runner.add_credit(event.call_id, event.size)
        yield event


def _raise(_call_id: int, error: BaseException) -> None:
    raise error


def make(config: SideConfig) -> Engine:
    """Loads it."""
    return Engine(config)
