"""What the log says once a server answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from scoring_service.config import ServeConfig
from scoring_service.serve import _announce


class Answering:
    """A server that is ready."""

    port = 50051

    async def wait_ready(self) -> bool:
        return True


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
        await _announce(server, pool, ServeConfig())
    warned = [line for line in logs if line["log_level"] == "warning"]
    assert [line["reason"] for line in warned] == ([reason] if reason else [])
