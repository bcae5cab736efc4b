"""What GetModelInfo says."""

from __future__ import annotations

from scoring_client.proto import model_info_pb2 as pb
from scoring_service import __version__
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.rpc.parsing.processing import unsupported_settings

CONTRACT_REVISION = 4
"""Grows with every addition to the contract."""


def model_info(view: ModelView) -> pb.GetModelInfoResponse:
    """Everything a trainer asks before it starts."""
    info, limits = view.info, view.limits
    response = pb.GetModelInfoResponse(
        name=view.name,
        vocab_size=info.vocab_size,
        tokenizer_size=0 if view.text is None else view.text.size,
        weights_digest=info.weights_digest,
        tokenizer_digest="" if view.text is None else view.text.digest,
        weight_version=info.weight_version,
        eos_token_ids=info.eos_token_ids,
        bos_token_id=info.bos_token_id,
        unsupported_generation_settings=unsupported_settings(info.generation_config),
        path=pb.MODEL_PATH_PACKED if info.packed else pb.MODEL_PATH_PLAIN,
        path_reason=info.path_reason,
        chunk_size=info.chunk_size,
        contract_revision=CONTRACT_REVISION,
        limits=pb.Limits(
            max_request_bytes=limits.max_request_bytes,
            max_sequence_tokens=limits.max_sequence_tokens,
            max_k=limits.max_k,
            max_candidates=limits.max_candidates,
            preferred_tokens_per_call=limits.preferred_tokens_per_call,
            max_queue_tokens=limits.max_queue_tokens,
        ),
        dtype=info.dtype,
        head_dtype=info.head_dtype,
        backend=info.backend,
        deterministic=info.deterministic,
        numerics_id=info.numerics_id,
        server_version=__version__,
        parameter_count=info.parameter_count,
        architecture=info.architecture,
        tokenizer_reason=info.tokenizer_reason,
        residual_dtype=info.residual_dtype,
    )
    response.generation_config.update(info.generation_config)
    return response
