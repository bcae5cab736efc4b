"""Sample requests to calls. What is wrong inside a prompt ends that prompt alone."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import numpy as np

from scoring_client.proto import processing_pb2, sample_pb2
from scoring_service.errors import ServiceError, invalid
from scoring_service.rpc.handling.caller import Caller
from scoring_service.rpc.parsing.items import MAX_ITEMS, check_items
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.rpc.parsing.processing import ProcessingTable, resolve
from scoring_service.rpc.parsing.score import SLICE_BYTES, ItemFault
from scoring_service.rpc.parsing.sequences import check_ids, read_tokens
from scoring_service.types import Int32Array, ResolvedProcessing, SampleCall, SamplingTask

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_SAMPLE_INDEX = 2**31 - 1


@dataclass(slots=True)
class ParsedSample:
    """A validated request."""

    table: ProcessingTable
    items: int = 0
    """Samples asked for; a prompt that cannot be read counts its n, or 1."""
    tasks: list[SamplingTask] = field(default_factory=list)
    """What can be computed."""
    faults: list[ItemFault] = field(default_factory=list)
    prompts: dict[int, Int32Array] = field(default_factory=dict)
    """Prompt -> ids of prompts that came as text: they are sent back."""

    @property
    def is_computable(self) -> bool:
        """Whether there is anything that can be computed."""
        return bool(self.tasks)

    @property
    def has_strings(self) -> bool:
        """Whether results hold strings of tokens, one each: a sample's text is whole."""
        return False

    def call(self, call_id: int, request: sample_pb2.SampleRequest, caller: Caller) -> SampleCall:
        """The call for the engine."""
        return SampleCall(
            call_id=call_id,
            prompts=tuple(self.tasks),
            top_logprobs=request.top_logprobs,
            return_text=request.return_text,
            slice_bytes=SLICE_BYTES,
            priority=request.context.priority,
            request_id=caller.request_id,
            cache_salt=caller.cache_salt(request.context.cache_salt),
            deadline=caller.deadline,
        )


def parse_sample(request: sample_pb2.SampleRequest, view: ModelView) -> ParsedSample:
    """Validates a request; draws the seeds that are not given.

    Raises:
        ServiceError: for a fault of the request as a whole.
    """
    if request.return_text:
        view.codec("return_text")
    if not 0 <= request.top_logprobs <= view.limits.max_k:
        most = view.limits.max_k
        raise invalid("top_logprobs", f"{request.top_logprobs} is not in [0, {most}]")
    if not request.prompts:
        raise invalid("prompts", "is empty")
    n = _check_n(request.n if request.HasField("n") else 1, "n")
    counts = [prompt.n if prompt.HasField("n") else n for prompt in request.prompts]
    items = sum(max(1, min(count, MAX_ITEMS)) for count in counts)
    check_items(items, "prompts", "samples")
    _check_request_sampling(request, view)
    parsed = ParsedSample(ProcessingTable(), items)
    for index, prompt in enumerate(request.prompts):
        path = f"prompts[{index}]"
        try:
            task = _task(request, prompt, view, parsed.table, index, counts[index], path)
        except ServiceError as error:
            parsed.faults.append(ItemFault(index, None, error.fault))
            continue
        parsed.tasks.append(task)
        if prompt.HasField("text"):
            parsed.prompts[index] = task.prompt_ids
    return parsed


def _check_request_sampling(request: sample_pb2.SampleRequest, view: ModelView) -> None:
    """Faults of the request's own sampling end the call, whatever its prompts override."""
    base = request.sampling
    _resolve(base, sample_pb2.SamplingParams(), view, "sampling", "")
    if base.HasField("max_tokens"):
        _check_max_tokens(base.max_tokens, "sampling.max_tokens")
    elif not all(p.sampling.HasField("max_tokens") for p in request.prompts):
        raise invalid("sampling.max_tokens", "is required")
    _check_stops(base, view, "sampling")


