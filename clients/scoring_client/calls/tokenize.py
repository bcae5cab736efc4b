"""The Tokenize RPC's messages."""

from __future__ import annotations

from collections.abc import Iterable

from scoring_client.proto import tokenize_pb2
from scoring_client.values.messages import set_fields
from scoring_client.values.tokens import as_sequence


def tokenize_request(
    model: str, texts: Iterable[str], add_special_tokens: bool
) -> tokenize_pb2.TokenizeRequest:
    """Return a request for the ids of texts.

    Raises:
        InvalidRequestError: something is no text, or is not in a list.
    """
    request = tokenize_pb2.TokenizeRequest()
    set_fields(
        request,
        "",
        model=model,
        texts=as_sequence(texts, "texts", "texts"),
        add_special_tokens=add_special_tokens,
    )
    return request


def token_ids(response: tokenize_pb2.TokenizeResponse) -> list[list[int]]:
    """Return the ids of each text."""
    return [list(text.token_ids) for text in response.texts]
