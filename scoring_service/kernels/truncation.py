"""What truncation makes of one token of each row, by way of candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoring_service.kernels import eager, reference


@dataclass(frozen=True, slots=True)
class Truncation:
    """What a truncated distribution says of one token of each row."""

    log_kept_mass_T: Tensor
    """float64: log of the support's probability before truncation."""
    processed_T: Tensor
    """float32: the token's log-prob after it, -inf outside the support."""
    sizes_T: Tensor
    """int32: tokens of the support."""


def truncate_by_reference(
    x_T_V: Tensor,
    logsumexp_T: Tensor,
    top_k: int,
    top_p: float,
    min_p: float,
    ids_T: Tensor,
    guarded_T: Tensor,
) -> Truncation:
    """Truncated log-probs of given tokens, as `reference` has them.

    Args:
        x_T_V: float32.
        logsumexp_T: float64.
        top_k: 0 = off.
        top_p: 1 = off.
        min_p: 0 = off.
        ids_T: int64, one token a row.
        guarded_T: bool; of these rows, the token always belongs to the support.
    """
    keep_T_V = reference.support(x_T_V, top_k, top_p, min_p)
    rows_G = torch.nonzero(guarded_T)[:, 0]
    keep_T_V[rows_G, ids_T[rows_G]] = True
    kept_T = reference.log_kept_mass(x_T_V, logsumexp_T, keep_T_V)
    processed_T = reference.processed_logprobs_at(x_T_V, logsumexp_T, keep_T_V, kept_T, ids_T)
    return Truncation(kept_T, processed_T, keep_T_V.sum(dim=1, dtype=torch.int32))


def of_tokens(
    logprob_T: Tensor, inside_T: Tensor, guarded_T: Tensor, log_kept_T: Tensor, sizes_T: Tensor
) -> Truncation:
    """What supports say of one token of each row.

    Args:
        logprob_T: float64, of the tokens before truncation.
        inside_T: bool, whether the support holds them.
        guarded_T: bool, whether they belong to it in any case.
        log_kept_T: float64, of the supports.
        sizes_T: int32, of the supports.
    """
    joins_T = ~inside_T & guarded_T
    log_kept_T = torch.where(joins_T, torch.logaddexp(log_kept_T, logprob_T), log_kept_T)
    log_kept_T = log_kept_T.clamp(max=0.0)
    processed_T = (logprob_T - log_kept_T).float()
    processed_T = processed_T.masked_fill(~(inside_T | joins_T), -torch.inf)
    return Truncation(log_kept_T, processed_T, sizes_T + joins_T.int())


def truncate(
    x_T_V: Tensor,
    max_T: Tensor,
    logsumexp_T: Tensor,
    top_k: int,
    top_p: float,
    min_p: float,
    ids_T: Tensor,
    guarded_T: Tensor,
) -> Truncation:
    """`truncate_by_reference` from the most likely tokens; what they do not decide is its."""
    found, decided_T = eager.support(x_T_V, top_k, top_p, min_p)
    rows = torch.arange(len(ids_T), device=ids_T.device)
    is_token_T_M = found.ids_T_M == ids_T[:, None]
    inside_T = (is_token_T_M & found.keep_T_M).any(dim=1)
    log_kept_T = eager.log_kept_mass(found, max_T, logsumexp_T)
    logprob_T = x_T_V[rows, ids_T].double() - logsumexp_T
    sizes_T = found.keep_T_M.sum(dim=1, dtype=torch.int32)
    truncation = of_tokens(logprob_T, inside_T, guarded_T, log_kept_T, sizes_T)
    left = torch.nonzero(~decided_T)[:, 0]
    if len(left):
        exact = truncate_by_reference(
            x_T_V[left], logsumexp_T[left], top_k, top_p, min_p, ids_T[left], guarded_T[left]
        )
        truncation.log_kept_mass_T[left] = exact.log_kept_mass_T
        truncation.processed_T[left] = exact.processed_T
        truncation.sizes_T[left] = exact.sizes_T
    return truncation
