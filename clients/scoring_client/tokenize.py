"""The Tokenize RPC's messages."""

from __future__ import annotations

from collections.abc import Iterable

from scoring_client.proto import tokenize_pb2


def tokenize_request(
    model: str, texts: Iterable[str], add_special_tokens: bool
) -> tokenize_pb2.TokenizeRequest:
    """Return a request for the ids of texts."""
    if isinstance(texts, str):
        raise TypeError("texts: expected several texts, got one: put it into a list")
    return tokenize_pb2.TokenizeRequest(
        model=model, texts=texts, add_special_tokens=add_special_tokens
    )


def token_ids(response: tokenize_pb2.TokenizeResponse) -> list[list[int]]:
    """Return the ids of each text."""
    return [list(text.token_ids) for text in response.texts]
