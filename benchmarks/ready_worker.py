"""A worker process whose results are ready: all of a worker but the model (see transport.py)."""

from __future__ import annotations

import argparse
import contextlib
import socket

from benchmarks.wire import ReadyExecutor
from scoring_service.engine.events import Shutdown
from scoring_service.engine.worker.channel import Channel


def main() -> None:
    """Answers calls over the socket pair until told to shut down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    channel = Channel(socket.socket(fileno=parser.parse_args().fd))
    channel.receive()  # the configuration, of which nothing is needed
    worker = ReadyExecutor()
    worker.start(channel.send)
    with contextlib.suppress(EOFError):
        while not isinstance(command := channel.receive(), Shutdown):
            worker.send(command)


if __name__ == "__main__":
    main()
