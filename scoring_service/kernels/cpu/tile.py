"""A tile of rows on a CPU: numbers from the logits as they lie, by the C++ kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scoring_service.kernels import reference
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.kernels.truncation import Truncation, of_tokens


class CompiledTile:
    """Rows x = logits / temperature; x itself is made only for who asks for it.

    Agrees with `reference` to within 1e-5 in log-probs and the logarithms of masses, and exactly
    in ids, ranks and supports.
    """

    def __init__(self, kernels: CpuKernels, logits_T_V: Tensor, temperature: float) -> None:
        """Reads the logits once.

        Args:
            kernels: the compiled library.
            logits_T_V: float32 or bfloat16, finished.
            temperature: of all rows.
        """
        self._kernels = kernels
        self._logits_T_V = logits_T_V
        self._temperature = temperature
        self._limit = logits_T_V.shape[1]
        """Of the list that was asked for last."""
        self.vocab_size = logits_T_V.shape[1]
        sums = kernels.row_sums(logits_T_V, temperature)
        self.max_T, self.logsumexp_T, self._entropy_T, self._possible_T = sums

    @cached_property
    def x_T_V(self) -> Tensor:  # noqa: N802
        """float32."""
        return reference.scale(self._logits_T_V, self._temperature)

    def x_at(self, ids_T_C: Tensor) -> Tensor:
        """float32 [T, C]."""
        return reference.scale(self._logits_T_V.gather(1, ids_T_C), self._temperature)

    def possible_tokens(self) -> Tensor:
        """Tokens with any probability, int32 [T]."""
        return self._possible_T

    def logprobs_at(self, ids_T_C: Tensor) -> Tensor:
        """Log-probs at given ids, float32 [T, C]; NaN where the id is negative."""
        x_T_C = self.x_at(ids_T_C.clamp(min=0)).double()
        logprobs_T_C = (x_T_C - self.logsumexp_T[:, None]).float()
        return logprobs_T_C.masked_fill_(ids_T_C < 0, torch.nan)

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return self._entropy_T

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        limit = self.vocab_size if token_id_limit is None else token_id_limit
        return self._kernels.ranks(self._logits_T_V, self._temperature, ids_T.contiguous(), limit)

    def top_k_ids(self, k: int, token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        self._limit = token_id_limit
        return self._kernels.top_ids(self._logits_T_V, self._temperature, k, token_id_limit)

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list, float32 [T]; -inf when none is outside."""
        last_ids_T = top_ids_T_K[:, -1].contiguous()
        log_rests_T = self._kernels.log_rests(
            self._logits_T_V, self._temperature, last_ids_T, self._limit
        )
        return (log_rests_T - self.logsumexp_T).float().clamp_(max=0.0)

    def greedy(self) -> Tensor:
        """The id of the largest x of each row, the lowest among equals. int64 [T]."""
        return self._kernels.top_ids(self._logits_T_V, self._temperature, 1, self.vocab_size)[:, 0]

    def draw(
        self,
        top_k: int,
        top_p: float,
        min_p: float,
        seeds_T: list[int],
        sample_indices_T: list[int],
        positions_T: list[int],
    ) -> tuple[Tensor, Tensor]:
        """Tokens, int64 [T], and their processed log-probs, float32 [T]."""
        found = self._support(top_k, top_p, min_p)
        ids_T = self._kernels.race(
            self._logits_T_V,
            self._temperature,
            self.max_T,
            found.pivot_T,
            found.least_id_T,
            seeds_T,
            sample_indices_T,
            positions_T,
        )
        x_T = self.x_at(ids_T[:, None])[:, 0].double()
        return ids_T, (x_T - self.logsumexp_T - found.log_kept_T).float()

    def truncate(
        self, top_k: int, top_p: float, min_p: float, ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""
        found = self._support(top_k, top_p, min_p)
        x_T = self.x_at(ids_T[:, None])[:, 0]
        inside_T = (x_T > found.pivot_T) | ((x_T == found.pivot_T) & (ids_T >= found.least_id_T))
        logprob_T = x_T.double() - self.logsumexp_T
        return of_tokens(logprob_T, inside_T, guarded_T, found.log_kept_T, found.size_T)

    def _support(self, top_k: int, top_p: float, min_p: float) -> _Support:
        pivot_T, least_id_T, size_T, log_mass_T = self._kernels.supports(
            self._logits_T_V, self._temperature, self.max_T, top_k, top_p, min_p
        )
        log_kept_T = (self.max_T.double() + log_mass_T - self.logsumexp_T).clamp_(max=0.0)
        return _Support(pivot_T, least_id_T, size_T, log_kept_T)


@dataclass(frozen=True, slots=True)
class _Support:
    """x above the pivot, and at it the ids from the least one on. [T] each."""

    pivot_T: Tensor
    least_id_T: Tensor
    size_T: Tensor
    log_kept_T: Tensor
    """float64."""