def _task(
    request: sample_pb2.SampleRequest,
    prompt: sample_pb2.SamplePrompt,
    view: ModelView,
    table: ProcessingTable,
    index: int,
    n: int,
    path: str,
) -> SamplingTask:
    ids = read_tokens(
        view,
        prompt.token_ids,
        prompt.text if prompt.HasField("text") else None,
        path,
        prompt.add_special_tokens if prompt.HasField("add_special_tokens") else None,
        is_prompt=True,
    )
    base, own = request.sampling, prompt.sampling
    inner = f"{path}.sampling"
    _check_n(n, f"{path}.n")
    first = prompt.first_sample_index
    if first < 0 or first + n - 1 > _MAX_SAMPLE_INDEX:
        raise invalid(f"{path}.first_sample_index", f"{first} is not in [0, 2**31 - n]")
    resolved = _resolve(base, own, view, "sampling", inner)
    nearest = own if own.HasField("max_tokens") else base
    max_tokens = _check_max_tokens(nearest.max_tokens, f"{inner}.max_tokens")
    limit = view.limits.max_sequence_tokens
    if len(ids) + max_tokens > limit:
        raise invalid(
            path, f"prompt and max_tokens have {len(ids)} + {max_tokens} tokens; at most {limit}"
        )
    min_tokens = own.min_tokens if own.HasField("min_tokens") else base.min_tokens
    if not 0 <= min_tokens <= max_tokens:
        raise invalid(f"{inner}.min_tokens", f"{min_tokens} is not in [0, max_tokens]")
    _check_stops(own, view, inner)
    return SamplingTask(
        index=index,
        prompt_ids=ids,
        n=n,
        seed=_seed(prompt, base),
        first_sample_index=first,
        processing=resolved.processing,
        processing_index=table.index(resolved, f"{inner}.processing"),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=tuple(own.stop or base.stop),
        stop_token_ids=frozenset(own.stop_token_ids or base.stop_token_ids),
        ignore_eos=own.ignore_eos if own.HasField("ignore_eos") else base.ignore_eos,
    )


def _resolve(
    base: sample_pb2.SamplingParams,
    own: sample_pb2.SamplingParams,
    view: ModelView,
    base_path: str,
    own_path: str,
) -> ResolvedProcessing:
    def processing(params: sample_pb2.SamplingParams) -> processing_pb2.LogitsProcessing | None:
        return params.processing if params.HasField("processing") else None

    return resolve(
        processing(base),
        processing(own),
        view.info.generation_config,
        f"{base_path}.processing",
        f"{own_path}.processing",
        sampling=True,
    )


def _seed(prompt: sample_pb2.SamplePrompt, base: sample_pb2.SamplingParams) -> int:
    """The nearest seed that is set, else one drawn for this prompt."""
    if prompt.HasField("seed"):
        return prompt.seed
    if prompt.sampling.HasField("seed"):
        return prompt.sampling.seed
    if base.HasField("seed"):
        return base.seed
    return secrets.randbits(64)


def _check_n(n: int, path: str) -> int:
    if not 1 <= n <= MAX_ITEMS:
        raise invalid(path, f"{n} is not in [1, {MAX_ITEMS}]")
    return n


def _check_max_tokens(max_tokens: int, path: str) -> int:
    if max_tokens < 1:
        raise invalid(path, f"{max_tokens} is below 1")
    return max_tokens


def _check_stops(params: sample_pb2.SamplingParams, view: ModelView, path: str) -> None:
    if len(params.stop) > _MAX_STOPS:
        raise invalid(f"{path}.stop", f"{len(params.stop)} texts; at most {_MAX_STOPS}")
    for index, text in enumerate(params.stop):
        if not 1 <= len(text) <= _MAX_STOP_CHARACTERS:
            raise invalid(
                f"{path}.stop[{index}]", f"has not 1 to {_MAX_STOP_CHARACTERS} characters"
            )
    if params.stop:
        view.codec(f"{path}.stop")
    if params.stop_token_ids:
        ids = np.array(params.stop_token_ids, dtype=np.int32)
        check_ids(ids, view.info.vocab_size, f"{path}.stop_token_ids")
