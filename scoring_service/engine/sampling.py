"""The plain path of sampling: a prompt is computed once, then each sample decodes on its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from scoring_service.engine.causal_model import CausalModel
from scoring_service.engine.events import SampleSlice
from scoring_service.engine.sample_slices import DrawnToken, PendingTokens, is_due, sample_slice
from scoring_service.engine.stops import StopChecker
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.kernels import reference
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
        logits_1_V = model.head.logits(state)
        token = draw_token(
            logits_1_V, task, call.top_logprobs, sample_index, len(ids), stop_checker
        )
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


def draw_token(
    logits_1_V: Tensor,
    task: SamplingTask,
    top_logprobs: int,
    sample_index: int,
    position: int,
    stop_checker: StopChecker,
) -> DrawnToken:
    """Draws one token and says how likely it was.

    Raises:
        ServiceError: NON_FINITE_LOGITS.
    """
    processing = task.processing
    greedy = processing.temperature == 0.0
    x_1_V = reference.scale(logits_1_V, 1.0 if greedy else processing.temperature)
    lse_1 = reference.logsumexp(x_1_V)
    if not bool(torch.isfinite(lse_1).all()):
        raise ServiceError(
            Fault(Reason.NON_FINITE_LOGITS, f"the logits at position {position} are not finite")
        )
    allowed_1_V, allowed_lse_1 = x_1_V, lse_1
    if stop_checker.bans_stops and stop_checker.stop_ids:
        allowed_1_V = x_1_V.clone()
        allowed_1_V[:, sorted(stop_checker.stop_ids)] = -torch.inf
        allowed_lse_1 = reference.logsumexp(allowed_1_V)
        if not bool(torch.isfinite(allowed_lse_1).all()):
            raise ServiceError(
                Fault(Reason.INVALID_FIELD, "min_tokens and the stop ids leave no token to draw")
            )
    if greedy:
        id_1 = reference.greedy(allowed_1_V)
        processed_1 = torch.zeros(1)
    else:
        keep_1_V = reference.support(
            allowed_1_V, processing.top_k, processing.top_p, processing.min_p
        )
        id_1 = reference.draw(allowed_1_V, keep_1_V, [task.seed], [sample_index], [position])
        kept_1 = reference.log_kept_mass(allowed_1_V, allowed_lse_1, keep_1_V)
        processed_1 = reference.processed_logprobs_at(
            allowed_1_V, allowed_lse_1, keep_1_V, kept_1, id_1
        )
    top_ids: npt.ArrayLike = ()
    top_values: npt.ArrayLike = ()
    if top_logprobs:
        top_1_K = reference.top_k_ids(x_1_V, top_logprobs)
        top_ids = top_1_K[0].int().cpu().numpy()
        top_values = reference.logprobs_at(x_1_V, lse_1, top_1_K)[0].cpu().numpy()
    logprob = reference.logprobs_at(x_1_V, lse_1, id_1[:, None]).item()
    return DrawnToken(int(id_1.item()), logprob, processed_1.item(), top_ids, top_values)
