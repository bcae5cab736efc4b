"""What the tests' own server leaves behind."""

from __future__ import annotations

from tests.e2e.processes import alive, children, until
from tests.e2e.served import serving


def test_what_a_server_has_started_is_gone_once_it_is_left() -> None:
    """Here something that would go on for a minute; of a worker the server's end is the end."""
    with serving(launcher=["bash", "-c", 'sleep 60 & exec "$@"', "-"]) as server:
        until(lambda: bool(children(server.process.pid)))
        started = children(server.process.pid)
    assert not any(alive(pid) for pid in started)
