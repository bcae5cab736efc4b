"""A worker process: `python -m scoring_service.engine.worker.process --fd N`.

Its parent sends an EngineConfig and then commands over the socket N; it answers with events, and
with a heartbeat every second. It ends when told to, and at once when the connection ends: a worker
never outlives its server.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import socket
import threading
import time
import warnings

from scoring_service.engine.events import Command, Event, Ready, Shutdown
from scoring_service.engine.worker.channel import Channel
from scoring_service.engine.worker.monitor import HEARTBEAT_SECONDS, Monitor
from scoring_service.engine.worker.service_loop import run_worker
from scoring_service.garbage import freeze_startup_objects


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    # Signals are for the server, which ends its workers itself once calls are done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=parser.parse_args().fd))
    config = channel.receive()
    # Weights of updates cannot be written to, which is what is wanted.
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    monitor = Monitor()
    threading.Thread(target=_receive, args=(channel, commands), daemon=True).start()
    threading.Thread(target=_beat, args=(channel, monitor), daemon=True).start()

    def send(event: Event) -> None:
        channel.send(event)
        if isinstance(event, Ready):
            # The model is loaded; a later collection would stop steps for a third of a second.
            freeze_startup_objects()

    run_worker(config, commands, send, monitor)


def _receive(channel: Channel, commands: queue.SimpleQueue[Command]) -> None:
    while True:
        try:
            command = channel.receive()
        except (EOFError, OSError):
            os._exit(0)
        commands.put(command)
        if isinstance(command, Shutdown):
            return


def _beat(channel: Channel, monitor: Monitor) -> None:
    while True:
        try:
            channel.send(monitor.heartbeat())
        except OSError:
            return  # the thread that receives ends the process
        time.sleep(HEARTBEAT_SECONDS)


if __name__ == "__main__":
    main()
