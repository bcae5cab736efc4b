"""The server's tokenizer, for callers that have none of their own."""

from __future__ import annotations

from collections.abc import Iterable

from scoring_client.batches import batches
from scoring_client.client import ScoringClient

_CALL_CHARACTERS = 1 << 18
"""Of the texts of one call: a character is a token at most but for rare ones, an id three bytes."""


class TextIds:
    """Token ids of texts, asked of the server once each and then remembered."""

    def __init__(self, client: ScoringClient) -> None:
        """Ask ``client``, which stays open."""
        self._client = client
        self._known: dict[tuple[str, bool], list[int]] = {("", True): [], ("", False): []}

    def __call__(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, with the tokenizer's special tokens or without."""
        self.learn([(text, special_tokens)])
        return self._known[text, special_tokens]

    def learn(self, texts: Iterable[tuple[str, bool]]) -> None:
        """Ask for many texts at a time; those that are known already cost nothing.

        Args:
            texts: Texts, each with whether special tokens are added.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for special in (True, False):
            sized = ((text, len(text)) for text, with_special in new if with_special == special)
            for part in batches(sized, _CALL_CHARACTERS):
                found = self._client.tokenize(part, add_special_tokens=special, timeout=None)
                self._known.update(
                    ((text, special), ids) for text, ids in zip(part, found, strict=True)
                )
