"""Time between a sample's tokens, each by itself, where the engine draws them.

A server sends what was drawn in a tenth of a second together, so that its slices do not tell. Here
the engine runs in this process and hands every token over at once.

`python -m benchmarks.between_tokens --model FOLDER` decodes 16 samples after prompts of 64 tokens,
and 15 of them beside one after a prompt of 4,000: does a prompt slow other people's samples down?
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.machine import describe, origin
from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine, sample_call, step
from benchmarks.workloads import Sampling
from scoring_service.engine import sample_slices
from scoring_service.engine.events import CallFinished, SampleSlice
from scoring_service.types import SampleCall, ScoreCall

Arrival = tuple[float, ScoreCall]
"""Seconds after the beginning, and a call with a number of its own above 0."""


def between_tokens(
    engine: Engine, call: SampleCall, arrivals: Iterable[Arrival] = (), watched: int | None = None
) -> list[float]:
    """Seconds between the tokens of each sample, from its own first one.

    Args:
        engine: in this process.
        call: draws them.
        arrivals: calls that come meanwhile, in their order; cancelled at the end.
        watched: of so many samples, the first; None = of all.
    """
    runner, waiting = engine.runner, deque(arrivals)
    drawn: dict[int, list[float]] = {}
    submitted: list[int] = []
    finished = False
    with mock.patch.object(sample_slices, "_FLUSH_SECONDS", 0.0):
        began = time.perf_counter()
        runner.submit(replace(call, call_id=0))
        while not finished:
            while waiting and waiting[0][0] <= time.perf_counter() - began:
                arrived = waiting.popleft()[1]
                submitted.append(arrived.call_id)
                runner.submit(arrived)
            for event in step(runner):
                if isinstance(event, SampleSlice) and event.call_id == 0:
                    moments = [time.perf_counter()] * len(event.token_ids)
                    drawn.setdefault(event.prompt_index, []).extend(moments)
                finished |= isinstance(event, CallFinished) and event.call_id == 0
    for call_id in submitted:
        runner.cancel(call_id)
    chosen = range(len(drawn) if watched is None else watched)
    return [gap for index in chosen for gap in np.diff(drawn[index]).tolist()]


def rounds_of(
    rounds: int, measure: Callable[[], Mapping[str, Sequence[float]]]
) -> list[dict[str, float]]:
    """Median and 95th percentile of times between tokens, each in milliseconds, by round.

    Args:
        rounds: how many; one before them warms up.
        measure: name -> seconds, of one round.
    """
    found = []
    for number in range(rounds + 1):
        found.append(
            {
                f"p{q}_{name}_ms": 1e3 * float(np.percentile(gaps, q))
                for name, gaps in measure().items()
                for q in (50, 95)
            }
        )
        print(number, {name: round(value, 2) for name, value in found[-1].items()}, flush=True)
    return found[1:]


def main() -> None:
    """Measures, prints, writes JSON."""
    name = "python -m benchmarks.between_tokens"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("--model", required=True, help="folder in the Hugging Face layout")
    parser.add_argument("--tokens", type=int, default=64, help="of a sample")
    parser.add_argument("--long", type=int, default=4000, help="tokens of the long prompt")
    parser.add_argument("--rounds", type=int, default=5)
    out = Path("benchmarks/results/between-tokens.json")
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    engine = Engine(SideConfig(arguments.model, "bfloat16", "bfloat16"))
    longest = min(arguments.long, engine.info.max_sequence_tokens - arguments.tokens)
    rng = np.random.default_rng(0)

    def call(last: int) -> SampleCall:
        lengths = [64] * 15 + [last]
        ids = [rng.integers(0, engine.info.vocab_size, n).tolist() for n in lengths]
        return sample_call(Sampling(ids, arguments.tokens))

    def measure() -> dict[str, list[float]]:
        return {
            "short": between_tokens(engine, call(64), watched=15),
            "beside_long": between_tokens(engine, call(longest), watched=15),
        }

    rounds = rounds_of(arguments.rounds, measure)
    middle = {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}
    report: dict[str, Any] = {
        **origin(),
        "long_prompt": longest,
        "p50_ratio": middle["p50_beside_long_ms"] / middle["p50_short_ms"],
        "rounds": rounds,
        "machine": describe(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"p50 beside a prompt of {longest}: {report['p50_ratio']:.2f} times that beside 64")


if __name__ == "__main__":
    main()
