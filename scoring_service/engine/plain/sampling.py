"""The plain path of sampling: a prompt is computed once, then each sample decodes on its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from scoring_service.engine.events import SampleSlice
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.outputs.draws import DrawRow, draw_rows
from scoring_service.engine.outputs.sample_slices import (
    DrawnToken,
    PendingTokens,
    is_due,
    sample_slice,
)
from scoring_service.engine.text.stops import StopChecker
from scoring_service.errors import Fault, ServiceError
from scoring_service.kernels import dispatch
from scoring_service.types import SampleCall, SamplingTask


def draw_sample(
    model: CausalModel,
    call: SampleCall,
    task: SamplingTask,
    sample_index: int,
    state: Tensor,
    cache: Any,
    stop_checker: StopChecker,
) -> Iterator[SampleSlice | None]:
    """Slices of one sample; None after a step that ends no slice.

    Args:
        model: runs plainly.
        call: whose sample it is.
        task: the prompt that it continues, and how.
        sample_index: of the prompt.
        state: of the prompt's last position, [1, H].
        cache: what the model keeps of the prompt; it is the sample's own from now on.
        stop_checker: says when it ends.

    Raises:
        ServiceError: nothing can be drawn from a row.
    """
    ids = task.prompt_ids.tolist()
    # Of a sample that another worker began: one by one, as they were computed there.
    for token_id in task.drawn_before(sample_index):
        ids.append(token_id)
        stop_checker.push(token_id)  # the text up to here was sent
        state, cache = model.continued(ids, cache)
        yield None
    pending = PendingTokens(start=len(ids) - len(task.prompt_ids))
    while True:
        banned = stop_checker.banned_ids
        row = DrawRow(task, sample_index, len(ids), banned, call.top_logprobs)
        token = _draw(model.head.logits(state), row)
        ids.append(token.token_id)
        pending.tokens.append(token)
        text, stop = stop_checker.push(token.token_id)
        pending.text += text
        if stop is not None:
            yield sample_slice(call, task, sample_index, pending, stop, model.weight_version)
            return
        if is_due(pending, call):
            yield sample_slice(call, task, sample_index, pending, None, model.weight_version)
            pending = PendingTokens(start=len(ids) - len(task.prompt_ids))
        else:
            yield None
        state, cache = model.continued(ids, cache)


def _draw(logits_1_V: Tensor, row: DrawRow) -> DrawnToken:
    """One row's token; raises ServiceError where there is none to draw."""
    (drawn,) = draw_rows(logits_1_V, [row], dispatch.reference_tile)
    if isinstance(drawn, Fault):
        raise ServiceError(drawn)
    return drawn
