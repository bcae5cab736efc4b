"""Asks workers to forget cached prompts, and waits until they have."""

from __future__ import annotations

import asyncio

from scoring_service.engine.events import FlushCache
from scoring_service.pool.worker import Worker


class CacheFlush:
    """Requests under way, in the order in which workers answer them."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[asyncio.Future[int]]] = {}

    async def flush(self, workers: list[Worker]) -> list[int]:
        """Pages that each of the workers freed; 0 for one that died meanwhile."""
        answers = []
        for worker in workers:
            answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(worker.index, []).append(answer)
            worker.send(FlushCache())
            answers.append(answer)
        return list(await asyncio.gather(*answers))

    def flushed(self, index: int, pages: int) -> None:
        """A worker answered; one that died answers everything that it was asked."""
        for answer in self._waiting.pop(index, []):
            if not answer.done():
                answer.set_result(pages)
