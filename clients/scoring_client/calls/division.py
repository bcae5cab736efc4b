"""Dividing a call into parts of about the size that the server prefers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from scoring_client.calls.resend import Key
from scoring_client.connection.counts import check_count
from scoring_client.proto import sample_pb2, sequence_pb2
from scoring_client.values.model_info import Limits

NEVER_DIVIDED_BELOW = 4096
"""Tokens under which a call is one part and the server's preference is not asked for."""
TEXT_BYTES_A_TOKEN = 3
"""The client has no tokenizer. Tokens of common texts are longer, so this guesses too many."""


@dataclass(frozen=True, slots=True)
class PartSize:
    """How large a part should be."""

    tokens: int
    """Tokens, the prompt of a group counted once."""
    request_bytes: int | None = None
    """Largest request message; None = not known."""

    def __post_init__(self) -> None:
        check_count("tokens_per_part", self.tokens)


@dataclass(frozen=True, slots=True)
class Unit:
    """Items that stay together because they share a prompt."""

    keys: tuple[Key, ...]
    """The items."""
    tokens: int
    """What they cost."""
    request_bytes: int
    """What they take in a request."""


def preferred_size(limits: Limits) -> PartSize:
    """Return the size that a server prefers."""
    # 0 where a server says nothing.
    return PartSize(
        limits.preferred_tokens_per_call or sys.maxsize, limits.max_request_bytes or None
    )


def checked_parts(max_parts_in_flight: int) -> int:
    """Return the number of parts that may run at once.

    Raises:
        ValueError: it is none.
    """
    check_count("max_parts_in_flight", max_parts_in_flight)
    return max_parts_in_flight


def group_unit(index: int, group: sequence_pb2.PromptGroup) -> Unit:
    """Return a prompt group: never divided, because its prompt is computed once."""
    tokens = _tokens(group.prompt) + sum(map(_tokens, group.completions))
    keys = tuple((index, number) for number in range(len(group.completions)))
    return Unit(keys, tokens, group.ByteSize())


def prompt_units(
    prompt: sample_pb2.SamplePrompt, keys: list[Key], max_tokens: int, size: PartSize
) -> list[Unit]:
    """Return the samples of a prompt: together up to the size of a part.

    Args:
        prompt: The prompt.
        keys: Its samples, ascending.
        max_tokens: Most tokens of each sample.
        size: Of a part.
    """
    own = _tokens(prompt)
    # What makes no sense is the server's to refuse.
    max_tokens = max(max_tokens, 1)
    together = max(1, (size.tokens - own) // max_tokens)
    runs = [keys[first : first + together] for first in range(0, len(keys), together)]
    return [Unit(tuple(run), own + len(run) * max_tokens, prompt.ByteSize()) for run in runs]


def divide(units: Iterable[Unit], size: PartSize) -> list[tuple[Key, ...]]:
    """Return the items of each part, in the caller's order; a part has at least one unit.

    Parts are made about equally large rather than full but for the last, so that servers which
    share them end at about the same time.
    """
    waiting = list(units)
    total = sum(unit.tokens for unit in waiting)
    share = max(1.0, total / max(1, -(-total // size.tokens)))
    # Room for what a request has beside its items.
    most_bytes = None if size.request_bytes is None else size.request_bytes * 9 // 10
    parts: list[list[Key]] = []
    passed, current = 0, 0
    tokens = request_bytes = 0
    for unit in waiting:
        # A unit belongs to the share in which its middle lies.
        due = int((passed + unit.tokens / 2) / share)
        too_long = tokens + unit.tokens > size.tokens
        too_large = most_bytes is not None and request_bytes + unit.request_bytes > most_bytes
        if not parts or due > current or too_long or too_large:
            parts.append([])
            tokens = request_bytes = 0
        parts[-1].extend(unit.keys)
        passed, current = passed + unit.tokens, due
        tokens += unit.tokens
        request_bytes += unit.request_bytes
    return [tuple(part) for part in parts]


def _tokens(
    sequence: sequence_pb2.TokenSequence | sequence_pb2.Completion | sample_pb2.SamplePrompt,
) -> int:
    """Return how many tokens a sequence has; for text, a guess."""
    if sequence.HasField("text"):
        return -(-len(sequence.text.encode()) // TEXT_BYTES_A_TOKEN)
    return len(sequence.token_ids)
