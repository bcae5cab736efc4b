"""Updates of the weights: messages to options, and status to messages."""

from __future__ import annotations

from typing import Any

from scoring_client.proto import weights_pb2 as pb
from scoring_service.errors import invalid
from scoring_service.pool.weights.receiver import TensorChunk
from scoring_service.pool.weights.status import (
    Phase,
    RunningSamples,
    Staging,
    UpdateOptions,
    UpdateStatus,
)
from scoring_service.rpc.handling.status import to_status
from scoring_service.types import TensorSpec

_DTYPES: dict[int, str] = {
    value: name.removeprefix("WEIGHT_DATA_TYPE_").lower()
    for name, value in pb.WeightDataType.items()
    if value
}
_DTYPE_VALUES = {name: value for value, name in _DTYPES.items()}

_SAMPLES: dict[int, RunningSamples] = {
    pb.RUNNING_SAMPLES_UNSPECIFIED: RunningSamples.FINISH,
    pb.RUNNING_SAMPLES_FINISH: RunningSamples.FINISH,
    pb.RUNNING_SAMPLES_CONTINUE: RunningSamples.CONTINUE,
    pb.RUNNING_SAMPLES_ABORT: RunningSamples.ABORT,
}
_STAGING: dict[int, Staging] = {
    pb.STAGING_MODE_UNSPECIFIED: Staging.AUTO,
    pb.STAGING_MODE_AUTO: Staging.AUTO,
    pb.STAGING_MODE_BESIDE: Staging.BESIDE,
    pb.STAGING_MODE_IN_PLACE: Staging.IN_PLACE,
}
_STAGED = {
    None: pb.STAGING_MODE_UNSPECIFIED,
    Staging.BESIDE: pb.STAGING_MODE_BESIDE,
    Staging.IN_PLACE: pb.STAGING_MODE_IN_PLACE,
}

_DIGEST_CHARACTERS = 64


def parse_options(options: pb.WeightUpdateOptions, path: str) -> UpdateOptions:
    """What an update is to do.

    Args:
        options: of the request.
        path: of the field.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    if not options.HasField("version"):
        raise invalid(f"{path}.version", "is required")
    samples = _SAMPLES.get(options.running_samples)
    if samples is None:
        raise invalid(f"{path}.running_samples", f"{int(options.running_samples)} is not known")
    staging = _STAGING.get(options.staging)
    if staging is None:
        raise invalid(f"{path}.staging", f"{int(options.staging)} is not known")
    return UpdateOptions(
        version=options.version,
        base_version=options.base_version if options.HasField("base_version") else None,
        allow_older_version=options.allow_older_version,
        partial=options.partial,
        convert_dtypes=options.convert_dtypes,
        digest=parse_digest(options.weights_digest, f"{path}.weights_digest"),
        running_samples=samples,
        staging=staging,
    )


def parse_digest(digest: str, path: str) -> str:
    """A digest in lower case, or nothing.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    found = digest.lower()
    if found and (len(found) != _DIGEST_CHARACTERS or set(found) - set("0123456789abcdef")):
        raise invalid(path, f"is not {_DIGEST_CHARACTERS} hexadecimal digits")
    return found


def parse_chunk(chunk: pb.WeightChunk, data: memoryview, path: str) -> TensorChunk:
    """A run of bytes.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    dtype = _DTYPES.get(chunk.dtype)
    if dtype is None:
        raise invalid(f"{path}.dtype", f"{int(chunk.dtype)} is not known")
    return TensorChunk(chunk.name, dtype, tuple(chunk.shape), chunk.offset, data)


def status_message(status: UpdateStatus) -> pb.WeightUpdateStatus:
    """How far an update is."""
    message = pb.WeightUpdateStatus(
        update_id=status.update_id,
        phase=_phase(status.phase),
        version=status.version,
        bytes_received=status.bytes_received,
        bytes_total=status.bytes_total,
        tensors_received=status.tensors_received,
        tensors_total=status.tensors_total,
        workers_staged=status.workers_staged,
        workers_total=status.workers_total,
        staging=_STAGED[status.staging],
        weights_digest=status.digest,
        error=status.error,
        identity=status.identity,
    )
    if status.fault is not None:
        message.failure.CopyFrom(to_status(status.fault))
    for phase, seconds in status.phase_seconds.items():
        message.phase_times.add(phase=_phase(phase), seconds=seconds)
    return message


def tensor_message(spec: TensorSpec) -> pb.WeightTensor:
    """A tensor of the model."""
    return pb.WeightTensor(
        name=spec.name,
        dtype=_DTYPE_VALUES.get(spec.dtype, 0),  # type: ignore[arg-type]
        shape=spec.shape,
        tied_to=spec.tied_to,
        checkpoint_names=spec.checkpoint_names,
    )


def _phase(phase: Phase) -> Any:
    return pb.WeightUpdatePhase.Value(f"WEIGHT_UPDATE_PHASE_{phase.name}")
