"""The ``scoring-client`` command: ask a scoring server from a terminal."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError

from scoring_client.cli import admin, compare
from scoring_client.cli.console import print_error
from scoring_client.cli.info import info
from scoring_client.cli.sample import sample
from scoring_client.cli.score import score
from scoring_client.cli.tokenize import tokenize
from scoring_client.cli.topk import topk
from scoring_client.cli.wording import in_options
from scoring_client.errors import (
    AccessDeniedError,
    DeadlineError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotFoundError,
    OverloadedError,
    PreconditionFailedError,
    ScoringError,
    UnavailableError,
)

EXIT_BAD_INPUT = 2
EXIT_UNAVAILABLE = 3
EXIT_OTHER = 1

app = App(
    name="scoring-client",
    version=lambda: version("scoring-service"),
    help="Ask a scoring server how likely tokens are, what else was likely, or for samples.",
)

admin.register(app)
compare.register(app)
for command in (score, topk, sample, tokenize, info):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 = well, 2 = bad input, 3 = no server or no room, 1 = anything else that failed, and a
    comparison that found a difference.
    """
    try:
        status = app(
            None if arguments is None else list(arguments),
            exit_on_error=False,
            result_action="return_value",
        )
    except CycloptsError:
        # It has said on stderr what is wrong.
        return EXIT_BAD_INPUT
    except ScoringError as error:
        print_error(_explained(error))
        return _exit_status(error)
    except OSError as error:
        print_error(str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def _exit_status(error: ScoringError) -> int:
    if isinstance(error, (UnavailableError, OverloadedError, DeadlineError)):
        return EXIT_UNAVAILABLE
    bad_input = (
        AccessDeniedError,
        InvalidRequestError,
        MessageTooLargeError,
        ModelNotFoundError,
        PreconditionFailedError,
    )
    return EXIT_BAD_INPUT if isinstance(error, bad_input) else EXIT_OTHER


def _explained(error: ScoringError) -> str:
    """Return an error with what helps next."""
    said = in_options(str(error))
    if type(error) is UnavailableError and not error.reason:
        return f"{said}. --target or SCORING_TARGET names another server"
    # Only of errors that are not the user's own does the server's log say more.
    if _exit_status(error) == EXIT_OTHER and error.request_id:
        return f"{said} (request {error.request_id})"
    return said


if __name__ == "__main__":
    sys.exit(main())
