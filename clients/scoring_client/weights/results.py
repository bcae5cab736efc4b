"""What a server says of its weights and of an update."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from scoring_client.connection.status import error_from_status
from scoring_client.errors import ScoringError
from scoring_client.proto import weights_pb2

Phase = Literal[
    "unspecified",
    "receiving",
    "staging",
    "draining",
    "applying",
    "committed",
    "failed",
    "aborted",
]
"""How far an update is."""

RunningSamples = Literal["finish", "continue", "abort"]
"""What becomes of samples that are being drawn: they finish on the old weights, go on with the new
ones (``weight_spans`` tell from which token on), or end with an error."""

Staging = Literal["auto", "beside", "in_place"]
"""Where new weights are put while the old ones answer."""


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """A tensor of the model, as the server holds it."""

    name: str
    """Name in the model's ``state_dict``."""
    dtype: str
    """Element type as torch names it, such as ``bfloat16``."""
    shape: tuple[int, ...]
    """Extent of each dimension; () for a scalar."""
    tied_to: str = ""
    """Name of the tensor whose memory it shares; "" where it has its own."""
    checkpoint_names: tuple[str, ...] = field(default=(), compare=False)
    """Names that a checkpoint has instead: of the tensor, or of parts of equal size whose bytes
    make it. ``*`` stands for 0, 1, … of the first dimension, all names by turns for each."""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """An update, under way or ended."""

    update_id: str
    """Name of the update, made by the server."""
    phase: Phase
    """How far it is."""
    version: int
    """Version of the new weights."""
    weights_digest: str
    """Digest of the new weights; "" until it is known."""
    staging: Literal["unspecified", "beside", "in_place"]
    """Where the new weights were put; unspecified until that is decided."""
    bytes_received: int
    """Bytes of tensors received or read so far."""
    bytes_total: int
    """Bytes of all tensors of the model, tied ones counted once."""
    tensors_received: int
    """Tensors received or read in full."""
    tensors_total: int
    """Tensors of the model, tied ones counted once."""
    workers_staged: int
    """Workers that have prepared the new weights."""
    workers_total: int
    """Workers that have to."""
    phase_seconds: dict[str, float]
    """Seconds spent in each phase so far."""
    error: str
    """Why it failed or was aborted; "" otherwise."""
    identity: str
    """Who began it; "" where the server does not ask callers who they are."""
    failure: ScoringError | None = None
    """What the call that began it raised, or would have; None unless it failed or was aborted, and
    from servers that do not tell."""


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """Older weights that calls still run on."""

    version: int
    """Their version."""
    weights_digest: str
    """Their digest."""
    running_parts: int
    """Pieces of calls that are being computed with them."""


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """Which weights answer, and what is under way."""

    model: str
    """Name of the model."""
    version: int
    """Version that calls begin with now."""
    weights_digest: str
    """Its digest."""
    numerics_id: str
    """Its numerics id."""
    update: WeightUpdate | None
    """The update that is under way."""
    last_update: WeightUpdate | None
    """The update that ended last, however it ended."""
    held: tuple[HeldWeights, ...]
    """Older weights that are still in use, oldest first."""
    tensors: tuple[WeightTensor, ...]
    """The model's tensors in ascending order of names, when asked for."""
    updates_committed: int
    """Updates committed since the server began."""
    stream_timeout: float
    """Seconds of silence after which a stream of weights is aborted."""


@dataclass(frozen=True, slots=True)
class WeightProgress:
    """How far an update is, for people who wait."""

    phase: Phase
    """How far."""
    bytes_done: int
    """Bytes of tensors handed to the network, or read by the server."""
    bytes_total: int
    """Bytes of all that is to be; of an iterator of some of the tensors it is more than comes."""


ProgressCallback = Callable[[WeightProgress], None]


def weight_update(status: weights_pb2.WeightUpdateStatus) -> WeightUpdate:
    """Return an update's status."""
    return WeightUpdate(
        update_id=status.update_id,
        phase=phase_name(status.phase),
        version=status.version,
        weights_digest=status.weights_digest,
        staging=cast(Any, _short(weights_pb2.StagingMode, "STAGING_MODE_", status.staging)),
        bytes_received=status.bytes_received,
        bytes_total=status.bytes_total,
        tensors_received=status.tensors_received,
        tensors_total=status.tensors_total,
        workers_staged=status.workers_staged,
        workers_total=status.workers_total,
        phase_seconds={phase_name(time.phase): time.seconds for time in status.phase_times},
        error=status.error,
        identity=status.identity,
        failure=error_from_status(status.failure, request_id="")
        if status.HasField("failure")
        else None,
    )


def weights_info(answer: Any) -> WeightsInfo:
    """Return what GetWeights answered."""
    return WeightsInfo(
        model=answer.model,
        version=answer.version,
        weights_digest=answer.weights_digest,
        numerics_id=answer.numerics_id,
        update=weight_update(answer.update) if answer.HasField("update") else None,
        last_update=weight_update(answer.last_update) if answer.HasField("last_update") else None,
        held=tuple(
            HeldWeights(held.version, held.weights_digest, held.running_parts)
            for held in answer.held
        ),
        tensors=tuple(weight_tensor(tensor) for tensor in answer.tensors),
        updates_committed=answer.updates_committed,
        stream_timeout=answer.stream_timeout_seconds,
    )


def weight_tensor(tensor: weights_pb2.WeightTensor) -> WeightTensor:
    """Return what is said of one tensor."""
    dtype = _short(weights_pb2.WeightDataType, "WEIGHT_DATA_TYPE_", tensor.dtype)
    names = tuple(tensor.checkpoint_names)
    return WeightTensor(tensor.name, dtype, tuple(tensor.shape), tensor.tied_to, names)


def phase_name(phase: int) -> Phase:
    """Return a phase's name; that of one unknown to this client is ``unspecified``."""
    return cast(Phase, _short(weights_pb2.WeightUpdatePhase, "WEIGHT_UPDATE_PHASE_", phase))


def _short(enum: Any, prefix: str, value: int) -> str:
    # A newer server may know more than this client.
    known = enum.Name(value) if value in enum.values() else f"{prefix}UNSPECIFIED"
    return str(known).removeprefix(prefix).lower()
