"""What a server says of its models."""

from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf import json_format

from scoring_client.proto import model_info_pb2

_PATHS: dict[int, Literal["packed", "plain"]] = {
    model_info_pb2.MODEL_PATH_PACKED: "packed",
    model_info_pb2.MODEL_PATH_PLAIN: "plain",
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is served."""

    name: str
    """Name to ask for."""
    ready: bool
    """Whether it answers now."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts. A request beyond a limit is refused by it, never cut."""

    max_request_bytes: int
    """Largest request message, in bytes."""
    max_sequence_tokens: int
    """Most tokens of a prompt with its completion, or of a prompt with max_tokens."""
    max_k: int
    """Largest k."""
    max_candidates: int
    """Largest C of candidates."""
    preferred_tokens_per_call: int
    """Tokens that a call should hold."""
    max_queue_tokens: int
    """Tokens that may wait before calls are refused."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a trainer has to know of a model before it starts."""

    name: str
    """Name of the model."""
    vocab_size: int
    """Rows of the head: token ids are in [0, vocab_size)."""
    tokenizer_size: int
    """Tokens the tokenizer knows; 0 where the server has none."""
    weights_digest: str
    """SHA-256 of the weights as loaded."""
    tokenizer_digest: str
    """SHA-256 of the tokenizer; empty where there is none."""
    weight_version: int
    """Version of the weights."""
    eos_token_ids: tuple[int, ...]
    """Ids that end a sample unless ignore_eos."""
    bos_token_id: int | None
    """Id that the tokenizer puts first, where there is one."""
    generation_config: dict[str, Any]
    """What the model's generation_config sets; used only with ``defaults="model"``."""
    unsupported_generation_settings: tuple[str, ...]
    """Settings in it that the server does not implement: with them ``defaults="model"`` fails."""
    path: Literal["packed", "plain", "unknown"]
    """How the body is run: sequences sharing a forward pass, or one at a time."""
    path_reason: str
    """Why that path was taken."""
    chunk_size: int
    """Absolute positions at whose multiples long sequences are cut; 0 = never."""
    contract_revision: int
    """Revision of the contract that the server implements."""
    limits: Limits
    """What the server accepts."""
    dtype: str
    """Element type of the model's body."""
    head_dtype: str
    """Element type of the product that makes logits."""
    backend: str
    """What computes rows."""
    deterministic: bool
    """Whether equal requests give equal bits whatever else the server does."""
    numerics_id: str
    """Hash of everything that decides bits."""
    server_version: str
    """Version of the server's package."""
    parameter_count: int
    """Parameters of the model."""
    architecture: str
    """Architecture, such as ``LlamaForCausalLM``."""
    residual_dtype: str
    """Element type of the residual stream; empty from servers that do not say."""
    tokenizer_reason: str = ""
    """Why the server has no tokenizer; empty where it has one, or is older than this field."""

    @property
    def start_token_id(self) -> int:
        """What stands before a text that has no context: the BOS token, or else an EOS token.

        Raises:
            ValueError: the model has neither.
        """
        if self.bos_token_id is not None:
            return self.bos_token_id
        if not self.eos_token_ids:
            raise ValueError(f"{self.name} has neither a BOS token nor an EOS token")
        return self.eos_token_ids[0]


def model_info(message: model_info_pb2.GetModelInfoResponse) -> ModelInfo:
    """Return what GetModelInfo answered."""
    limits = message.limits
    return ModelInfo(
        name=message.name,
        vocab_size=message.vocab_size,
        tokenizer_size=message.tokenizer_size,
        weights_digest=message.weights_digest,
        tokenizer_digest=message.tokenizer_digest,
        weight_version=message.weight_version,
        eos_token_ids=tuple(message.eos_token_ids),
        bos_token_id=message.bos_token_id if message.HasField("bos_token_id") else None,
        generation_config=_plain(json_format.MessageToDict(message.generation_config)),
        unsupported_generation_settings=tuple(message.unsupported_generation_settings),
        path=_PATHS.get(message.path, "unknown"),
        path_reason=message.path_reason,
        tokenizer_reason=message.tokenizer_reason,
        chunk_size=message.chunk_size,
        contract_revision=message.contract_revision,
        limits=Limits(
            max_request_bytes=limits.max_request_bytes,
            max_sequence_tokens=limits.max_sequence_tokens,
            max_k=limits.max_k,
            max_candidates=limits.max_candidates,
            preferred_tokens_per_call=limits.preferred_tokens_per_call,
            max_queue_tokens=limits.max_queue_tokens,
        ),
        dtype=message.dtype,
        head_dtype=message.head_dtype,
        backend=message.backend,
        deterministic=message.deterministic,
        numerics_id=message.numerics_id,
        server_version=message.server_version,
        parameter_count=message.parameter_count,
        architecture=message.architecture,
        residual_dtype=message.residual_dtype,
    )


def served_models(message: model_info_pb2.ListModelsResponse) -> tuple[ServedModel, ...]:
    """Return what ListModels answered."""
    return tuple(ServedModel(model.name, model.ready) for model in message.models)


def _plain(value: Any) -> Any:
    """Return a Struct's content with its whole numbers as ints: a Struct knows only doubles."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
