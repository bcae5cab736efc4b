"""Plain data that every room shares: no protobuf, no torch.

Shapes use one legend: T rows, V vocabulary, K top-K, C candidates. Token ids are int32, log-probs
float32 in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring_service.peak_memory import StepLimits

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]

PAGE_TOKENS = 16
"""Tokens of a page of keys and values."""


class ProcessingSource(StrEnum):
    """Who set a resolved value."""

    NEUTRAL = "neutral"
    REQUEST = "request"
    GROUP = "group"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Processing:
    """How logits become the distribution one samples from, resolved: nothing is unset."""

    temperature: float = 1.0
    """Divides the logits, in fp32. 0 = greedy (sampling only)."""
    top_k: int = 0
    """Tokens kept, all ties of the last one included; 0 = off."""
    top_p: float = 1.0
    """Mass kept of what top-k left; 1 = off."""
    min_p: float = 0.0
    """Least probability kept, relative to the most likely token; 0 = off."""
    keep_realised: bool = False
    """The realised token always belongs to the support."""

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, and nothing is drawn."""
        return self.temperature == 0.0

    @property
    def truncates(self) -> bool:
        """Whether any token can fall out of the support."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class ResolvedProcessing:
    """A processing with the source of each of its fields."""

    processing: Processing
    sources: tuple[tuple[str, ProcessingSource], ...]
    """(field name, source) for every field of `processing`."""


@dataclass(frozen=True, slots=True)
class RowWants:
    """What is wanted of each row beside the realised token's log-prob."""

    processed_logprobs: bool = False
    entropy: bool = False
    rank: bool = False
    logsumexp: bool = False
    log_kept_mass: bool = False
    support_size: bool = False
    top_k: int = 0
    """Tokens listed for each row; 0 = no list."""
    token_id_limit: int | None = None
    """Only ids below this are ranked and listed; None = all."""

    @classmethod
    def everything(cls, top_k: int, token_id_limit: int | None = None) -> RowWants:
        """Each number that a row has, and a list.

        Args:
            top_k: tokens listed.
            token_id_limit: ids that are ranked and listed.
        """
        numbers = {field.name: True for field in fields(cls) if field.default is False}
        return cls(top_k=top_k, token_id_limit=token_id_limit, **numbers)

    def row_bytes(self, candidates: int) -> int:
        """Bytes of one row's numbers, four each: what is asked for, and the realised log-prob.

        A list brings an id and a log-prob a token, and the row's tail mass.

        Args:
            candidates: tokens whose log-probs are asked for beside.
        """
        # Written out: it is asked for each completion of a call, and for each unit of a step.
        scalars = (
            1
            + self.processed_logprobs
            + self.entropy
            + self.rank
            + self.logsumexp
            + self.log_kept_mass
            + self.support_size
        )
        listed = 1 + 2 * self.top_k if self.top_k else 0
        return 4 * (scalars + listed + candidates)


@dataclass(frozen=True, slots=True)
class CompletionTask:
    """One completion to score."""

    index: int
    token_ids: Int32Array
    spans: tuple[tuple[int, int], ...]
    """(start, length) of the wanted rows, ascending; the next_token row is not among them."""
    candidate_ids: Int32Array | None = None
    """int32 [n, C] or [1, C]; -1 = not asked."""

    @property
    def candidates(self) -> int:
        """C, the candidates of a row."""
        return 0 if self.candidate_ids is None else int(self.candidate_ids.shape[1])


@dataclass(frozen=True, slots=True)
class GroupTask:
    """One prompt with the completions to score after it."""

    index: int
    prompt_ids: Int32Array
    completions: tuple[CompletionTask, ...]
    processing: Processing
    processing_index: int


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """A Score or TopKLogprobs call, validated."""

    call_id: int
    groups: tuple[GroupTask, ...]
    wants: RowWants
    next_token: bool = False
    slice_bytes: int = 1 << 20
    """Results are cut so that one slice holds about this many bytes."""
    priority: int = 0
    request_id: str = ""
    """By which the caller and the log know it."""
    cache_salt: str = ""
    """Prompts are shared only among calls of one salt."""
    uncached: bool = False
    """Prompts are neither taken from the prefix cache nor left in it."""
    deadline: float = math.inf
    """When the caller stops waiting, as `time.monotonic()` counts on this machine."""

    @property
    def tokens(self) -> int:
        """Positions that have to be computed: what the call costs."""
        return sum(
            len(group.prompt_ids) + len(completion.token_ids)
            for group in self.groups
            for completion in group.completions
        )


@dataclass(frozen=True, slots=True)
class SamplingTask:
    """Samples of one prompt."""

    index: int
    prompt_ids: Int32Array
    n: int
    seed: int
    """uint64."""
    first_sample_index: int
    processing: Processing
    processing_index: int
    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    """Ids given by the caller."""
    ignore_eos: bool = False
    drawn: tuple[tuple[int, Int32Array], ...] = ()
    """(sample index, tokens) of samples that another worker began: they are run through the model
    first, but neither drawn nor sent again."""

    @property
    def sample_indices(self) -> range:
        """Indices of the samples to draw."""
        return range(self.first_sample_index, self.first_sample_index + self.n)

    def drawn_before(self, sample_index: int) -> list[int]:
        """Tokens of a sample that another worker drew."""
        return next((ids.tolist() for index, ids in self.drawn if index == sample_index), [])


