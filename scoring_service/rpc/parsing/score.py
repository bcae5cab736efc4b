"""Score and TopKLogprobs requests to calls. What is wrong inside an item ends that item alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scoring_client.proto import score_pb2, sequence_pb2, topk_pb2
from scoring_service.errors import Fault, ServiceError, invalid
from scoring_service.rpc.handling.caller import Caller
from scoring_service.rpc.parsing.items import check_items
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.rpc.parsing.processing import ProcessingTable, resolve
from scoring_service.rpc.parsing.sequences import check_ids, read_tokens
from scoring_service.rpc.parsing.tensors import read_int32
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    Int32Array,
    RowWants,
    ScoreCall,
)

ScoringRequest = score_pb2.ScoreRequest | topk_pb2.TopKLogprobsRequest

SLICE_BYTES = 1 << 19
"""Results are cut so that a message of one or two slices holds at most about 1 MiB."""

_SLICE_BYTES_WITH_STRINGS = SLICE_BYTES // 4
"""Strings of tokens come on top of the numbers that the engine counts."""

MAX_K_WITH_TOKENS = 1024
"""Strings are for people; a message of them would outgrow its bound."""


@dataclass(frozen=True, slots=True)
class ItemFault:
    """An item that cannot be computed."""

    index: int
    """Group or prompt."""
    part: int | None
    """Completion or sample; None = all of them."""
    fault: Fault


@dataclass(slots=True)
class ParsedScore:
    """A validated request."""

    table: ProcessingTable
    items: int
    """Completions in the request; a group without any counts as one."""
    wants: RowWants
    groups: list[GroupTask] = field(default_factory=list)
    """What can be computed."""
    faults: list[ItemFault] = field(default_factory=list)
    echoed: dict[tuple[int, int], Int32Array] = field(default_factory=dict)
    """(group, completion) -> ids of completions whose token_ids are sent back."""
    prompts: dict[int, Int32Array] = field(default_factory=dict)
    """Group -> ids of prompts that came as text: they are sent back."""
    tokens: dict[tuple[int, int], Int32Array] = field(default_factory=dict)
    """(group, completion) -> ids of completions whose tokens are sent as strings."""

    @property
    def is_computable(self) -> bool:
        """Whether there is anything that can be computed."""
        return bool(self.groups)

    @property
    def has_strings(self) -> bool:
        """Whether results hold strings of tokens, one each."""
        return bool(self.tokens)

    def call(self, call_id: int, request: ScoringRequest, caller: Caller) -> ScoreCall:
        """The call for the engine."""
        return ScoreCall(
            call_id=call_id,
            groups=tuple(self.groups),
            wants=self.wants,
            next_token=request.next_token,
            slice_bytes=_SLICE_BYTES_WITH_STRINGS if request.outputs.tokens else SLICE_BYTES,
            priority=request.context.priority,
            request_id=caller.request_id,
            cache_salt=caller.cache_salt(request.context.cache_salt),
            deadline=caller.deadline,
        )


def parse_score(request: ScoringRequest, view: ModelView) -> ParsedScore:
    """Validates a request.

    Raises:
        ServiceError: for a fault of the request as a whole.
    """
    outputs = request.outputs
    wants = _row_wants(request, view)
    if outputs.tokens:
        view.codec("outputs.tokens")
    if not request.groups:
        raise invalid("groups", "is empty")
    base = request.processing if request.HasField("processing") else None
    # Faults of the request's own processing end the call, whatever its groups override.
    resolve(base, None, view.info.generation_config, "processing", "", sampling=False)
    items = sum(max(1, len(group.completions)) for group in request.groups)
    check_items(items, "groups", "completions")
    parsed = ParsedScore(ProcessingTable(), items, wants)
    for index in range(len(request.groups)):
        try:
            task = _group(request, view, parsed, index)
        except ServiceError as error:
            parsed.faults.append(ItemFault(index, None, error.fault))
            continue
        if task is not None:
            parsed.groups.append(task)
    return parsed


def _group(
    request: ScoringRequest, view: ModelView, parsed: ParsedScore, index: int
) -> GroupTask | None:
    """The part of a group that can be computed; None when nothing of it can."""
    group = request.groups[index]
    path = f"groups[{index}]"
    resolved = resolve(
        request.processing if request.HasField("processing") else None,
        group.processing if group.HasField("processing") else None,
        view.info.generation_config,
        "processing",
        f"{path}.processing",
        sampling=False,
    )
    prompt_ids = _prompt(view, group.prompt, f"{path}.prompt")
    if not group.completions:
        raise invalid(f"{path}.completions", "is empty")
    if group.prompt.HasField("text"):
        parsed.prompts[index] = prompt_ids
    completions = _completions(request, view, parsed, index, prompt_ids)
    if not completions:
        return None
    position = parsed.table.index(resolved, f"{path}.processing")
    return GroupTask(index, prompt_ids, completions, resolved.processing, position)


def _row_wants(request: ScoringRequest, view: ModelView) -> RowWants:
    outputs = request.outputs
    k, limit = 0, None
    is_top_k = isinstance(request, topk_pb2.TopKLogprobsRequest)
    if isinstance(request, topk_pb2.TopKLogprobsRequest):
        if request.HasField("token_id_limit"):
            limit = request.token_id_limit
            if not 1 <= limit <= view.info.vocab_size:
                raise invalid("token_id_limit", f"{limit} is not in [1, {view.info.vocab_size}]")
        k = request.k
        most = min(view.limits.max_k, limit or view.info.vocab_size)
        if not 1 <= k <= most:
            raise invalid("k", f"{k} is not in [1, {most}]")
        if outputs.tokens and k > MAX_K_WITH_TOKENS:
            raise invalid("outputs.tokens", f"is refused for k > {MAX_K_WITH_TOKENS}: ask for ids")
    return RowWants(
        processed_logprobs=outputs.processed_logprobs,
        entropy=outputs.entropy,
        rank=outputs.rank,
        logsumexp=outputs.logsumexp,
        log_kept_mass=outputs.log_kept_mass,
        support_size=is_top_k,
        top_k=k,
        token_id_limit=limit,
    )


def _prompt(view: ModelView, prompt: sequence_pb2.TokenSequence, path: str) -> Int32Array:
    return read_tokens(
        view,
        prompt.token_ids,
        prompt.text if prompt.HasField("text") else None,
        path,
        prompt.add_special_tokens if prompt.HasField("add_special_tokens") else None,
        is_prompt=True,
    )


def _completions(
    request: ScoringRequest, view: ModelView, parsed: ParsedScore, group: int, prompt: Int32Array
) -> tuple[CompletionTask, ...]:
    """The completions of a group that can be computed; the others are among the faults."""
    tasks = []
    for index, completion in enumerate(request.groups[group].completions):
        path = f"groups[{group}].completions[{index}]"
        try:
            task = _completion(view, completion, path, index, len(prompt), request.next_token)
        except ServiceError as error:
            parsed.faults.append(ItemFault(group, index, error.fault))
            continue
        tasks.append(task)
        if completion.HasField("text") or request.outputs.token_ids:
            parsed.echoed[group, index] = task.token_ids
        if request.outputs.tokens:
            parsed.tokens[group, index] = task.token_ids
    return tuple(tasks)


def _completion(
    view: ModelView,
    completion: sequence_pb2.Completion,
    path: str,
    index: int,
    prompt_length: int,
    next_token: bool,
) -> CompletionTask:
    text = completion.text if completion.HasField("text") else None
    ids = read_tokens(view, completion.token_ids, text, path)
    total, limit = prompt_length + len(ids), view.limits.max_sequence_tokens
    if total > limit:
        raise invalid(
            path,
            f"prompt and completion have {prompt_length} + {len(ids)} = {total} tokens; "
            f"at most {limit}",
        )
    spans = _spans(completion.rows, len(ids), f"{path}.rows")
    rows = sum(length for _, length in spans) + next_token
    candidates = None
    if completion.HasField("candidate_token_ids"):
        candidates = _candidates(view, completion, f"{path}.candidate_token_ids", rows)
    return CompletionTask(index, ids, spans, candidates)


def _spans(
    rows: Sequence[sequence_pb2.RowSpan], length: int, path: str
) -> tuple[tuple[int, int], ...]:
    if not rows:
        return ((0, length),)
    end = 0
    for index, span in enumerate(rows):
        where = f"{path}[{index}]"
        if span.start < 0:
            raise invalid(f"{where}.start", f"{span.start} is negative")
        if span.length < 1:
            raise invalid(f"{where}.length", f"{span.length} is below 1")
        if span.start + span.length > length:
            raise invalid(
                where, f"ends at {span.start + span.length}, past the completion's {length} rows"
            )
        if span.start < end:
            raise invalid(where, "overlaps the span before it, or comes out of order")
        end = span.start + span.length
    return tuple((span.start, span.length) for span in rows)


def _candidates(
    view: ModelView, completion: sequence_pb2.Completion, path: str, rows: int
) -> Int32Array:
    ids = read_int32(completion.candidate_token_ids, path)
    if ids.ndim != 2 or ids.shape[0] not in (1, rows) or ids.shape[1] < 1:
        shape = list(ids.shape)
        raise invalid(f"{path}.shape", f"{shape} is neither [{rows}, C] nor [1, C] with C ≥ 1")
    if ids.shape[1] > view.limits.max_candidates:
        raise invalid(f"{path}.shape", f"C = {ids.shape[1]}; at most {view.limits.max_candidates}")
    check_ids(ids, view.info.vocab_size, path, least=-1)
    return ids
