"""The server's tokenizer, for callers that have none of their own."""

from __future__ import annotations

from collections.abc import Iterable

from scoring_client.batches import batches
from scoring_client.client import ScoringClient
from scoring_client.errors import ProtocolError
from scoring_client.inputs import Completion, PromptGroup


class TextIds:
    """Token ids of texts, asked of the server once each and then remembered."""

    def __init__(self, client: ScoringClient) -> None:
        """Ask ``client``, which stays open."""
        self._client, self._info = client, client.model_info()
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
        # A prompt's ids come back with the scores of what follows it: one token, any token.
        asked = [Completion([self._info.eos_token_ids[0]])]
        # Characters, for want of tokens: rarely fewer.
        sized = ((text, len(text[0])) for text in new)
        for part in batches(sized, self._info.limits.preferred_tokens_per_call):
            groups = [PromptGroup(t, asked, add_special_tokens=special) for t, special in part]
            for text, scores in zip(part, self._client.score(groups), strict=True):
                ids = scores[0].prompt_token_ids
                if ids is None:
                    raise ProtocolError("a prompt of text came back without its token ids")
                self._known[text] = ids.tolist()
