"""What scoring returns. Shapes: T rows of a completion, K top-K, C candidates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, Generic, TypeVar, overload

from scoring_client.errors import ScoringError
from scoring_client.values.arrays import Float32Array, Int32Array
from scoring_client.values.processing import ResolvedProcessing
from scoring_client.values.provenance import Provenance, Usage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NextToken:
    """The row after a completion's last token. Nothing was realised there, so it stands apart."""

    row: int
    """Its index: the number of the completion's tokens."""
    entropy: float | None
    """Entropy (nats) of softmax(x), when asked."""
    logsumexp: float | None
    """log(sum(exp(x))), when asked."""
    log_kept_mass: float | None
    """Log of the support's probability before truncation, when asked."""
    candidate_logprobs: Float32Array | None
    """[C], when candidates were given."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopKNextToken(NextToken):
    """The row after a completion's last token, with its most likely tokens."""

    top_token_ids: Int32Array
    """[K], most likely first."""
    top_logprobs: Float32Array
    """[K], nats, over the full vocabulary, after temperature, never truncated."""
    log_tail_mass: float
    """Log of the probability outside the list."""
    support_size: int
    """Number of tokens that truncation keeps."""
    top_tokens: tuple[str, ...] | None
    """K strings, when asked."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompletionScores:
    """One completion's scores: whole, or (from ``score_slices``) a slice of its rows.

    All arrays speak of the same T rows, those in ``rows``: entry j of each belongs to the
    completion's token ``rows[j]``. They are the caller's own: writable, shared with nothing.
    A failed item has ``error`` set and T = 0.
    """

    ROW_FIELDS: ClassVar[tuple[str, ...]] = (
        "rows",
        "token_ids",
        "logprobs",
        "tokens",
        "processed_logprobs",
        "log_kept_masses",
        "entropies",
        "ranks",
        "logsumexps",
        "candidate_logprobs",
    )
    """Fields with an entry for each row."""

    group_index: int
    """Index of the group in the call."""
    completion_index: int
    """Index of the completion in its group."""
    prompt_length: int
    """Tokens of the prompt: the completion's token i stands at position prompt_length + i. 0 for a
    failed item whose prompt was text."""
    prompt_token_ids: Int32Array | None
    """[prompt_length], special tokens included; in the last slice. None for a failed item whose
    prompt was text."""
    rows: Int32Array
    """[T], completion-relative, ascending; with spans or a mask only the wanted ones."""
    token_ids: Int32Array
    """[T], the realised tokens."""
    logprobs: Float32Array
    """[T], nats: log-softmax over the full vocabulary of logits / temperature at the realised
    tokens. The temperature is applied, truncation is not."""
    tokens: tuple[str, ...] | None
    """T strings, when asked."""
    processed_logprobs: Float32Array | None
    """[T], nats: after truncation; -inf outside the support. When asked."""
    log_kept_masses: Float32Array | None
    """[T]: log of the support's probability before truncation. When asked."""
    entropies: Float32Array | None
    """[T], nats, untruncated. When asked."""
    ranks: Int32Array | None
    """[T], from 1. When asked."""
    logsumexps: Float32Array | None
    """[T]. When asked."""
    candidate_logprobs: Float32Array | None
    """[T, C], NaN where -1 stood. When candidates were given."""
    next_token: NextToken | None
    """The row after the last token, with ``next_token=True``; in the last slice."""
    last: bool
    """Whether nothing of this completion follows."""
    weight_version: int | None
    """Version of the weights behind every row. None only for a failed item: 0 is a version too."""
    processing: ResolvedProcessing | None
    """What was applied, with who set it. None only for a failed item."""
    provenance: Provenance | None = field(repr=False)
    """What computed it. None only for an item that failed before the server said."""
    error: ScoringError | None = None
    """Why the item failed, with ``on_error="return"``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompletionTopK(CompletionScores):
    """One completion's scores with the K most likely tokens of every row."""

    ROW_FIELDS: ClassVar[tuple[str, ...]] = (
        *CompletionScores.ROW_FIELDS,
        "top_token_ids",
        "top_logprobs",
        "log_tail_masses",
        "support_sizes",
        "top_tokens",
    )

    top_token_ids: Int32Array
    """[T, K], most likely first, equal ones by lower id."""
    top_logprobs: Float32Array
    """[T, K], nats, over the full vocabulary, after temperature, never truncated."""
    log_tail_masses: Float32Array
    """[T]: log of the probability outside the list; -inf when nothing is outside."""
    support_sizes: Int32Array
    """[T]: number of tokens that truncation keeps."""
    top_tokens: tuple[tuple[str, ...], ...] | None
    """T times K strings, when asked."""
    next_token: TopKNextToken | None


ScoresT = TypeVar("ScoresT", bound=CompletionScores)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResults(Sequence[tuple[ScoresT, ...]], Generic[ScoresT]):
    """Scores in the order of the request: ``results[g][c]`` is completion c of group g."""

    groups: tuple[tuple[ScoresT, ...], ...]
    """A tuple of completions for each group."""
    provenance: Provenance | None
    """What computed the last of it; each completion has its own. None when every item failed."""
    processing: tuple[ResolvedProcessing, ...]
    """The distinct processings that were applied; each completion has its own."""
    usage: Usage
    """What the call cost."""
    provenances: tuple[Provenance, ...] = ()
    """The distinct ones of the call, in the order in which they came: more than one when servers
    that shared it differ, or when weights changed meanwhile."""

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> tuple[ScoresT, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[ScoresT, ...], ...]: ...
    def __getitem__(
        self, index: int | slice
    ) -> tuple[ScoresT, ...] | tuple[tuple[ScoresT, ...], ...]:
        return self.groups[index]

    def __repr__(self) -> str:
        # A call may hold thousands of arrays: whoever prints its results wants none of them.
        parts = self.completions()
        failed = sum(part.error is not None for part in parts)
        rows = sum(len(part.logprobs) for part in parts)
        return (
            f"<{type(self).__name__}: {len(self)} groups, {len(parts)} completions, "
            f"{rows} rows, {failed} failed>"
        )

    def completions(self) -> tuple[ScoresT, ...]:
        """Return every completion, group by group."""
        return tuple(chain.from_iterable(self.groups))
