"""Keyword arguments that the calls share."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from scoring_client.values.inputs import Expect, RequestContext
from scoring_client.values.processing import ProcessingDefaults
from scoring_client.values.provenance import Progress

OnError = Literal["raise", "return"]
"""What to do with items that failed: raise once the others are in, or return their errors."""

ProgressCallback = Callable[[Progress], None]


class CallOptions(TypedDict, total=False):
    """Of every call that streams."""

    model: str
    """Model to ask. Default: the client's; empty = the only one served."""
    expect: Expect | None
    """Conditions for the answer; None = none. Default: the client's."""
    context: RequestContext | None
    """Who asks; None = nothing is said. Default: the client's."""
    timeout: float | None
    """Seconds for the whole call, retries included; None = no limit. Default: the client's."""
    on_error: OnError
    """What to do with items that failed. Default: "raise"."""
    on_progress: ProgressCallback | None
    """Called with a Progress at least every 15 s while the call waits for its turn, and whenever an
    item ends: of a call that runs a long item may keep it silent for longer."""


class ProcessingOptions(TypedDict, total=False):
    """Of every call: what shapes the distribution. See Processing."""

    temperature: float | None
    """Divisor of the logits. Neutral: 1."""
    top_k: int | None
    """Tokens kept. Neutral: all."""
    top_p: float | None
    """Mass kept. Neutral: 1."""
    min_p: float | None
    """Least probability kept, relative to the most likely token. Neutral: 0."""
    defaults: ProcessingDefaults | None
    """What unset settings mean. Default: "neutral"."""


class ScoreOptions(ProcessingOptions, CallOptions, total=False):
    """Of score, score_iter and score_slices."""

    keep_realised: bool | None
    """The realised token always belongs to the support. Default: False."""
    processed_logprobs: bool
    """Want log-probs after truncation."""
    entropy: bool
    """Want entropies."""
    rank: bool
    """Want ranks of the realised tokens."""
    logsumexp: bool
    """Want log-sum-exps."""
    log_kept_mass: bool
    """Want the log of the support's mass."""
    tokens: bool
    """Want the tokens as text."""
    token_ids: bool
    """Have the server send token ids also for input that came as ids."""
    next_token: bool
    """Want one row more: the distribution after each completion's last token."""


class TopKOptions(ScoreOptions, total=False):
    """Of topk_logprobs, topk_logprobs_iter and topk_logprobs_slices."""

    token_id_limit: int | None
    """Only ids below this are ranked and listed; the rest count as tail. Default: all."""


class SampleOptions(ProcessingOptions, CallOptions, total=False):
    """Of sample, sample_iter and sample_slices."""

    n: int
    """Samples of each prompt. Default: 1."""
    max_tokens: int | None
    """Most tokens to draw. Required, unless every prompt sets its own."""
    min_tokens: int | None
    """Stops are banned until this many tokens were drawn."""
    seed: int | None
    """Seed of every prompt that has none of its own. Default: the server draws one a prompt, which
    is what you want for several prompts: equal seeds give them the same random numbers."""
    stop: str | Sequence[str]
    """Texts that end a sample."""
    stop_token_ids: Sequence[int]
    """Token ids that end a sample, beside the model's own."""
    ignore_eos: bool | None
    """The model's end-of-sequence ids do not stop."""
    top_logprobs: int
    """Most likely tokens listed with each drawn token. Default: 0."""
    return_text: bool
    """Want the text."""


_RESULTS_HAVE: dict[str, tuple[str, ...]] = {
    "score": ("logprobs", "rows"),
    "topk_logprobs": ("logprobs", "rows", "log_tail_masses", "support_sizes"),
    "sample": ("logprobs", "processed_logprobs", "token_ids", "prompt_token_ids"),
}
"""Fields of results that are there without being asked for."""
_CALLED: dict[str, dict[str, str]] = {
    "sample": {"tokens": "return_text", "text": "return_text", "k": "top_logprobs"},
}
"""What other calls, or fields of results, call an option."""
_LISTS_OF_SCORES = "topk_logprobs(groups, k) lists the most likely tokens of each row"
_ELSEWHERE: dict[str, dict[str, str]] = {
    "score": dict.fromkeys(("k", "top_logprobs", "token_id_limit"), _LISTS_OF_SCORES),
}
"""What another call has."""


def check_names(options: Mapping[str, Any], known: Any, call: str) -> None:
    """Refuse what is no option, as Python does for keyword arguments.

    Args:
        options: What the caller gave.
        known: The TypedDict with the names of the options.
        call: Name of the call, for the error.

    Raises:
        TypeError: an option is unknown.
    """
    names = sorted(known.__required_keys__ | known.__optional_keys__)
    for name in options:
        if name not in names:
            hint = _hint(name, names, call)
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{hint}")


def _hint(name: str, names: Sequence[str], call: str) -> str:
    """Return what may have been meant by a name that is no option, or nothing."""
    call = call.removesuffix("_iter").removesuffix("_slices")
    if name in _RESULTS_HAVE.get(call, ()):
        return "; every result has it"
    if (elsewhere := _ELSEWHERE.get(call, {}).get(name)) is not None:
        return f"; {elsewhere}"
    # Fields of results are called alike: `entropy` gives `entropies`.
    near = [_CALLED.get(call, {}).get(name), *get_close_matches(name, names, n=1, cutoff=0.7)]
    return next((f"; did you mean {meant!r}?" for meant in near if meant), "")
