"""What computed an answer, what it cost, and how far it is."""

from dataclasses import dataclass, fields

from scoring_client.proto import context_pb2


@dataclass(frozen=True, slots=True)
class Provenance:
    """What computed the numbers."""

    model: str
    """Name of the model that answered."""
    weight_version: int
    """Version of the weights, a number given by whoever installed them."""
    weights_digest: str
    """SHA-256 of the weights as loaded."""
    tokenizer_digest: str
    """SHA-256 of the tokenizer; empty where there is none."""
    dtype: str
    """Element type of the model's body."""
    head_dtype: str
    """Element type of the product that makes logits."""
    backend: str
    """What computed rows."""
    deterministic: bool
    """Whether equal requests give equal bits whatever else the server does."""
    numerics_id: str
    """Hash of everything that decides bits."""
    server_version: str
    """Version of the server's package."""
    request_id: str
    """Id of the request."""
    residual_dtype: str
    """Element type of the residual stream; empty from servers that do not say."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost. After a resend: the sum over the attempts that ended well."""

    prompt_tokens: int = 0
    """Prompt tokens, each group's prompt counted once."""
    completion_tokens: int = 0
    """Completion tokens of the scored sequences."""
    cached_tokens: int = 0
    """Tokens whose keys and values came from a cache."""
    computed_tokens: int = 0
    """Token positions that went through the model's body."""
    sampled_tokens: int = 0
    """Tokens drawn."""
    head_rows: int = 0
    """Rows that went through the head."""
    queue_seconds: float = 0.0
    """Seconds from admission to the first computation."""
    compute_seconds: float = 0.0
    """Seconds of computation."""
    reply_bytes: int = 0
    """Bytes of the messages sent before the summary."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is."""

    items_done: int
    """Completions or samples that arrived whole, or failed."""
    items_total: int
    """Completions or samples of the call."""
    tokens_ahead: int
    """Tokens that the server computes before this call's own; 0 once it runs, and while it waits
    for a weight version."""


def provenance(message: context_pb2.Provenance) -> Provenance:
    """Return what a message of the answer says computed it."""
    return Provenance(**{f.name: getattr(message, f.name) for f in fields(Provenance)})


def usage(message: context_pb2.Usage) -> Usage:
    """Return what a summary says the call cost."""
    return Usage(**{f.name: getattr(message, f.name) for f in fields(Usage)})
