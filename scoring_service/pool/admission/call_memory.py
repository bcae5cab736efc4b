"""Whether a worker has the memory for a call, told before anything is spent on it."""

from __future__ import annotations

from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.peak_memory import StepLimits, StepWork, part_credit, step_bytes
from scoring_service.types import Call, SampleCall, ScoreCall

_MIB = 1 << 20


def check_memory(call: Call, limits: StepLimits | None) -> None:
    """Refuses a call of which not even one segment could be answered.

    What is merely large is computed by steps that hold as much as fits. A segment is never cut,
    because its length decides bits: so the results of its rows have to fit together.

    Raises:
        ServiceError: OUT_OF_MEMORY, which no retry can help.
    """
    if limits is None:
        return
    work = call_work(call, limits)
    needed = step_bytes(limits.shape, work)
    if needed > limits.budget_bytes:
        message = (
            f"a step with this call would take {-(-needed // _MIB)} MiB beside weights and pages, "
            f"{-(-work.answer_bytes // _MIB)} MiB of them results of {work.listed} listed tokens a "
            f"row, and the worker has {limits.budget_bytes // _MIB} MiB: ask for fewer"
        )
        raise ServiceError(Fault(Reason.OUT_OF_MEMORY, message))


def call_work(call: Call, limits: StepLimits) -> StepWork:
    """The largest step that a call can have by itself."""
    if isinstance(call, ScoreCall):
        return _score_work(call, limits)
    return _sample_work(call, limits)


def _score_work(call: ScoreCall, limits: StepLimits) -> StepWork:
    rows = answer = largest_unit = candidates = request = longest = 0
    for group in call.groups:
        request += 4 * len(group.prompt_ids)
        for completion in group.completions:
            longest = max(longest, len(group.prompt_ids) + len(completion.token_ids))
            wanted = sum(length for _, length in completion.spans) + call.next_token
            size = call.wants.row_bytes(completion.candidates)
            rows += wanted
            answer += wanted * size
            largest_unit = max(largest_unit, min(wanted, limits.chunk_tokens + 1) * size)
            candidates = max(candidates, completion.candidates)
            request += 4 * len(completion.token_ids)
            if completion.candidate_ids is not None:
                request += completion.candidate_ids.nbytes
    tokens = min(call.tokens, limits.step_tokens)
    credit = max(INITIAL_CREDIT, part_credit(limits.step_tokens))
    most = min(credit, limits.answer_bytes)
    return StepWork(
        tokens=tokens,
        rows=min(rows, 2 * tokens),
        listed=call.wants.top_k + candidates,
        answer_bytes=min(answer, max(largest_unit, most)),
        context=longest,
        chunk_tokens=min(limits.chunk_tokens, longest),
        truncates=any(group.processing.truncates for group in call.groups),
        request_bytes=request,
    )


def _sample_work(call: SampleCall, limits: StepLimits) -> StepWork:
    samples = min(sum(task.n for task in call.prompts), limits.max_samples)
    longest = max((len(t.prompt_ids) + t.max_tokens for t in call.prompts), default=0)
    prompts = sum(len(task.prompt_ids) for task in call.prompts)
    size = call.token_bytes
    most = max((task.max_tokens for task in call.prompts), default=0)
    # A sample's tokens are sent together, before they exceed a slice by more than one of them.
    pending = min(most * size, call.slice_bytes + size)
    return StepWork(
        tokens=max(samples, min(prompts + samples, limits.step_tokens)),
        rows=samples,
        listed=call.top_logprobs,
        answer_bytes=samples * pending,
        context=longest,
        chunk_tokens=min(limits.chunk_tokens, longest),
        truncates=any(task.processing.truncates for task in call.prompts),
        samples=samples,
        request_bytes=4 * prompts,
    )
