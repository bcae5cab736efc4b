"""What the tests' own server leaves behind."""

from __future__ import annotations

import os
import signal

from tests.e2e.processes import alive
from tests.e2e.served import serving


def test_a_worker_that_stands_still_goes_with_its_server() -> None:
    with serving() as server:
        assert server.ready
        worker = server.worker_pid
        os.kill(worker, signal.SIGSTOP)
    assert not alive(worker)
