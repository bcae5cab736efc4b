"""What Tokenize says."""

from __future__ import annotations

from scoring_client.proto import tokenize_pb2 as pb
from scoring_service.errors import invalid
from scoring_service.rpc.parsing.items import check_items
from scoring_service.rpc.parsing.model_view import ModelView


def tokenize(request: pb.TokenizeRequest, view: ModelView) -> pb.TokenizeResponse:
    """Token ids of a request's texts.

    Raises:
        ServiceError: INVALID_FIELD, TOKENIZER_UNAVAILABLE.
    """
    if not request.texts:
        raise invalid("texts", "is empty")
    check_items(len(request.texts), "texts", "texts")
    codec = view.codec("texts")
    special = not request.HasField("add_special_tokens") or request.add_special_tokens
    ids = (codec.encode(text, add_special_tokens=special) for text in request.texts)
    return pb.TokenizeResponse(
        texts=[pb.TokenizedText(token_ids=found) for found in ids], tokenizer_digest=codec.digest
    )
