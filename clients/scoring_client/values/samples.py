"""What sampling returns. Shapes: T tokens, K top log-probs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, Literal, overload

from scoring_client.errors import ScoringError
from scoring_client.values.arrays import Float32Array, Int32Array
from scoring_client.values.processing import ResolvedProcessing
from scoring_client.values.provenance import Provenance, Usage

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class WeightSpan:
    """Tokens drawn under one version of the weights."""

    first_token: int
    """First token of the span, sample-relative."""
    weight_version: int
    """Version from there on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One sample: whole, or (from ``sample_slices``) a slice of its tokens.

    The arrays are the caller's own: writable, shared with nothing. A failed item has ``error`` set
    and T = 0.
    """

    ROW_FIELDS: ClassVar[tuple[str, ...]] = (
        "token_ids",
        "logprobs",
        "processed_logprobs",
        "top_token_ids",
        "top_logprobs",
    )
    """Fields with an entry for each token."""

    prompt_index: int
    """Index of the prompt in the call."""
    sample_index: int
    """Index of the sample: first_sample_index + 0 … n - 1."""
    start: int
    """First token of this slice, sample-relative; 0 in a whole sample."""
    prompt_length: int
    """Tokens of the prompt; 0 for a failed item whose prompt was text."""
    prompt_token_ids: Int32Array | None
    """[prompt_length], special tokens included; in the last slice. None for a failed item whose
    prompt was text."""
    token_ids: Int32Array
    """[T]: every token drawn, the end-of-sequence token and what overshot a stop text included."""
    logprobs: Float32Array
    """[T], nats: of the drawn tokens, after temperature, before truncation and bans."""
    processed_logprobs: Float32Array
    """[T], nats: of the drawn tokens in the distribution they were drawn from. 0 when greedy."""
    top_token_ids: Int32Array | None
    """[T, K], with ``top_logprobs``."""
    top_logprobs: Float32Array | None
    """[T, K], nats, with ``top_logprobs``."""
    text: str | None
    """Without special tokens and cut before a stop text. With ``return_text``; in a slice, the text
    completed since the slice before."""
    finish_reason: FinishReason | None
    """Why it ended. None in a slice that is not the last, and for a failed item."""
    matched_stop: str | int | None
    """The stop text or the token id that ended it; None unless finish_reason is "stop"."""
    seed: int | None
    """The seed that was used, given or drawn: with sample_index it draws the same sample again.
    None only for an item that failed before the server said."""
    weight_spans: tuple[WeightSpan, ...]
    """Versions of the weights behind the tokens; in the last slice."""
    last: bool
    """Whether nothing of this sample follows."""
    processing: ResolvedProcessing | None
    """What was applied, with who set it. None only for a failed item."""
    provenance: Provenance | None = field(repr=False)
    """What computed it. None only for an item that failed before the server said."""
    error: ScoringError | None = None
    """Why the item failed, with ``on_error="return"``."""

    @property
    def weight_version(self) -> int | None:
        """Version of the weights behind its last token; None before the last slice, or if failed.

        ``weight_spans`` tells where it changed before.
        """
        return self.weight_spans[-1].weight_version if self.weight_spans else None


@dataclass(frozen=True, slots=True, eq=False)
class SampleResults(Sequence[tuple[Sample, ...]]):
    """Samples in the order of the request: ``results[p][s]`` is the s-th sample of prompt p."""

    prompts: tuple[tuple[Sample, ...], ...]
    """A tuple of samples for each prompt, by sample index."""
    provenance: Provenance | None
    """What computed the last of it; each sample has its own. None when every item failed."""
    processing: tuple[ResolvedProcessing, ...]
    """The distinct processings that were applied; each sample has its own."""
    usage: Usage
    """What the call cost."""
    provenances: tuple[Provenance, ...] = ()
    """The distinct ones of the call, in the order in which they came: more than one when servers
    that shared it differ, or when weights changed meanwhile."""

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, index: int) -> tuple[Sample, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Sample, ...], ...]: ...
    def __getitem__(
        self, index: int | slice
    ) -> tuple[Sample, ...] | tuple[tuple[Sample, ...], ...]:
        return self.prompts[index]

    def __repr__(self) -> str:
        # As of ScoreResults.
        parts = self.samples()
        failed = sum(part.error is not None for part in parts)
        tokens = sum(len(part.token_ids) for part in parts)
        return (
            f"<{type(self).__name__}: {len(self)} prompts, {len(parts)} samples, "
            f"{tokens} tokens, {failed} failed>"
        )

    def samples(self) -> tuple[Sample, ...]:
        """Return every sample, prompt by prompt."""
        return tuple(chain.from_iterable(self.prompts))
