"""Every call is tested through both clients: ``ask`` is one after the other."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scoring_client import AsyncScoringClient, ScoringClient
from tests.client.admins import admin

__all__ = ["admin", "ask", "quick_retry", "runner"]

# Ports come round: no connection is shared with an earlier test's server, which may have ended.
OWN_CONNECTIONS = {"channel_options": [("grpc.use_local_subchannel_pool", 1)]}


class Ask:
    """Calls one method of a client and returns what it gives; iterators as lists."""

    def __init__(self, kind: str, runner: asyncio.Runner) -> None:
        self.kind = kind
        self._runner = runner

    def __call__(
        self, target: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kw: Any
    ) -> Any:
        parts: list[Any] = []
        return self.into(parts, target, method, *args, client=client, **kw)

    def into(
        self,
        parts: list[Any],
        target: str,
        method: str,
        *args: Any,
        client: dict[str, Any] | None = None,
        **kw: Any,
    ) -> Any:
        """Append what an iterator yields to ``parts``: there also when it raises later."""
        run: Callable[..., Any] = self._sync if self.kind == "sync" else self._async
        return run(parts, target, method, args, OWN_CONNECTIONS | (client or {}), kw)

    @staticmethod
    def _sync(parts: Any, target: Any, method: Any, args: Any, client: Any, kw: Any) -> Any:
        with ScoringClient(target, **client) as made:
            answer = getattr(made, method)(*args, **kw)
            if not inspect.isgenerator(answer):
                return answer
            for part in answer:
                parts.append(part)
            return parts

    def _async(self, parts: Any, target: Any, method: Any, args: Any, client: Any, kw: Any) -> Any:
        async def main() -> Any:
            async with AsyncScoringClient(target, **client) as made:
                answer = getattr(made, method)(*args, **kw)
                if not inspect.isasyncgen(answer):
                    return await answer
                async for part in answer:
                    parts.append(part)
                return parts

        return self._runner.run(main())


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all: grpc.aio remembers loops and complains of those that are closed."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Ask:
    return Ask(request.param, runner)


@pytest.fixture
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff without the wait; delays that servers name stay."""
    monkeypatch.setattr("scoring_client.connection.retry.INITIAL_BACKOFF", 0.001)