@dataclass(frozen=True, slots=True)
class SampleCall:
    """A Sample call, validated."""

    call_id: int
    prompts: tuple[SamplingTask, ...]
    top_logprobs: int = 0
    return_text: bool = False
    slice_bytes: int = 1 << 20
    priority: int = 0
    request_id: str = ""
    """By which the caller and the log know it."""
    cache_salt: str = ""
    """Prompts are shared only among calls of one salt."""
    deadline: float = math.inf
    """When the caller stops waiting, as `time.monotonic()` counts on this machine."""
    part_of: int | None = None
    """Id of the call that this is a part of; None = it is whole."""

    @property
    def tokens(self) -> int:
        """Positions that have to be computed at most: what the call costs."""
        return sum(len(task.prompt_ids) + task.n * task.max_tokens for task in self.prompts)

    @property
    def token_bytes(self) -> int:
        """Bytes of a drawn token's numbers: its id, two log-probs and the list beside it."""
        return 12 + 8 * self.top_logprobs


Call = ScoreCall | SampleCall


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Numbers of some consecutive rows.

    Per-row arrays have one entry a row; those of realised tokens (`logprobs`,
    `processed_logprobs`, `ranks`) lack the entry of a next_token row. None = not asked.
    """

    rows: int
    logprobs: Float32Array
    processed_logprobs: Float32Array | None = None
    log_kept_masses: Float32Array | None = None
    entropies: Float32Array | None = None
    ranks: Int32Array | None = None
    logsumexps: Float32Array | None = None
    support_sizes: Int32Array | None = None
    candidate_logprobs: Float32Array | None = None
    top_token_ids: Int32Array | None = None
    top_logprobs: Float32Array | None = None
    log_tail_masses: Float32Array | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    sampled_tokens: int = 0
    head_rows: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """Both together; times add up too, though parts of a call may run side by side."""
        return Usage(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)),
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts."""

    max_request_bytes: int
    max_sequence_tokens: int
    max_k: int
    max_candidates: int
    preferred_tokens_per_call: int
    max_queue_tokens: int


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a worker has to know to load a model."""

    model: str
    """Hub id, folder, or `.gguf` file."""
    revision: str | None = None
    dtype: str = "auto"
    residual_dtype: str = "auto"
    """auto = the body's; float32 = what layers add to is kept in it."""
    head_dtype: str = "float32"
    device: str = "auto"
    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    chunk_size: int | None = None
    """Tokens between seams on the packed path; None = what suits the device."""
    tokens_beside_samples: int | None = None
    """Of scoring and prompts in a step of few samples; None = what suits the device."""
    memory_utilization: float | None = None
    """Share of what is left beside the weights that pages and steps may take; None = by device."""
    path: str = "auto"
    """auto = packed where a probe allows it; plain = never packed."""
    cpu_kernels: str = "auto"
    """auto = C++ kernels on a CPU where a compiler is; off = torch's operators."""
    cuda_graphs: str = "auto"
    """auto = on a GPU, steps that only go on with samples are recorded; off = never."""
    trust_remote_code: bool = False
    weight_version: int = 0
    threads: int | None = None
    """CPU threads of torch; None = its own choice."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a model's `state_dict`."""

    name: str
    dtype: str
    """As torch names it, such as "bfloat16"."""
    shape: tuple[int, ...]
    tied_to: str = ""
    """Name of the tensor whose memory it shares, the first of them in ascending order."""
    checkpoint_names: tuple[str, ...] = ()
    """Names that a checkpoint has instead: of the tensor, or of parts of equal size whose bytes,
    one after another, make it. `*` stands for 0, 1, … of the first dimension, all names by turns
    for each. Empty where it is saved under its own."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded model is."""

    architecture: str
    vocab_size: int
    parameter_count: int
    max_sequence_tokens: int
    weight_version: int
    weights_digest: str
    dtype: str
    residual_dtype: str
    head_dtype: str
    backend: str
    device: str
    deterministic: bool
    numerics_id: str
    packed: bool
    path_reason: str
    chunk_size: int
    eos_token_ids: tuple[int, ...]
    max_batch_tokens: int = 1024
    """Tokens of a step."""
    generation_config: dict[str, Any] = field(default_factory=dict)
    """Settings that the model's own generation_config makes, as they stand there."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those of the model's config that decide its log-probs."""
    tokenizer_json: str | None = None
    """The fast tokenizer's serialised form; None where there is none."""
    tokenizer_reason: str = ""
    """Why there is none."""
    bos_token_id: int | None = None
    load_seconds: float = 0.0
    tensors: tuple[TensorSpec, ...] = ()
    """What an update of the weights replaces, in ascending order of names."""
    limits: StepLimits | None = None
    """What steps may take of the worker's memory; None on the plain path."""
