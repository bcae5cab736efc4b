"""Who asks, what they expect, and what answered."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from scoring_client.proto import context_pb2 as pb
from scoring_client.proto import tensor_pb2
from scoring_service import __version__
from scoring_service.errors import Fault, Reason, ServiceError, invalid
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.types import EngineInfo

_MAX_ID = 128
_MAX_TAGS = 16
_MAX_KEY = 64
_MAX_VALUE = 256
_MAX_PRIORITY = 100


def new_request_id() -> str:
    """An id for a call that brought none."""
    return uuid.uuid4().hex


def check_context(context: pb.RequestContext, max_priority: int = _MAX_PRIORITY) -> None:
    """Checks the bounds that the contract states.

    Args:
        context: of a request.
        max_priority: that this server takes, which may be told to take less.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    for name in ("request_id", "cache_salt"):
        if len(getattr(context, name)) > _MAX_ID:
            raise invalid(f"context.{name}", f"is longer than {_MAX_ID} characters")
    if len(context.tags) > _MAX_TAGS:
        raise invalid("context.tags", f"{len(context.tags)} tags; at most {_MAX_TAGS}")
    for key, value in context.tags.items():
        if not key or len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise invalid(
                f"context.tags[{key[:_MAX_KEY]!r}]",
                f"keys have 1 to {_MAX_KEY} characters, values at most {_MAX_VALUE}",
            )
    if not -_MAX_PRIORITY <= context.priority <= max_priority:
        raise invalid(
            "context.priority", f"{context.priority} is not in [-{_MAX_PRIORITY}, {max_priority}]"
        )


def wants_bytes(encoding: tensor_pb2.Encoding) -> bool:
    """Whether arrays go out as bytes.

    Raises:
        ServiceError: INVALID_FIELD for a value of a later contract.
    """
    if encoding not in tensor_pb2.Encoding.values():
        raise invalid("encoding", f"{int(encoding)} is not a known value")
    return encoding == tensor_pb2.ENCODING_BYTES


def accepted_weights(expect: pb.Expect) -> Callable[[EngineInfo], bool] | None:
    """Whether weights are those that a request insists on; None if it takes any.

    Weights may change between the check of the expectations and the computation.
    """
    if not any(map(expect.HasField, ("weight_version", "min_weight_version", "weights_digest"))):
        return None

    def accepts(info: EngineInfo) -> bool:
        return (
            (not expect.HasField("weight_version") or info.weight_version == expect.weight_version)
            and (
                not expect.HasField("min_weight_version")
                or info.weight_version >= expect.min_weight_version
            )
            and (
                not expect.HasField("weights_digest")
                or info.weights_digest == expect.weights_digest
            )
        )

    return accepts


def check_expectations(expect: pb.Expect, view: ModelView) -> None:
    """Checks every expectation but `min_weight_version`, which is waited for.

    Raises:
        ServiceError: the reason that belongs to the expectation which does not hold.
    """
    info = view.info
    tokenizer_digest = "" if view.text is None else view.text.digest
    checks = (
        ("weight_version", info.weight_version, Reason.WEIGHT_VERSION_MISMATCH),
        ("weights_digest", info.weights_digest, Reason.WEIGHTS_DIGEST_MISMATCH),
        ("tokenizer_digest", tokenizer_digest, Reason.TOKENIZER_DIGEST_MISMATCH),
    )
    for name, actual, reason in checks:
        if expect.HasField(name) and getattr(expect, name) != actual:
            wanted = getattr(expect, name)
            has = "none" if actual == "" else actual
            message = f"expect.{name} is {wanted}, but the server has {has}"
            if name == "weight_version" and wanted > info.weight_version:
                message += f"; expect.min_weight_version={wanted} waits for it"
            raise ServiceError(Fault(reason, message))
    if expect.deterministic and not info.deterministic:
        message = "expect.deterministic cannot be promised on this machine with this model"
        raise ServiceError(Fault(Reason.NOT_DETERMINISTIC, message))


def provenance(view: ModelView, request_id: str) -> pb.Provenance:
    """What answers."""
    info = view.info
    return pb.Provenance(
        model=view.name,
        weight_version=info.weight_version,
        weights_digest=info.weights_digest,
        tokenizer_digest="" if view.text is None else view.text.digest,
        dtype=info.dtype,
        head_dtype=info.head_dtype,
        backend=info.backend,
        deterministic=info.deterministic,
        numerics_id=info.numerics_id,
        server_version=__version__,
        request_id=request_id,
        residual_dtype=info.residual_dtype,
    )
