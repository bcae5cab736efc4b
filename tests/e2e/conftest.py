"""A server as it is by default, for tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.served import Served, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    """One for all files of a process; what it says and holds, others before may have asked for."""
    with serving() as running:
        assert running.ready
        yield running
