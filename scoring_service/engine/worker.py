"""A worker process: `python -m scoring_service.engine.worker --fd N`.

Its parent sends an EngineConfig and then commands over the connection N; it answers with events.
It ends when told to, and at once when the connection ends: a worker never outlives its server.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import threading
from multiprocessing.connection import Connection

from scoring_service.engine.events import Command, Shutdown
from scoring_service.engine.service_loop import run_worker


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    # Signals are for the server, which ends its workers itself once calls are done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(parser.parse_args().fd)
    config = connection.recv()
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, commands), daemon=True).start()
    run_worker(config, commands, connection.send)


def _receive(connection: Connection, commands: queue.SimpleQueue[Command]) -> None:
    while True:
        try:
            command = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        commands.put(command)
        if isinstance(command, Shutdown):
            return


if __name__ == "__main__":
    main()
