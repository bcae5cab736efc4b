"""Time between a sample's tokens, each by itself, where the engine draws them.

A server sends what was drawn in a tenth of a second together, so that its slices do not tell. Here
the engine runs in this process and hands every token over at once.

`python -m benchmarks.between_tokens --model FOLDER` decodes 16 samples after prompts of 64 tokens,
and 15 of them beside another call's after a longer prompt: does it slow other people's samples
down?
While that prompt is computed its tokens join the others' steps, as those of any scoring do; from
its first sample on only the attention to it is longer. The two are told apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.machine import describe, origin
from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine, sample_call, step
from benchmarks.workloads import Sampling
from scoring_service.engine.events import CallFinished, SampleSlice
from scoring_service.engine.outputs import sample_slices
from scoring_service.types import Call, SampleCall

Arrival = tuple[float, Call]
"""Seconds after the beginning, and a call with a number of its own above 0."""

_SHORT = 64
_LATER = 2.0
"""Seconds after which the longer prompt comes: the others draw by then."""


def moments_of(
    engine: Engine, call: SampleCall, arrivals: Iterable[Arrival] = ()
) -> dict[tuple[int, int], list[float]]:
    """Numbers of a call and of a prompt -> seconds after which each token of its sample was drawn.

    Args:
        engine: in this process.
        call: draws one sample of each prompt, as number 0.
        arrivals: calls that come meanwhile, in their order; cancelled at the end.
    """
    runner, waiting = engine.runner, deque(arrivals)
    drawn: dict[tuple[int, int], list[float]] = {}
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
                if isinstance(event, SampleSlice):
                    moments = [time.perf_counter() - began] * len(event.token_ids)
                    drawn.setdefault((event.call_id, event.prompt_index), []).extend(moments)
                finished |= isinstance(event, CallFinished) and event.call_id == 0
    for call_id in submitted:
        runner.cancel(call_id)
    return drawn


def between_tokens(
    engine: Engine, call: SampleCall, arrivals: Iterable[Arrival] = ()
) -> list[float]:
    """Seconds between the tokens of each sample, from its own first one; see `moments_of`."""
    drawn = moments_of(engine, call, arrivals)
    own = (moments for (call_id, _), moments in drawn.items() if call_id == 0)
    return [gap for moments in own for gap in np.diff(moments).tolist()]


def beside_the_last(
    drawn: Mapping[tuple[int, int], Sequence[float]], came: float
) -> tuple[list[float], list[float]]:
    """Seconds between the tokens of all samples but the last call's: before, after its first.

    Args:
        drawn: as of `moments_of`.
        came: when the last call did.
    """
    *others, (_, last) = sorted(drawn.items())
    before, after = [], []
    for _, moments in others:
        for earlier, later in pairwise(moments):
            if earlier >= came:
                (before if later <= last[0] else after).append(later - earlier)
    return before, after


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
    parser.add_argument("--tokens", type=int, default=512, help="of a sample")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[500, 4000], help="tokens of the longer prompts"
    )
    parser.add_argument("--rounds", type=int, default=5)
    out = Path("benchmarks/results/between-tokens.json")
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    engine = Engine(SideConfig(arguments.model, "bfloat16", "bfloat16"))
    rng = np.random.default_rng(0)

    def call(number: int, *lengths: int) -> SampleCall:
        ids = [rng.integers(0, engine.info.vocab_size, n).tolist() for n in lengths]
        return replace(sample_call(Sampling(ids, arguments.tokens)), call_id=number)

    def moments(last: int) -> dict[tuple[int, int], list[float]]:
        return moments_of(engine, call(0, *[_SHORT] * 15), [(_LATER, call(1, last))])

    def measure() -> dict[str, list[float]]:
        found = {str(_SHORT): beside_the_last(moments(_SHORT), _LATER)[1]}
        for tokens in arguments.prompts:
            both = beside_the_last(moments(tokens), _LATER)
            found |= dict(zip((f"{tokens}_computed", f"{tokens}"), both, strict=True))
        return found

    rounds = rounds_of(arguments.rounds, measure)
    names = [name for n in arguments.prompts for name in (f"{n}_computed", f"{n}")]
    report: dict[str, Any] = {
        **origin(),
        "tokens": arguments.tokens,
        "p50_ratios": {name: _ratio(rounds, name) for name in names},
        "rounds": rounds,
        "machine": describe(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print({name: round(ratio, 2) for name, ratio in report["p50_ratios"].items()})


def _ratio(rounds: Sequence[Mapping[str, float]], name: str) -> float:
    """Median over rounds of the p50 beside such a prompt, over that beside a short one."""
    return statistics.median(r[f"p50_{name}_ms"] / r[f"p50_{_SHORT}_ms"] for r in rounds)


if __name__ == "__main__":
    main()
