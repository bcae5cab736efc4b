"""What the Python client says of a call, in the words of the command line."""

import re

_IN_PYTHON_AND_HERE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(words), here)
    for words, here in (
        ("a client's max_attempts= rides out a restart", "ask again when the server is back"),
        ("raise timeout= or", "raise --timeout or"),
        # No command shows results as they end.
        (r": \w+_iter yields each as it ends", ""),
    )
)


def in_options(message: str) -> str:
    """Return a message of an error without arguments that only a Python program can give."""
    for words, here in _IN_PYTHON_AND_HERE:
        message = words.sub(here, message)
    return message
