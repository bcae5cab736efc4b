"""Tasks beside the calls: an exception that ends one is told at once, and the task begins again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)

PAUSE = 1.0
"""Seconds before work that failed begins again."""


def supervised(
    work: Callable[[], Coroutine[Any, Any, None]], name: str, pause: float = PAUSE
) -> asyncio.Task[None]:
    """Runs work in a task until it returns, or the task is cancelled.

    By itself asyncio tells of an exception once nobody holds the task any more, which of a task
    that is kept is when the process ends; until then what it did is simply done no more.

    Args:
        work: begins it, and begins it anew after an exception.
        name: of the task, for the log.
        pause: seconds before it begins anew.
    """
    return asyncio.create_task(_until_it_returns(work, name, pause), name=name)


async def _until_it_returns(
    work: Callable[[], Coroutine[Any, Any, None]], name: str, pause: float
) -> None:
    while True:
        try:
            return await work()
        except Exception as error:  # whatever it is, the work has to go on
            log.error("background_task_failed", task=name, again_in=pause, exc_info=error)
        await asyncio.sleep(pause)
