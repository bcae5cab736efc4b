"""The mathematics of the service, in plain torch: what every other back-end is compared with.

All functions take a tile of rows. Legend: T rows, V vocabulary, K top-K, C candidates. x is
logits / temperature in fp32. Sums run over fp32 exponentials in float64, so that a result carries
the error of its exponentials and not of the order of addition.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoring_service.kernels.philox import token_words

MASS_UNIT = 1 << 40
"""Nucleus masses are int64(exp(x - max) * MASS_UNIT): integers add up in any order to one sum."""


def scale(logits_T_V: Tensor, temperatures: float | Tensor) -> Tensor:
    """x = logits / temperature, divided in fp32. float32 [T, V].

    Args:
        logits_T_V: finished.
        temperatures: of all rows, or float32 [T].
    """
    logits_T_V = logits_T_V.float()
    if isinstance(temperatures, Tensor):
        return logits_T_V / temperatures[:, None]
    if temperatures == 1.0:
        return logits_T_V
    return logits_T_V / torch.tensor(temperatures, dtype=torch.float32, device=logits_T_V.device)


def logsumexp(x_T_V: Tensor) -> Tensor:
    """log(sum(exp(x))) of each row, float64 [T]."""
    max_T = x_T_V.amax(dim=1)
    total_T = torch.exp(x_T_V - max_T[:, None]).sum(dim=1, dtype=torch.float64)
    return max_T.double() + total_T.log()


def logprobs_at(x_T_V: Tensor, logsumexp_T: Tensor, ids_T_C: Tensor) -> Tensor:
    """Log-probs at given ids, float32 [T, C]; NaN where the id is negative (not asked)."""
    x_T_C = x_T_V.gather(1, ids_T_C.clamp(min=0)).double()
    return (x_T_C - logsumexp_T[:, None]).float().masked_fill(ids_T_C < 0, math.nan)


def entropy(x_T_V: Tensor, logsumexp_T: Tensor) -> Tensor:
    """Entropy (nats) of softmax(x), float32 [T].

    log Z - (sum of exp(d) * d) / Z with d = x - max and Z = sum of exp(d): both terms are at least
    0, and neither knows the level of the logits, so a shift of a row changes nothing.
    """
    max_T = x_T_V.amax(dim=1)
    below_T_V = x_T_V - max_T[:, None]
    # A token at -inf has probability 0; its term is 0.
    terms_T_V = (torch.exp(below_T_V) * below_T_V).masked_fill(x_T_V == -math.inf, 0.0)
    log_total_T = logsumexp_T - max_T.double()
    return (
        log_total_T - terms_T_V.sum(dim=1, dtype=torch.float64) * torch.exp(-log_total_T)
    ).float()


def possible_tokens(x_T_V: Tensor) -> Tensor:
    """Tokens with any probability, int32 [T]: all, unless the model rules some out."""
    if bool(x_T_V.amin() > -math.inf):
        return torch.full((len(x_T_V),), x_T_V.shape[1], dtype=torch.int32, device=x_T_V.device)
    return (x_T_V > -math.inf).sum(dim=1, dtype=torch.int32)


def rank(x_T_V: Tensor, ids_T: Tensor, token_id_limit: int | None = None) -> Tensor:
    """1 + tokens with larger x + tokens with equal x and a lower id, int32 [T].

    With `token_id_limit`, only ids below it count, and a token at or above it has rank 0.
    """
    target_T_1 = x_T_V.gather(1, ids_T[:, None])
    ranked_T_V = x_T_V if token_id_limit is None else x_T_V[:, :token_id_limit]
    lower_T_V = torch.arange(ranked_T_V.shape[1], device=x_T_V.device)[None, :] < ids_T[:, None]
    before_T_V = (ranked_T_V > target_T_1) | ((ranked_T_V == target_T_1) & lower_T_V)
    rank_T = 1 + before_T_V.sum(dim=1, dtype=torch.int32)
    return rank_T if token_id_limit is None else rank_T.masked_fill(ids_T >= token_id_limit, 0)


def top_k_ids(x_T_V: Tensor, k: int) -> Tensor:
    """Ids of the k largest x of each row, largest first, equal x to the lower id. int64 [T, K]."""
    ids_T_K = torch.topk(x_T_V, k, dim=1).indices.sort(dim=1).values
    values_T_K, order_T_K = x_T_V.gather(1, ids_T_K).sort(dim=1, descending=True, stable=True)
    ids_T_K = ids_T_K.gather(1, order_T_K)
    # torch.topk keeps any of the ties at the k-th value: rows where that matters are sorted whole.
    crowded_T = (x_T_V >= values_T_K[:, -1:]).sum(dim=1) > k
    if crowded_T.any():
        whole = x_T_V[crowded_T].sort(dim=1, descending=True, stable=True).indices
        ids_T_K[crowded_T] = whole[:, :k]
    return ids_T_K


def log_tail_mass(x_T_V: Tensor, logsumexp_T: Tensor, top_ids_T_K: Tensor) -> Tensor:
    """Log of the probability outside the listed ids, float32 [T]; -inf when none is outside.

    Summed over the excluded tokens relative to the largest of them, because 1 - sum(listed) loses
    every digit on a peaked row.
    """
    rest_T_V = x_T_V.scatter(1, top_ids_T_K, -math.inf)
    max_T = rest_T_V.amax(dim=1)
    safe_T = max_T.masked_fill(max_T == -math.inf, 0.0)
    total_T = torch.exp(rest_T_V - safe_T[:, None]).sum(dim=1, dtype=torch.float64)
    return (safe_T.double() + total_T.log() - logsumexp_T).float().clamp_(max=0.0)


def support(x_T_V: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """The tokens that truncation keeps, bool [T, V].

    top-k keeps x >= the k-th largest, ties included; top-p works on what top-k left; min-p keeps
    x - max >= log(min_p). A token at x = -inf has no probability and is never kept.
    """
    keep_T_V = x_T_V > -math.inf
    vocab = x_T_V.shape[1]
    if 0 < top_k < vocab:
        kth_T_1 = torch.topk(x_T_V, top_k, dim=1).values[:, -1:]
        keep_T_V &= x_T_V >= kth_T_1
    if top_p < 1.0:
        keep_T_V &= _nucleus(x_T_V.masked_fill(~keep_T_V, -math.inf), top_p)
    if min_p > 0.0:
        below_max_T_V = x_T_V.double() - x_T_V.amax(dim=1, keepdim=True).double()
        keep_T_V &= below_max_T_V >= math.log(min_p)
    return keep_T_V


def _nucleus(x_T_V: Tensor, top_p: float) -> Tensor:
    """Drops the tokens whose ascending cumulative mass is at most 1 - p; keeps the best always.

    Ascending by x, and among equal x by id: at the edge the higher ids stay. Masses are integers,
    so the edge does not depend on the order of addition; p is taken in float64.
    """
    sorted_T_V, ids_T_V = x_T_V.sort(dim=1, stable=True)
    below_max_T_V = sorted_T_V.double() - sorted_T_V[:, -1:].double()
    mass_T_V = (torch.exp(below_max_T_V) * MASS_UNIT).to(torch.int64)
    cumulative_T_V = mass_T_V.cumsum(dim=1)
    bound_T_1 = ((1.0 - top_p) * cumulative_T_V[:, -1:].double()).floor().to(torch.int64)
    keep_T_V = cumulative_T_V > bound_T_1
    keep_T_V[:, -1] = True
    return torch.zeros_like(keep_T_V).scatter_(1, ids_T_V, keep_T_V)


def log_kept_mass(x_T_V: Tensor, logsumexp_T: Tensor, keep_T_V: Tensor) -> Tensor:
    """Log of the support's probability before truncation, float64 [T], at most 0."""
    kept_T = logsumexp(x_T_V.masked_fill(~keep_T_V, -math.inf))
    return (kept_T - logsumexp_T).clamp(max=0.0)


