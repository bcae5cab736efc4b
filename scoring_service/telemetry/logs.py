"""Structured logs on standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import TextIO, cast

import structlog


class _Unbreakable:
    """Standard error that may fail: a full disk behind it must not fail a call."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or loses the text."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, or leaves it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


_encode = json.JSONEncoder(default=repr).encode


def _to_json(event: object, **_options: object) -> str:
    """As `json.dumps` does it, which makes an encoder for each line."""
    return _encode(event)


def configure_logs(level: str, log_format: str) -> None:
    """Sets up structlog for the process.

    Args:
        level: debug, info, warning or error.
        log_format: console, json, or auto (console on a terminal).
    """
    console = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    renderer: structlog.typing.Processor
    if console:
        # The default prints the variables of every frame where `rich` is installed: requests, and
        # the tokens of callers.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = structlog.processors.JSONRenderer(_to_json)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if console else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Unbreakable(sys.stderr))),
        cache_logger_on_first_use=True,
    )
