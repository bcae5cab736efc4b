"""Asks workers to forget cached prompts, and waits until they have."""

from __future__ import annotations

import asyncio
from collections import deque

from scoring_service.engine.events import FlushCache
from scoring_service.pool.workers.worker import Worker


class CacheFlush:
    """Requests under way, in the order in which workers answer them."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[asyncio.Future[int]]] = {}

    async def flush(self, workers: list[Worker]) -> list[int]:
        """Pages that each of the workers freed; 0 for one that died meanwhile."""
        answers = []
        for worker in workers:
            answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(worker.index, deque()).append(answer)
            worker.send(FlushCache())
            answers.append(answer)
        return list(await asyncio.gather(*answers))

    def flushed(self, index: int, pages: int) -> None:
        """A worker answered the first of the requests that it has not answered."""
        waiting = self._waiting.get(index)
        if waiting:
            _answer(waiting.popleft(), pages)

    def lost(self, index: int) -> None:
        """A worker died: it holds nothing any more."""
        for answer in self._waiting.pop(index, ()):
            _answer(answer, 0)


def _answer(answer: asyncio.Future[int], pages: int) -> None:
    if not answer.done():  # whoever asked may have left
        answer.set_result(pages)
