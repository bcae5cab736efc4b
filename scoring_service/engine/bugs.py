"""Bug reports: what the server is told of an error that nobody foresaw."""

from __future__ import annotations

import traceback

from scoring_service.engine.events import BugReport

_MAX_TRACEBACK = 1 << 14
"""Characters of a traceback, from its end."""


def bug_report(error: BaseException, request_id: str = "") -> BugReport:
    """What the log is to have of an error, without its variables.

    Args:
        error: that nobody foresaw.
        request_id: of the call that it ended; empty where it was none.
    """
    text = "".join(traceback.format_exception(error)).rstrip()
    return BugReport(request_id, text[-_MAX_TRACEBACK:])


def bug_message(error: BaseException) -> str:
    """What a caller is told: no more than its kind."""
    return f"a bug in the server: {type(error).__name__}"
