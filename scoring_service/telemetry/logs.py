"""Structured logs on standard error."""

from __future__ import annotations

import atexit
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from structlog.typing import Processor

from scoring_service.telemetry.call_labels import with_labels
from scoring_service.telemetry.log_writer import LogWriter

_LAST_LINES_SECONDS = 1.0
"""A process that ends waits for whoever reads its last lines."""


_encode = json.JSONEncoder(default=repr, check_circular=False).encode


def _to_json(event: object, **_options: object) -> str:
    """As `json.dumps` does it, which makes an encoder for each line."""
    return _encode(event)


class LineTime:
    """A processor of structlog that adds the time, as its TimeStamper does for five times as much.

    Whole seconds are written once each.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last = 0, ""

    def __call__(self, _logger: object, _method: str, event: Any) -> Any:
        """See structlog."""
        now = self._clock()
        second, text = self._last
        if second != int(now):
            second = int(now)
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._last = second, text
        event["timestamp"] = f"{text}.{int(1e6 * (now - second)):06}Z"
        return event


class _Lines:
    """What structlog hands rendered lines to, by the name of their level."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def msg(self, line: str) -> None:
        self._write(line + "\n")

    debug = info = warning = error = critical = exception = msg


class _LibraryLines(logging.Handler):
    """What libraries say that nobody asked: asyncio, gRPC, OpenTelemetry."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self._write(self.format(record) + "\n")


def configure_logs(level: str, log_format: str) -> LogWriter:
    """Sets up structlog for the process, and what Python's own logging does by itself.

    Args:
        level: debug, info, warning or error.
        log_format: console, json, or auto (console on a terminal).

    Returns:
        What writes the lines.
    """
    console = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    renderer: Processor
    if console:
        # The default prints the variables of every frame where `rich` is installed: requests, and
        # the tokens of callers.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = structlog.processors.JSONRenderer(_to_json)
    processors: list[Processor] = [
        with_labels,
        structlog.processors.add_log_level,
        LineTime(),
        _without_controls if console else structlog.processors.format_exc_info,
        renderer,
    ]
    of_the_log_itself = processors[1:]  # which is part of no call
    writer = LogWriter(sys.stderr.fileno(), lambda lost: _lost_line(of_the_log_itself, lost))
    atexit.register(writer.flush, _LAST_LINES_SECONDS)
    logging.lastResort = _LibraryLines(writer.write)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_names: _Lines(writer.write),
        cache_logger_on_first_use=True,
    )
    return writer


def _escaped(character: str) -> str:
    shown = character.isprintable() or character in "\t\r\n"
    return character if shown else repr(character)[1:-1]


def _without_controls(_logger: object, _method: str, event: Any) -> Any:
    """A processor of structlog that escapes what a terminal would obey.

    A caller chooses its request id. The renderer of lines for people escapes a value only where it
    has a space, a quote or a line's end; JSON does always.
    """
    for name, value in event.items():
        if name != "exception" and isinstance(value, str) and not value.isprintable():
            event[name] = "".join(map(_escaped, value))
    return event


def _lost_line(processors: Sequence[Processor], lost: int) -> str:
    event: Any = {"event": "log_lines_lost", "lines": lost}
    for processor in processors:
        event = processor(None, "warning", event)
    return f"{event}\n"
