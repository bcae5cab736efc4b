"""What travels between the pool and a worker: commands one way, events the other."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.engine.weight_memory import Layout
from scoring_service.errors import Fault
from scoring_service.types import (
    Call,
    EngineInfo,
    Float32Array,
    Int32Array,
    RowBlock,
    Usage,
)

LOADED = 0
"""The number of the weights that a worker loads at its start; updates have larger ones."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Compute this call."""

    call: Call
    credit: int | None = None
    """Bytes of results that may be under way; None = what the engine gives every call."""
    weights: int = LOADED
    """Which weights compute it: those that were loaded, or an update that was staged."""
    alone: bool = False
    """No other call joins its steps."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget this call; events already on their way may still arrive."""

    call_id: int


@dataclass(frozen=True, slots=True)
class Credit:
    """The reader took this many bytes of the call's results."""

    call_id: int
    size: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the worker."""


@dataclass(frozen=True, slots=True)
class StageWeights:
    """Read the weights of an update while they are written, hash them, and prepare them.

    Answered by WeightsStaged or WeightsFailed; calls go on meanwhile.
    """

    weights: int
    path: str
    """File of the memory; see `weight_memory`."""
    layout: Layout
    version: int
    beside: bool
    """Whether to prepare them beside others, if memory allows; else they are hashed alone."""


@dataclass(frozen=True, slots=True)
class ApplyWeights:
    """Forget all other weights, then prepare these: staged, but not beside others. No call runs.

    Answered by WeightsStaged, or the worker ends.
    """

    weights: int


@dataclass(frozen=True, slots=True)
class FillWeights:
    """Write tensors of weights that this worker has into an update's memory.

    Answered by WeightsFilled or WeightsFailed.
    """

    weights: int
    path: str
    layout: Layout
    names: tuple[str, ...]
    source: int
    """Which weights they are taken from."""


@dataclass(frozen=True, slots=True)
class DropWeights:
    """Nothing will ask for these weights again. Answered by WeightsDropped."""

    weights: int


@dataclass(frozen=True, slots=True)
class FlushCache:
    """Forget prompts that no call holds. Answered by CacheFlushed."""


Command = (
    Submit
    | Cancel
    | Credit
    | StageWeights
    | ApplyWeights
    | FillWeights
    | DropWeights
    | FlushCache
    | Shutdown
)


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """What the worker is doing while it cannot answer yet."""

    stage: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; trying again would not help."""

    message: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The call's first computation begins."""

    call_id: int


@dataclass(frozen=True, slots=True)
class ScoreSlice:
    """Consecutive rows of one completion."""

    call_id: int
    group_index: int
    completion_index: int
    processing_index: int
    prompt_length: int
    start: int
    block: RowBlock
    last: bool
    weight_version: int
    size: int
    """Bytes of the arrays."""


@dataclass(frozen=True, slots=True)
class SampleSlice:
    """Consecutive tokens of one sample."""

    call_id: int
    prompt_index: int
    sample_index: int
    processing_index: int
    prompt_length: int
    seed: int
    start: int
    last: bool
    token_ids: Int32Array
    logprobs: Float32Array
    processed_logprobs: Float32Array
    top_token_ids: Int32Array | None
    top_logprobs: Float32Array | None
    text: str
    finish_reason: str | None
    """"stop" or "length", in the last slice."""
    matched_stop: str | int | None
    weight_version: int
    size: int
    """Bytes of the arrays."""


@dataclass(frozen=True, slots=True)
class ItemFailed:
    """A completion, a sample, or everything under one group or prompt ended with a fault."""

    call_id: int
    index: int
    """Group or prompt."""
    part: int | None
    """Completion or sample; None = all of them."""
    fault: Fault


@dataclass(frozen=True, slots=True)
class CallFinished:
    """Every item of the call was answered or failed."""

    call_id: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The call ended; nothing more comes of it."""

    call_id: int
    fault: Fault
    shared_step: bool = False
    """Whether other calls were in the step that failed, for a bug or for want of memory: then it
    need not be this call's fault."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker did since it started, and how it stands."""

    steps: int = 0
    step_seconds: float = 0.0
    """Seconds in steps."""
    rows_per_step: tuple[int, ...] = ()
    """Steps by the number of rows that they answered, in `ROWS_BUCKETS` and beyond them."""
    rows: int = 0
    """Rows answered, those of sampled tokens among them."""
    pages: int = 0
    free_pages: int = 0
    looked_up_tokens: int = 0
    """Prompt tokens looked for in the prefix cache."""
    hit_tokens: int = 0
    """Prompt tokens that were found there."""


ROWS_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096)
"""Upper bounds of `rows_per_step`."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process is alive; a thread of its own sends one every second."""

    in_step_seconds: float
    """For how long the current step runs; 0 between steps."""
    stats: WorkerStats


@dataclass(frozen=True, slots=True)
class BugReport:
    """A call or an update failed by a bug of the engine, or of the model's own code, and will be
    told so.

    An event rather than a line of the worker's own: the process that serves gRPC writes the log.
    """

    request_id: str
    """Of the call; empty where it was an update."""
    traceback: str
    """Without variables."""


@dataclass(frozen=True, slots=True)
class WeightsStaged:
    """An update's weights were read to their end."""

    weights: int
    digest: str
    numerics_id: str
    usable: bool
    """Whether calls may ask for them; False = they were only hashed."""


@dataclass(frozen=True, slots=True)
class WeightsFailed:
    """An update's weights cannot be staged or filled here."""

    weights: int
    message: str


@dataclass(frozen=True, slots=True)
class WeightsFilled:
    """Everything that FillWeights asked for is written."""

    weights: int


@dataclass(frozen=True, slots=True)
class WeightsDropped:
    """This worker reads the weights' memory no more."""

    weights: int


@dataclass(frozen=True, slots=True)
class CacheFlushed:
    """The prefix cache holds only what calls use."""

    pages: int
    """Pages that were freed."""


@dataclass(frozen=True, slots=True)
class WeightsChanged:
    """What follows of the call comes from other weights. Made by the pool, not by workers."""

    info: EngineInfo


WeightEvent = WeightsStaged | WeightsFailed | WeightsFilled | WeightsDropped
CallEvent = CallStarted | ScoreSlice | SampleSlice | ItemFailed | CallFinished | CallFailed
StreamEvent = CallEvent | WeightsChanged
"""What the reader of a call gets."""
Event = (
    LoadProgress
    | Ready
    | LoadFailed
    | Heartbeat
    | BugReport
    | WeightEvent
    | CacheFlushed
    | CallEvent
)
