"""A sampler beside a flood of scoring: `python -m benchmarks.flood --model FOLDER`.

Calls that score a text of 256 tokens arrive at a steady rate, whatever the server makes of them.
In each round the sampler runs alone, the flood runs alone, and both run together: how much of the
flood's rate is kept? A server sends what was drawn in a tenth of a second together; how much later
each token comes is measured where the engine draws it, in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.between_tokens import between_tokens, rounds_of
from benchmarks.machine import describe, origin
from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine, sample_call, score_call
from benchmarks.sides.service import Service
from benchmarks.workloads import Sampling, Scoring
from scoring_client import AsyncScoringClient, PromptGroup
from scoring_service.types import ScoreCall

_PROMPT = 64
_TEXT = 256


@dataclass
class Load:
    """Makes calls of random tokens, none of them like an earlier one."""

    client: AsyncScoringClient
    vocab: int
    rng: np.random.Generator

    def ids(self, count: int) -> list[int]:
        """Random token ids."""
        found: list[int] = self.rng.integers(0, self.vocab, count).tolist()
        return found

    async def sample(self, tokens: int) -> list[float]:
        """One sample; seconds between its slices, each as it came."""
        gaps: list[float] = []
        last = 0.0
        slices = self.client.sample_slices([self.ids(_PROMPT)], max_tokens=tokens, ignore_eos=True)
        async for _ in slices:
            now = time.perf_counter()
            if last:
                gaps.append(now - last)
            last = now
        return gaps

    async def score(self, scored: list[int]) -> None:
        """One text; adds its length to what was scored."""
        ids = self.ids(_TEXT)
        await self.client.score([PromptGroup(ids[:1], [ids[1:]])])
        scored[0] += _TEXT

    async def flood(self, rate: float, until: asyncio.Event | float, scored: list[int]) -> float:
        """Calls at a steady rate until then; tokens a second that were answered.

        Args:
            rate: tokens a second.
            until: so many seconds, or what ends it.
            scored: to the tokens there those are added that are answered, as they are.
        """
        tasks = []
        began = time.perf_counter()
        for number in range(1_000_000):
            wait = began + number * _TEXT / rate - time.perf_counter()
            await asyncio.sleep(max(0.0, wait))
            if isinstance(until, float) and time.perf_counter() - began >= until:
                break
            if isinstance(until, asyncio.Event) and until.is_set():
                break
            tasks.append(asyncio.create_task(self.score(scored)))
        answered = scored[0] / (time.perf_counter() - began)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        return answered

    async def both(self, rate: float, tokens: int) -> tuple[list[float], float]:
        """A sample that begins a second after the flood, and the flood's rate while it lasts."""
        done, scored = asyncio.Event(), [0]
        flood = asyncio.create_task(self.flood(rate, done, scored))
        await asyncio.sleep(1.0)
        before, began = scored[0], time.perf_counter()
        gaps = await self.sample(tokens)
        kept = (scored[0] - before) / (time.perf_counter() - began)
        done.set()
        await flood
        return gaps, kept


async def measure(target: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds against one server."""
    vocab = json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"]
    rounds = []
    async with AsyncScoringClient(target) as client:
        load = Load(client, vocab, np.random.default_rng(0))
        await load.sample(32)
        await load.flood(arguments.rate, 1.0, [0])
        for number in range(arguments.rounds):
            alone = await load.sample(arguments.tokens)
            offered = await load.flood(arguments.rate, arguments.seconds, [0])
            gaps, kept = await load.both(arguments.rate, arguments.tokens)
            found = {
                "slices_p95_alone_ms": 1e3 * float(np.percentile(alone, 95)),
                "slices_p95_beside_ms": 1e3 * float(np.percentile(gaps, 95)),
                "flood_alone_tokens_per_second": offered,
                "flood_beside_tokens_per_second": kept,
            }
            rounds.append(found)
            print(number, {name: round(value, 1) for name, value in found.items()}, flush=True)

    kept = ("flood_beside_tokens_per_second", "flood_alone_tokens_per_second")
    return {"rate": arguments.rate, "kept": of_medians(rounds, *kept), "rounds": rounds}


def at_the_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same in this process, where each token is seen by itself."""
    engine = Engine(SideConfig(arguments.model, "bfloat16", "bfloat16"))
    vocab, rng = engine.info.vocab_size, np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        found: list[int] = rng.integers(0, vocab, count).tolist()
        return found

    def arrivals() -> Iterator[tuple[float, ScoreCall]]:
        for number in range(int(60 * arguments.rate / _TEXT)):
            text = ids(_TEXT)
            call = score_call(Scoring([(text[:1], [text[1:]])]))
            yield number * _TEXT / arguments.rate, replace(call, call_id=number + 1)

    def measure() -> dict[str, list[float]]:
        call = sample_call(Sampling([ids(_PROMPT)], arguments.tokens))
        return {
            "alone": between_tokens(engine, call),
            "beside": between_tokens(engine, call, list(arrivals())),
        }

    rounds = rounds_of(arguments.rounds, measure)
    return {"p95_ratio": of_medians(rounds, "p95_beside_ms", "p95_alone_ms"), "rounds": rounds}


def of_medians(rounds: Sequence[Mapping[str, float]], above: str, below: str) -> float:
    """The ratio of two figures, each the median of all rounds."""
    return statistics.median(r[above] for r in rounds) / statistics.median(r[below] for r in rounds)


def main() -> None:
    """Measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--model", required=True, help="folder in the Hugging Face layout")
    parser.add_argument("--rate", type=float, default=1000.0, help="tokens a second that arrive")
    parser.add_argument("--tokens", type=int, default=192, help="of a sample")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the flood alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/flood.json"))
    arguments = parser.parse_args()
    service = Service(SideConfig(arguments.model, "bfloat16", "bfloat16"))
    try:
        found = asyncio.run(measure(service.target, arguments))
    finally:
        service.close()
    tokens = at_the_engine(arguments)
    report = {
        **origin(),
        "repetitions": arguments.rounds,
        **found,
        "between_tokens": tokens,
        "machine": describe(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"p95 {tokens['p95_ratio']:.2f} times that alone; the flood keeps {found['kept']:.2f}")


if __name__ == "__main__":
    main()
