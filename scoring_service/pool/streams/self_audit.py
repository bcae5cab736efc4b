"""Scored calls computed a second time, alone, and compared: does the batch change a number?"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import numpy as np

from scoring_service.engine.events import ScoreSlice, StreamEvent
from scoring_service.types import (
    Call,
    CompletionTask,
    EngineInfo,
    Float32Array,
    GroupTask,
    RowWants,
    ScoreCall,
)

CLIENT = "self-audit"
"""Whose share of the queue audits take."""

PRIORITY = -1000
"""Of audits, and of nothing else: below every priority that a caller can give."""


_SAME_BITS = 1e-3
"""Nats, where company changes no bit and any difference is a fault."""

_FLOAT32 = 1e-2
"""Where it changes the order of float32 sums."""

_HALF_PRECISION = 1.0
"""And where what is added up is rounded to eight or eleven bits in each layer: unlikely tokens
differ by some tenths in other company. What a fault makes of a row has nothing to do with it."""


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """How often, and what is too much."""

    rate: float = 0.0
    """Share of scored calls of which one completion is computed again."""
    threshold: float | None = None
    """Difference of a log-prob, in nats, above which it is an error; None = as the model is."""

    def threshold_for(self, info: EngineInfo) -> float:
        """In nats, for a model as it is computed: no more than a fault should make."""
        if self.threshold is not None:
            return self.threshold
        if info.deterministic:
            return _SAME_BITS
        if {info.dtype, info.head_dtype} == {"float32"}:
            return _FLOAT32
        return _HALF_PRECISION


@dataclass(slots=True)
class Watch:
    """One completion of a call, and what was answered of it."""

    call: ScoreCall
    group: GroupTask
    completion: CompletionTask
    worker: int | None = None
    """Index of the worker that computed it."""
    weights_digest: str | None = None
    """Digest of the weights that it was computed with."""
    _pieces: list[Float32Array] = field(default_factory=list)
    _ended: bool = False

    def note(self, event: StreamEvent, worker: int, weights_digest: str | None) -> None:
        """Takes account of an event of the call, and of what computed it."""
        if (
            isinstance(event, ScoreSlice)
            and event.group_index == self.group.index
            and event.completion_index == self.completion.index
        ):
            self.worker = worker
            self.weights_digest = weights_digest
            self._pieces.append(event.block.logprobs)
            self._ended = event.last

    @property
    def logprobs(self) -> Float32Array | None:
        """float32 [T] of the wanted rows; None when it was not answered in full."""
        return np.concatenate(self._pieces) if self._ended else None

    def again(self, call_id: int) -> ScoreCall:
        """The completion alone: with no other in its call, and without the prefix cache."""
        group = replace(self.group, completions=(replace(self.completion, candidate_ids=None),))
        return ScoreCall(
            call_id=call_id,
            groups=(group,),
            wants=RowWants(),
            next_token=self.call.next_token,
            priority=PRIORITY,
            request_id=self.call.request_id,
            uncached=True,
        )


def choose(call: Call, rate: float, rng: random.Random) -> Watch | None:
    """A completion to compute again, for a share `rate` of the scored calls."""
    if not isinstance(call, ScoreCall) or rng.random() >= rate:
        return None
    groups = [group for group in call.groups if group.completions]
    if not groups:
        return None
    group = rng.choice(groups)
    return Watch(call, group, rng.choice(group.completions))


def widest(left: Float32Array, right: Float32Array) -> dict[str, float]:
    """The row with the largest difference, and both of its numbers; empty if the lengths differ.

    Args:
        left: float32 [T], as it was answered.
        right: float32 [T], as it was computed again.
    """
    if left.shape != right.shape or not len(left):
        return {}
    with np.errstate(invalid="ignore"):
        differences = np.abs(left.astype(np.float64) - right)
    # Equal infinities and two NaN are no difference, one NaN is the largest.
    differences[(left == right) | (np.isnan(left) & np.isnan(right))] = 0.0
    row = int(np.nan_to_num(differences, nan=math.inf).argmax())
    return {"row": row, "answered": float(left[row]), "again": float(right[row])}


def largest_difference(left: Float32Array, right: Float32Array) -> float:
    """In nats; infinite where one has a number and the other none, or the lengths differ.

    Args:
        left: float32 [T].
        right: float32 [T].
    """
    if left.shape != right.shape:
        return math.inf
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        differences = np.abs(left[~same].astype(np.float64) - right[~same])
    largest = float(differences.max())
    return math.inf if math.isnan(largest) else largest
