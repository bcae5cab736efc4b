"""From what callers hand in to the messages of the contract."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring_client.errors import invalid
from scoring_client.proto import context_pb2, sample_pb2, sequence_pb2
from scoring_client.values.arrays import Int32Array
from scoring_client.values.inputs import (
    Completion,
    Expect,
    GroupLike,
    PromptGroup,
    PromptLike,
    RequestContext,
    SamplePrompt,
)
from scoring_client.values.messages import no_unicode, set_fields
from scoring_client.values.processing import processing_message
from scoring_client.values.spans import Span, as_spans
from scoring_client.values.tensors import int32_tensor
from scoring_client.values.tokens import (
    as_array,
    as_sequence,
    as_text_or_ids,
    whole_sequence_hint,
)

_NO_ROW: tuple[Span, ...] = ((0, 1),)


@dataclass(frozen=True, slots=True, eq=False)
class CompletionAsked:
    """What was asked of one completion: all that is needed to check its answer."""

    token_ids: Int32Array | None
    """[T] of the whole completion; None for text."""
    spans: tuple[Span, ...] | None
    """Rows asked for; None = all."""
    no_rows: bool
    """The caller wanted no row. A message cannot say that: row 0 is asked for, then dropped."""
    candidate_count: int | None
    """C; None when no candidates were given."""


def group_messages(
    groups: Iterable[GroupLike],
) -> tuple[list[sequence_pb2.PromptGroup], dict[tuple[int, int], CompletionAsked]]:
    """Return the messages for groups, and what was asked of each (group, completion).

    Raises:
        InvalidRequestError: something is neither text nor token ids, or no group is there.
    """
    messages: list[sequence_pb2.PromptGroup] = []
    asked: dict[tuple[int, int], CompletionAsked] = {}
    if _is_pair(groups):
        raise invalid("groups", f"expected a list of groups; did you mean [{short_repr(groups)}]?")
    for index, group_like in enumerate(
        as_sequence(groups, "groups (prompt, completions)", "groups")
    ):
        path = f"groups[{index}]"
        group = _as_group(group_like, path)
        message = sequence_pb2.PromptGroup(
            processing=processing_message(group, f"{path}.processing")
        )
        where = f"{path}.prompt"
        _fill_sequence(message.prompt, as_text_or_ids(group.prompt, where), where)
        if group.add_special_tokens is not None:
            message.prompt.add_special_tokens = group.add_special_tokens
        completions = as_sequence(group.completions, "completions", f"{path}.completions")
        if not completions:
            raise invalid(f"{path}.completions", "at least one is needed")
        for number, completion in enumerate(completions):
            asked[index, number] = _fill_completion(
                message.completions.add(), completion, f"{path}.completions[{number}]"
            )
        messages.append(message)
    if not messages:
        raise invalid("groups", "at least one is needed")
    return messages, asked


def prompt_messages(prompts: Iterable[PromptLike]) -> list[sample_pb2.SamplePrompt]:
    """Return the messages for prompts.

    Raises:
        InvalidRequestError: something is neither text nor token ids, or no prompt is there.
    """
    messages: list[sample_pb2.SamplePrompt] = []
    for index, prompt_like in enumerate(as_sequence(prompts, "prompts", "prompts")):
        path = f"prompts[{index}]"
        prompt = prompt_like if isinstance(prompt_like, SamplePrompt) else SamplePrompt(prompt_like)
        message = sample_pb2.SamplePrompt()
        _fill_sequence(message, as_text_or_ids(prompt.prompt, path), path)
        set_fields(
            message,
            path,
            add_special_tokens=prompt.add_special_tokens,
            n=prompt.n,
            seed=prompt.seed,
            first_sample_index=prompt.first_sample_index,
        )
        sampling = sampling_message(prompt, f"{path}.sampling")
        if sampling.ByteSize():
            message.sampling.CopyFrom(sampling)
        messages.append(message)
    if not messages:
        raise invalid("prompts", "at least one is needed")
    return messages


def sampling_message(
    settings: SamplePrompt, path: str, seed: int | None = None
) -> sample_pb2.SamplingParams:
    """Return the message for sampling settings; a prompt's own seed has a field of its own.

    Raises:
        InvalidRequestError: a value of the wrong type, or beyond the field's range.
    """
    message = sample_pb2.SamplingParams(
        processing=processing_message(settings, f"{path}.processing")
    )
    # A text is a sequence too, of characters.
    stop = [settings.stop] if isinstance(settings.stop, str) else settings.stop
    set_fields(
        message,
        path,
        max_tokens=settings.max_tokens,
        min_tokens=settings.min_tokens,
        seed=seed,
        stop=stop,
        stop_token_ids=settings.stop_token_ids,
        ignore_eos=settings.ignore_eos,
    )
    return message


def context_message(context: RequestContext | None) -> context_pb2.RequestContext:
    """Return the message for a context, with an id made here unless it has one.

    Raises:
        InvalidRequestError: a value of the wrong type, or beyond the field's range.
    """
    given = RequestContext() if context is None else context
    if not isinstance(given, RequestContext):
        raise invalid("context", f"expected a RequestContext, got {given!r}")
    message = context_pb2.RequestContext()
    set_fields(
        message,
        "context",
        request_id=given.request_id or uuid.uuid4().hex,
        tags=given.tags,
        priority=given.priority,
        cache_salt=given.cache_salt,
    )
    return message


def expect_message(expect: Expect | None) -> context_pb2.Expect | None:
    """Return the message for conditions, or None when there are none.

    Raises:
        InvalidRequestError: a value of the wrong type, or beyond the field's range.
    """
    if expect is None:
        return None
    if not isinstance(expect, Expect):
        raise invalid("expect", f"expected an Expect, got {expect!r}")
    message = context_pb2.Expect()
    set_fields(
        message,
        "expect",
        weight_version=expect.weight_version,
        min_weight_version=expect.min_weight_version,
        weights_digest=expect.weights_digest,
        tokenizer_digest=expect.tokenizer_digest,
        deterministic=expect.deterministic,
    )
    return message


def _as_group(value: Any, path: str) -> PromptGroup:
    if isinstance(value, PromptGroup):
        return value
    hint = whole_sequence_hint(value)
    if isinstance(value, (tuple, list)) and len(value) == 2 and not hint:
        return PromptGroup(*value)
    got = short_repr(value)
    raise invalid(path, f"expected a PromptGroup or (prompt, [completion, …]), got {got}{hint}")


def _is_pair(groups: Any) -> bool:
    """Return whether a single pair stands where a list of them should be."""
    if not isinstance(groups, tuple) or len(groups) != 2:
        return False
    # What is no group, but a prompt, and what is a list of completions.
    return bool(whole_sequence_hint(groups[0])) and isinstance(groups[1], list)


def _fill_sequence(
    message: sequence_pb2.TokenSequence | sequence_pb2.Completion | sample_pb2.SamplePrompt,
    tokens: str | Int32Array,
    path: str,
) -> None:
    if not isinstance(tokens, str):
        message.token_ids.extend(tokens.tolist())
        return
    try:
        message.text = tokens
    except UnicodeEncodeError as error:
        raise invalid(f"{path}.text", no_unicode(error)) from error


def _fill_completion(message: sequence_pb2.Completion, value: Any, path: str) -> CompletionAsked:
    completion = value if isinstance(value, Completion) else Completion(value)
    tokens = as_text_or_ids(completion.tokens, path)
    _fill_sequence(message, tokens, path)
    token_ids = None if isinstance(tokens, str) else tokens
    spans: Sequence[Span] | None = None
    if completion.rows is not None:
        count = None if token_ids is None else len(token_ids)
        spans = as_spans(completion.rows, count, f"{path}.rows")
    no_rows = spans is not None and not spans
    if no_rows:
        spans = _NO_ROW
    for start, length in spans or ():
        message.rows.add(start=start, length=length)
    candidate_count = None
    if completion.candidates is not None:
        candidate_count = _fill_candidates(message, completion.candidates, no_rows, path)
    return CompletionAsked(
        token_ids=token_ids,
        spans=None if spans is None else tuple(spans),
        no_rows=no_rows,
        candidate_count=candidate_count,
    )


def _fill_candidates(
    message: sequence_pb2.Completion, given: npt.ArrayLike, no_rows: bool, path: str
) -> int:
    where = f"{path}.candidate_token_ids"
    array = as_array(given, "integers [T, C] or [C]", where)
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
        shape = list(array.shape)
        raise invalid(where, f"expected integers [T, C] or [C], got {array.dtype} {shape}")
    limits = np.iinfo(np.int32)
    if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
        raise invalid(where, "an id is no 32-bit integer")
    candidates = np.atleast_2d(array).astype(np.int32)
    count = int(candidates.shape[1])
    if no_rows and len(candidates) == 0:
        # Nothing is asked, and the row that is dropped needs nothing either.
        candidates = np.full((1, count), -1, dtype=np.int32)
    message.candidate_token_ids.CopyFrom(int32_tensor(candidates))
    return count
