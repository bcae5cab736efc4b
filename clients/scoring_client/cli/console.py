"""What commands of ``scoring-client`` write to the terminal beside their tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from scoring_client.cli.hints import leading_space_hint
from scoring_client.cli.visible import harmless, visible


def new_console() -> Console:
    """Return the console of answers."""
    return Console(highlight=False)


def _error_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Say on stderr what went wrong."""
    _error_console().print(Text("error: ", "bold red").append(harmless(message), "not bold"))


def print_hint(hint: str) -> None:
    """Say on stderr what may have been meant."""
    _error_console().print(Text("hint: ", "bold yellow").append(harmless(hint), "not bold"))


def print_hints(prompt: str, completions: Sequence[str]) -> None:
    """Say on stderr where a leading space seems to be missing."""
    for completion in completions:
        if (hint := leading_space_hint(prompt, completion)) is not None:
            print_hint(hint)


def title(prompt: str, completion: str, width: int = 40) -> str:
    """Return what follows what, from the end of the prompt to the beginning of the completion."""
    before, after = visible(prompt) or "beginning of the sequence", visible(completion)
    if len(before) > width:
        before = f"…{before[-width + 1 :]}"
    if len(after) > width:
        after = f"{after[: width - 1]}…"
    return f"{before} → {after}"
