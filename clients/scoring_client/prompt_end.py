"""Where the prompt of a text ends, for hooks that hand over whole texts and say nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

PromptLength = Callable[[Sequence[int]], int]
"""From a text's token ids to the number of those that are its prompt."""


def only_first_token(token_ids: Sequence[int]) -> int:
    """Nothing is known of the text: every token that can be scored is."""
    return min(1, len(token_ids))


def after_first(marker: Sequence[int]) -> PromptLength:
    """Return a function that ends prompts after the first ``marker`` in them.

    With the tokens that a chat template writes before each answer as the marker, everything up to
    a chat's first answer is its prompt, and no sampled token is. A text without the marker counts
    as one of which nothing is known.

    Raises:
        ValueError: an empty marker.
    """
    wanted = list(marker)
    if not wanted:
        raise ValueError("an empty marker ends no prompt")

    def prompt_length(token_ids: Sequence[int]) -> int:
        width = len(wanted)
        for end in range(width, len(token_ids) + 1):
            if token_ids[end - 1] == wanted[-1] and list(token_ids[end - width : end]) == wanted:
                return end
        return only_first_token(token_ids)

    return prompt_length


# Each task of an event loop has a context of its own, and so each rollout its prompt.
_TOLD: ContextVar[int | None] = ContextVar("prompt_length", default=None)


@contextmanager
def telling(length: int) -> Iterator[None]:
    """Tell ``as_told`` how long the prompt is of the texts that this task hands over inside.

    For callers that know it, of a hook that is not told.
    """
    before = _TOLD.set(length)
    try:
        yield
    finally:
        _TOLD.reset(before)


def as_told(token_ids: Sequence[int]) -> int:
    """Return what the task was told by ``telling``; where it was not, ``only_first_token``."""
    told = _TOLD.get()
    return only_first_token(token_ids) if told is None else told
