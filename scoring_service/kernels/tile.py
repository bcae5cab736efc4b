"""A tile of rows and the numbers that can be asked of it, by the reference or by faster routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoring_service.kernels import candidates, eager, reference


@dataclass(frozen=True, slots=True)
class Truncation:
    """What a truncated distribution says of one token of each row."""

    log_kept_mass_T: Tensor
    """float64: log of the support's probability before truncation."""
    processed_T: Tensor
    """float32: the token's log-prob after it, -inf outside the support."""
    sizes_T: Tensor
    """int32: tokens of the support."""


class Tile(Protocol):
    """Rows x = logits / temperature, float32 [T, V]."""

    x_T_V: Tensor
    logsumexp_T: Tensor
    """float64."""

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        ...

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        ...

    def top_k_ids(self, k: int, token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        ...

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the listed ids, float32 [T]."""
        ...

    def truncate(
        self, top_k: int, top_p: float, min_p: float, ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens.

        Args:
            top_k: 0 = off.
            top_p: 1 = off.
            min_p: 0 = off.
            ids_T: int64, one token a row.
            guarded_T: bool; of these rows, the token always belongs to the support.
        """
        ...


class ReferenceTile:
    """Every number as `reference` has it."""

    def __init__(self, x_T_V: Tensor) -> None:
        self.x_T_V = x_T_V
        self.logsumexp_T = reference.logsumexp(x_T_V)

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return reference.entropy(self.x_T_V, self.logsumexp_T)

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        return reference.rank(self.x_T_V, ids_T, token_id_limit)

    def top_k_ids(self, k: int, token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        return reference.top_k_ids(self.x_T_V[:, :token_id_limit], k)

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the listed ids, float32 [T]."""
        return reference.log_tail_mass(self.x_T_V, self.logsumexp_T, top_ids_T_K)

    def truncate(
        self, top_k: int, top_p: float, min_p: float, ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""
        keep_T_V = reference.support(self.x_T_V, top_k, top_p, min_p)
        rows_G = torch.nonzero(guarded_T)[:, 0]
        keep_T_V[rows_G, ids_T[rows_G]] = True
        kept_T = reference.log_kept_mass(self.x_T_V, self.logsumexp_T, keep_T_V)
        processed_T = reference.processed_logprobs_at(
            self.x_T_V, self.logsumexp_T, keep_T_V, kept_T, ids_T
        )
        return Truncation(kept_T, processed_T, keep_T_V.sum(dim=1, dtype=torch.int32))


class EagerTile:
    """The same numbers in few passes; see `eager` for how far they agree."""

    def __init__(self, x_T_V: Tensor) -> None:
        self.x_T_V = x_T_V
        self._masses = eager.row_masses(x_T_V)
        self.logsumexp_T = self._masses.logsumexp_T

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return eager.entropy(self.x_T_V, self._masses)

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        return eager.rank(self.x_T_V, ids_T, token_id_limit)

    def top_k_ids(self, k: int, token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        return candidates.top_ids(self.x_T_V[:, :token_id_limit], k)

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the listed ids, float32 [T]."""
        return eager.log_tail_mass(self.x_T_V, self._masses, top_ids_T_K)

    def truncate(
        self, top_k: int, top_p: float, min_p: float, ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""
        found, decided_T = eager.support(self.x_T_V, top_k, top_p, min_p)
        rows = torch.arange(len(ids_T), device=ids_T.device)
        is_token_T_M = found.ids_T_M == ids_T[:, None]
        inside_T = (is_token_T_M & found.keep_T_M).any(dim=1)
        log_kept_T = eager.log_kept_mass(found, self._masses)
        logprob_T = self.x_T_V[rows, ids_T].double() - self.logsumexp_T
        sizes_T = found.keep_T_M.sum(dim=1, dtype=torch.int32)
        joins_T = ~inside_T & guarded_T
        log_kept_T = torch.where(joins_T, torch.logaddexp(log_kept_T, logprob_T), log_kept_T)
        log_kept_T = log_kept_T.clamp(max=0.0)
        processed_T = (logprob_T - log_kept_T).float()
        processed_T = processed_T.masked_fill(~(inside_T | joins_T), -torch.inf)
        truncation = Truncation(log_kept_T, processed_T, sizes_T + joins_T.int())
        if bool(decided_T.all()):
            return truncation
        return self._patch(truncation, decided_T, top_k, top_p, min_p, ids_T, guarded_T)

    def _patch(
        self,
        truncation: Truncation,
        decided_T: Tensor,
        top_k: int,
        top_p: float,
        min_p: float,
        ids_T: Tensor,
        guarded_T: Tensor,
    ) -> Truncation:
        """Replaces the rows that the candidates do not decide."""
        left = torch.nonzero(~decided_T)[:, 0]
        exact = ReferenceTile(self.x_T_V[left]).truncate(
            top_k, top_p, min_p, ids_T[left], guarded_T[left]
        )
        for ours, theirs in (
            (truncation.log_kept_mass_T, exact.log_kept_mass_T),
            (truncation.processed_T, exact.processed_T),
            (truncation.sizes_T, exact.sizes_T),
        ):
            ours[left] = theirs
        return truncation