def processed_logprobs_at(
    x_T_V: Tensor, logsumexp_T: Tensor, keep_T_V: Tensor, log_kept_mass_T: Tensor, ids_T: Tensor
) -> Tensor:
    """Log-prob - log kept mass inside the support, -inf outside. float32 [T]."""
    ids_T_1 = ids_T[:, None]
    logprob_T = x_T_V.gather(1, ids_T_1)[:, 0].double() - logsumexp_T
    inside_T = keep_T_V.gather(1, ids_T_1)[:, 0]
    return (logprob_T - log_kept_mass_T).float().masked_fill(~inside_T, -math.inf)


def greedy(x_T_V: Tensor) -> Tensor:
    """The id of the largest x of each row, the lowest among equals. int64 [T]."""
    max_T_1 = x_T_V.amax(dim=1, keepdim=True)
    return (x_T_V == max_T_1).to(torch.uint8).argmax(dim=1)


def draw(
    x_T_V: Tensor,
    keep_T_V: Tensor,
    seeds_T: list[int],
    sample_indices_T: list[int],
    positions_T: list[int],
) -> Tensor:
    """One token of each row, distributed exactly as softmax of x over the support. int64 [T].

    The exponential race: with u = (word + 1/2) * 2**-32 and E = -log1p(-u), the token with the
    smallest E / p wins, p being any multiple of its probability. Equal keys go to the lower id.
    """
    words_T_V = token_words(
        seeds_T, sample_indices_T, positions_T, x_T_V.shape[1], device=x_T_V.device
    )
    uniform_T_V = (words_T_V.double() + 0.5) * 2.0**-32
    exponential_T_V = -torch.log1p(-uniform_T_V)
    below_max_T_V = x_T_V.double() - x_T_V.amax(dim=1, keepdim=True).double()
    # log(E / p) orders like E / p and does not overflow for the least likely tokens.
    key_T_V = exponential_T_V.log() - below_max_T_V
    return greedy(-key_T_V.masked_fill(~keep_T_V, math.inf))
