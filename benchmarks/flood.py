"""A sampler beside a flood of scoring: `python -m benchmarks.flood --model FOLDER`.

Calls that score a text of 256 tokens arrive at a steady rate, whatever the server makes of them.
In each round the sampler runs alone, the flood runs alone, and both run together: how much later do
the sampler's tokens come, and how much of the flood's rate is kept?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.sides import SideConfig
from benchmarks.sides.service import Service
from scoring_client import AsyncScoringClient, PromptGroup

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
        """One sample; seconds between its tokens."""
        gaps: list[float] = []
        last = 0.0
        slices = self.client.sample_slices([self.ids(_PROMPT)], max_tokens=tokens, ignore_eos=True)
        async for piece in slices:
            now = time.perf_counter()
            if last:
                gaps += [(now - last) / len(piece.token_ids)] * len(piece.token_ids)
            last = now
        return gaps

    async def score(self, scored: list[int]) -> None:
        """One text; adds its length to what was scored."""
        ids = self.ids(_TEXT)
        await self.client.score([PromptGroup(ids[:1], [ids[1:]])])
        scored[0] += _TEXT

    async def flood(self, rate: float, until: asyncio.Event | float) -> float:
        """Calls at a steady rate until then; tokens a second that were answered."""
        scored = [0]
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
        """A sample that begins a second after the flood, and the flood while it lasts."""
        done = asyncio.Event()
        flood = asyncio.create_task(self.flood(rate, done))
        await asyncio.sleep(1.0)
        gaps = await self.sample(tokens)
        done.set()
        return gaps, await flood


async def measure(target: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds against one server."""
    vocab = json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"]
    rounds = []
    async with AsyncScoringClient(target) as client:
        load = Load(client, vocab, np.random.default_rng(0))
        await load.sample(32)
        await load.flood(arguments.rate, 1.0)
        for number in range(arguments.rounds):
            alone = await load.sample(arguments.tokens)
            offered = await load.flood(arguments.rate, arguments.seconds)
            gaps, kept = await load.both(arguments.rate, arguments.tokens)
            found = {
                "p95_alone_ms": 1e3 * float(np.percentile(alone, 95)),
                "p95_beside_ms": 1e3 * float(np.percentile(gaps, 95)),
                "p50_alone_ms": 1e3 * statistics.median(alone),
                "p50_beside_ms": 1e3 * statistics.median(gaps),
                "flood_alone_tokens_per_second": offered,
                "flood_beside_tokens_per_second": kept,
            }
            rounds.append(found)
            print(number, {name: round(value, 1) for name, value in found.items()}, flush=True)

    def of_medians(above: str, below: str) -> float:
        middle = {name: statistics.median(r[name] for r in rounds) for name in (above, below)}
        return middle[above] / middle[below]

    return {
        "rate": arguments.rate,
        "p95_ratio": of_medians("p95_beside_ms", "p95_alone_ms"),
        "kept": of_medians("flood_beside_tokens_per_second", "flood_alone_tokens_per_second"),
        "rounds": rounds,
    }


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
    found["machine"] = describe()
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"p95 {found['p95_ratio']:.2f} times that alone; the flood keeps {found['kept']:.2f}")


if __name__ == "__main__":
    main()
