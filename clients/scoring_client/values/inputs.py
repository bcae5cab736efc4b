"""What callers hand in: groups of completions to score, prompts to continue, conditions."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy.typing as npt

from scoring_client.values.processing import Processing
from scoring_client.values.spans import Rows
from scoring_client.values.tokens import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """What follows a prompt and is to be scored."""

    tokens: Tokens
    """Text or token ids. Text is tokenised apart from the prompt: mind the leading space."""
    rows: Rows | None = None
    """Rows wanted, as spans (start, length) or as a mask of bools with an entry for each token (a
    loss mask); no indices. None = all; empty = none. Rows of masked turns cost no head
    computation."""
    candidates: npt.ArrayLike | None = None
    """Token ids whose log-prob is wanted at each wanted row: [T, C], T counting the wanted rows
    (and the next-token row when asked, as the last), or [C] or [1, C] for the same at every row.
    -1 = not asked, answered NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup(Processing):
    """A prompt with its completions. The prompt travels once.

    The settings of Processing, given here, win over those of the call, one by one.
    """

    prompt: Tokens
    """Text or token ids, at least one token."""
    completions: Sequence[Completion | Tokens]
    """At least one."""
    _: KW_ONLY
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its special tokens to a prompt of text. Default: yes."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplePrompt(Processing):
    """A prompt to continue. What is set here wins over the call's, one by one."""

    prompt: Tokens
    """Text or token ids, at least one token."""
    _: KW_ONLY
    n: int | None = None
    """Samples of this prompt."""
    seed: int | None = None
    """Seed of its random numbers, in [0, 2^64)."""
    first_sample_index: int | None = None
    """Index of the first sample, so that n samples can be split over calls."""
    max_tokens: int | None = None
    """Most tokens to draw."""
    min_tokens: int | None = None
    """Stops are banned until this many tokens were drawn."""
    stop: str | Sequence[str] = ()
    """Texts that end a sample."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end a sample, beside the model's own."""
    ignore_eos: bool | None = None
    """The model's end-of-sequence ids do not stop."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its special tokens to a prompt of text. Default: yes."""


GroupLike = PromptGroup | tuple[Tokens, Sequence[Completion | Tokens]]
"""A PromptGroup, or (prompt, completions)."""

PromptLike = SamplePrompt | Tokens
"""A SamplePrompt, text or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """Conditions that must hold for an answer to be of use. None asks for nothing.

    An unmet one is a PreconditionFailedError; ``min_weight_version`` waits until the timeout.
    """

    weight_version: int | None = None
    """Exactly this version of the weights."""
    min_weight_version: int | None = None
    """This version or a later one."""
    weights_digest: str | None = None
    """Digest of the weights, as ``model_info`` reports it."""
    tokenizer_digest: str | None = None
    """Digest of the tokenizer, as ``model_info`` reports it."""
    deterministic: bool | None = None
    """Equal requests must give equal bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """Who asks and why. Nothing in it changes a number."""

    request_id: str = ""
    """At most 128 characters. Default: made by the client, so that errors can name it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Free labels for the server's logs."""
    priority: int = 0
    """Larger runs earlier, in [-100, 100]."""
    cache_salt: str = ""
    """Separates cached prefixes from other callers'."""
