"""What callers ask for, in the units of the plan: a prompt group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rpc = Literal["score", "topk", "sample"]

_SCALARS: dict[Rpc, int] = {"score": 1, "topk": 3, "sample": 3}
"""Numbers of a row beside its top-K list. Score: the log-prob. TopKLogprobs: also the log tail mass
and the size of the support. Sample: the token, its log-prob and its processed log-prob."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Prompt groups of one shape, and how many a second."""

    rpc: Rpc
    prompt_length: int
    completion_length: int
    completions: int
    """G: completions or samples of a prompt."""
    k: int
    """K of top-K lists; 0 with Score."""
    groups_per_second: float

    @property
    def sequence_tokens(self) -> int:
        """Longest sequence."""
        return self.prompt_length + self.completion_length

    @property
    def called_tokens(self) -> int:
        """Tokens of a group as callers count them: its prompt once for each completion."""
        return self.completions * self.sequence_tokens

    @property
    def distinct_tokens(self) -> int:
        """Tokens of a group that are computed: its prompt once."""
        return self.prompt_length + self.completions * self.completion_length

    @property
    def rows(self) -> int:
        """Rows of a group that go through the head."""
        return self.completions * self.completion_length

    @property
    def pairs(self) -> int:
        """(query, key) pairs of a group's attention, its prompt's own counted once."""
        prompt = _triangle(self.prompt_length)
        return prompt + self.completions * (_triangle(self.sequence_tokens) - prompt)

    @property
    def reply_bytes(self) -> int:
        """Bytes of a group's answer: what rows hold, without the messages around them.

        Those are a few percent, save for samples that are read token by token: there as much again.
        """
        return self.rows * 4 * (_SCALARS[self.rpc] + 2 * self.k)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
