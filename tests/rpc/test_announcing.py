"""What the log says once a server answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from scoring_service.config import ServeConfig
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.serving import announcing


class Answering:
    """A server that is ready."""

    port = 50051

    async def wait_ready(self) -> bool:
        return True


class Loading:
    """A server that is not ready for as long as anybody waits."""

    async def wait_ready(self) -> bool:
        return await asyncio.Event().wait()


async def test_a_server_that_ends_while_it_loads_is_reported_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announcing, "_REPORT_SECONDS", 0.01)
    server: Any = Loading()
    pool: Any = SimpleNamespace(name="m", stage="reading", state=PoolState.LOADING)
    with capture_logs() as logs:
        task = asyncio.create_task(announcing.announce(server, pool, ServeConfig()))
        await asyncio.sleep(0.1)
        assert logs
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        logs.clear()
        await asyncio.sleep(0.1)
    assert logs == []


@pytest.mark.parametrize("reason", ["", "the Hub cannot be reached"])
async def test_a_model_without_tokenizer_is_warned_of(reason: str) -> None:
    facts = {
        "architecture": "A",
        "parameter_count": 1,
        "dtype": "float32",
        "device": "cpu",
        "deterministic": True,
        "load_seconds": 1.0,
        "tokenizer_json": None if reason else "{}",
        "tokenizer_reason": reason,
    }
    server: Any = Answering()
    pool: Any = SimpleNamespace(name="m", stage="", info=SimpleNamespace(**facts))
    with capture_logs() as logs:
        await announcing.announce(server, pool, ServeConfig())
    warned = [line for line in logs if line["log_level"] == "warning"]
    assert [line["reason"] for line in warned] == ([reason] if reason else [])
