"""The server's tokenizer, for callers that have none of their own."""

from __future__ import annotations

from collections.abc import Iterable

from scoring_client.calls.batches import batches
from scoring_client.client import ScoringClient
from scoring_client.pairs import Pair

_CALL_CHARACTERS = 1 << 18
"""Of the texts of one call: a character is a token at most but for rare ones, an id three bytes."""


class TextIds:
    """Token ids of texts, asked of the server once each and then remembered."""

    def __init__(self, client: ScoringClient) -> None:
        """Ask ``client``, which stays open."""
        self._client = client
        self._known: dict[tuple[str, bool], list[int]] = {("", True): [], ("", False): []}

    def many(self, texts: Iterable[str], *, special_tokens: bool = True) -> list[list[int]]:
        """Return the ids of many texts, in order; those that are new in few calls.

        Args:
            texts: Texts.
            special_tokens: Whether the tokenizer's special tokens are added.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        asked = [(text, special_tokens) for text in texts]
        self.learn(asked)
        return [list(self._known[text]) for text in asked]

    def pairs(self, texts: Iterable[tuple[str, str]], start_token_id: int) -> list[Pair]:
        """Return contexts and continuations as lm-eval's own models tokenise them.

        A context is tokenised alone, then together with its continuation: this has the tokens
        beyond as many as the context has. White space at the end of a context goes to the
        continuation, whose first token holds it. A text without context has no special tokens, and
        ``start_token_id`` stands before it unless it begins with that; so it is with a context of
        nothing but white space, which lm-eval would give the tokenizer's special tokens.

        Args:
            texts: Contexts and continuations.
            start_token_id: Such as ``start_token_id`` of ``model_info``.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        asked = [(context.rstrip(), context + rest) for context, rest in texts]
        wholes = [(whole, bool(context)) for context, whole in asked]
        self.learn([*((context, True) for context, _ in asked), *wholes])
        found: list[Pair] = []
        for (context, _), whole in zip(asked, wholes, strict=True):
            ids = self._known[whole]
            if context:
                alone = self._known[context, True]
                found.append((list(alone), ids[len(alone) :]))
            elif ids[:1] == [start_token_id]:
                found.append((ids[:1], ids[1:]))
            else:
                found.append(([start_token_id], list(ids)))
        return found

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
