"""Numbers of rows in few passes of plain torch: the back-end of CPUs, and of GPUs without Triton.

Agrees with `reference` to within 1e-5 in log-probs and in the logarithms of masses, and exactly in
ids, ranks and supports. What a shortcut cannot decide exactly (a nucleus wider than the candidates,
ties that run on beyond them, a tail so small that fp32 cannot hold it) is left to `reference`, row
by row.

Legend: T rows, V vocabulary, M candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoring_service.kernels import reference
from scoring_service.kernels.candidates import top_ids
from scoring_service.kernels.philox import words_at

_CANDIDATES = 1024
"""Tokens looked at for a support that no top-k bounds."""

_SMALL_TAIL = 1e-6
"""Below this, a tail mass is summed as `reference` does it."""


@dataclass(frozen=True, slots=True)
class RowMasses:
    """What most other numbers of a row are made of."""

    max_T: Tensor
    probabilities_T_V: Tensor
    logsumexp_T: Tensor
    """float64."""


_SUMMED = 2048
"""Numbers that are added in their own type, before float64 adds the sums."""


def _sums(values_T_V: Tensor) -> Tensor:
    """Of each row, float64 [T].

    In two levels: in float32 alone a large vocabulary's small terms are lost beside a large one.
    It also keeps a row's bits the same in any company: torch divides a single long sum among its
    threads.
    """
    whole = values_T_V.shape[1] // _SUMMED * _SUMMED
    blocks_T_B_S = values_T_V[:, :whole].unflatten(1, (-1, _SUMMED))
    rest_T = values_T_V[:, whole:].sum(dim=1)
    of_blocks_T: Tensor = blocks_T_B_S.sum(dim=2).double().sum(dim=1)
    return of_blocks_T + rest_T.double()


def row_masses(x_T_V: Tensor) -> RowMasses:
    """Softmax and logsumexp of float32 [T, V]; logsumexp is not finite for broken rows."""
    max_T = x_T_V.amax(dim=1)
    probabilities_T_V = (x_T_V - max_T[:, None]).exp_()
    total_T = _sums(probabilities_T_V)
    probabilities_T_V.div_(total_T[:, None].float())
    return RowMasses(max_T, probabilities_T_V, max_T.double() + total_T.log())


def entropy(x_T_V: Tensor, masses: RowMasses) -> Tensor:
    """Entropy (nats), float32 [T]: logsumexp - sum of p * x, both relative to the maximum."""
    below_T_V = (x_T_V - masses.max_T[:, None]).clamp_(min=-1e30)
    mean_T = _sums(below_T_V.mul_(masses.probabilities_T_V))
    return (masses.logsumexp_T - masses.max_T.double() - mean_T).float()


def rank(x_T_V: Tensor, ids_T: Tensor, token_id_limit: int | None = None) -> Tensor:
    """1 + tokens with larger x + tokens with equal x and a lower id, int32 [T].

    With `token_id_limit`, only ids below it count, and a token at or above it has rank 0.
    """
    target_T_1 = x_T_V.gather(1, ids_T[:, None])
    ranked_T_V = x_T_V if token_id_limit is None else x_T_V[:, :token_id_limit]
    flags_T_V = torch.empty_like(ranked_T_V)
    larger_T = torch.gt(ranked_T_V, target_T_1, out=flags_T_V).sum(dim=1)
    equal_T = torch.eq(ranked_T_V, target_T_1, out=flags_T_V).sum(dim=1)
    rank_T = 1 + larger_T.int()
    # fp32 counts are exact below 2**24, and no vocabulary is that large.
    if bool((equal_T > 1).any()):
        tied_T = equal_T > 1
        rank_T[tied_T] = reference.rank(x_T_V[tied_T], ids_T[tied_T], token_id_limit)
    return rank_T if token_id_limit is None else rank_T.masked_fill(ids_T >= token_id_limit, 0)


def log_tail_mass(x_T_V: Tensor, masses: RowMasses, top_ids_T_K: Tensor) -> Tensor:
    """Log of the probability outside the listed ids, float32 [T]; -inf when none is outside."""
    rest_T_V = masses.probabilities_T_V.scatter(1, top_ids_T_K, 0.0)
    tail_T = _sums(rest_T_V)
    small_T = tail_T < _SMALL_TAIL
    log_tail_T = tail_T.log().float().clamp_(max=0.0)
    if bool(small_T.any()):
        log_tail_T[small_T] = reference.log_tail_mass(
            x_T_V[small_T], masses.logsumexp_T[small_T], top_ids_T_K[small_T]
        )
    return log_tail_T


@dataclass(frozen=True, slots=True)
class Support:
    """What truncation keeps of each row, as a list of candidates."""

    ids_T_M: Tensor
    """int64, by descending x."""
    below_max_T_M: Tensor
    """float64: x - max."""
    keep_T_M: Tensor
    """bool."""


def support(x_T_V: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Support, Tensor]:
    """The support of each row where `_CANDIDATES` or top_k tokens decide it.

    Returns:
        The support, and bool [T]: whether the row is decided. Undecided rows are `reference`'s.
    """
    rows, vocab = x_T_V.shape
    bounded = 0 < top_k < vocab
    # One token more than top-k keeps shows whether a tie runs on.
    count = min(vocab, top_k + 32 if bounded else _CANDIDATES)
    ids_T_M = top_ids(x_T_V, count)
    x_T_M = x_T_V.gather(1, ids_T_M)
    # Ties by descending id: at the edge of the nucleus the higher ids stay.
    order = torch.argsort(ids_T_M, dim=1, descending=True)
    ids_T_M, x_T_M = ids_T_M.gather(1, order), x_T_M.gather(1, order)
    x_T_M, order = torch.sort(x_T_M, dim=1, descending=True, stable=True)
    ids_T_M = ids_T_M.gather(1, order)
    below_T_M = x_T_M.double() - x_T_M[:, :1].double()
    last_T = x_T_M[:, -1]
    keep_T_M = x_T_M > -math.inf
    decided_T = torch.full((rows,), count == vocab, device=x_T_V.device)
    if bounded:
        keep_T_M &= x_T_M >= x_T_M[:, top_k - 1 : top_k]
        decided_T |= last_T < x_T_M[:, top_k - 1]
    if top_p < 1.0:
        mass_T_M = (torch.exp(below_T_M) * reference.MASS_UNIT).to(torch.int64)
        if bounded or count == vocab:
            mass_T_M = mass_T_M.masked_fill(~keep_T_M, 0)
            total_T = mass_T_M.sum(dim=1)
        else:
            below_T_V = x_T_V.double() - x_T_M[:, :1].double()
            total_T = (torch.exp(below_T_V) * reference.MASS_UNIT).to(torch.int64).sum(dim=1)
        # Ascending cumulative mass up to a token = total - what comes before it in this order.
        ascending_T_M = total_T[:, None] - (mass_T_M.cumsum(dim=1) - mass_T_M)
        bound_T_1 = ((1.0 - top_p) * total_T[:, None].double()).floor().to(torch.int64)
        nucleus_T_M = ascending_T_M > bound_T_1
        nucleus_T_M[:, 0] = True
        keep_T_M &= nucleus_T_M
        if not bounded:
            # Ties of the least likely token kept may run on beyond the candidates.
            edge_T = x_T_M.masked_fill(~nucleus_T_M, math.inf).amin(dim=1)
            decided_T |= edge_T > last_T
    if min_p > 0.0:
        keep_T_M &= below_T_M >= math.log(min_p)
        if not bounded:
            decided_T |= below_T_M[:, -1] < math.log(min_p)
    return Support(ids_T_M, below_T_M, keep_T_M), decided_T


def log_kept_mass(found: Support, max_T: Tensor, logsumexp_T: Tensor) -> Tensor:
    """Log of the support's probability before truncation, float64 [T], at most 0."""
    kept_T_M = torch.exp(found.below_max_T_M).masked_fill(~found.keep_T_M, 0.0)
    log_kept_T = max_T.double() + _sums(kept_T_M).log()
    return (log_kept_T - logsumexp_T).clamp(max=0.0)


def draw(
    found: Support, seeds_T: list[int], sample_indices_T: list[int], positions_T: list[int]
) -> Tensor:
    """`reference.draw` over the candidates of a decided support, int64 [T]."""
    words_T_M = words_at(seeds_T, sample_indices_T, positions_T, found.ids_T_M)
    uniform_T_M = (words_T_M.double() + 0.5) * 2.0**-32
    key_T_M = (-torch.log1p(-uniform_T_M)).log() - found.below_max_T_M
    key_T_M = key_T_M.masked_fill(~found.keep_T_M, math.inf)
    least_T_1 = key_T_M.amin(dim=1, keepdim=True)
    # Equal keys go to the lower id.
    no_id = torch.iinfo(torch.int64).max
    return found.ids_T_M.masked_fill(key_T_M != least_T_1, no_id).amin(dim=1)
