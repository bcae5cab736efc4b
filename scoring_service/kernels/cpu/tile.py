"""A tile of rows on a CPU: numbers from the logits as they lie, by the C++ kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from scoring_service.kernels import reference
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.kernels.truncation import Truncation, of_tokens
from scoring_service.types import Processing


class CompiledTile:
    """Rows x = logits / temperature; x itself is made only for who asks for it.

    Agrees with `reference` to within 1e-5 in log-probs and the logarithms of masses, and exactly
    in ids, ranks and supports.
    """

    def __init__(
        self, kernels: CpuKernels, logits_T_V: Tensor, temperatures: float | Tensor
    ) -> None:
        """Reads the logits once.

        Args:
            kernels: the compiled library.
            logits_T_V: float32 or bfloat16, finished.
            temperatures: of all rows, or float32 [T].
        """
        rows, vocab = logits_T_V.shape
        self._kernels = kernels
        self._logits_T_V = logits_T_V
        self._temperatures = temperatures
        if not isinstance(temperatures, Tensor):
            temperatures = torch.full((rows,), temperatures, dtype=torch.float32)
        self._rows = logits_T_V, temperatures
        self._limit = vocab
        """Of the list that was asked for last."""
        self.vocab_size = vocab
        sums = kernels.row_sums(*self._rows)
        self.max_T, self.logsumexp_T, self._entropy_T, self._possible_T = sums

    @cached_property
    def x_T_V(self) -> Tensor:  # noqa: N802
        """float32."""
        return reference.scale(self._logits_T_V, self._temperatures)

    def x_at(self, ids_T_C: Tensor) -> Tensor:
        """float32 [T, C]."""
        return reference.scale(self._logits_T_V.gather(1, ids_T_C), self._temperatures)

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
        return self._kernels.ranks(*self._rows, ids_T.contiguous(), limit)

    def top_k_ids(self, k: int | Sequence[int], token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        self._limit = token_id_limit
        ks_T = [k] * len(self._logits_T_V) if isinstance(k, int) else k
        return self._kernels.top_ids(*self._rows, ks_T, token_id_limit)

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list, float32 [T]; -inf when none is outside."""
        last_ids_T = top_ids_T_K[:, -1].contiguous()
        log_rests_T = self._kernels.log_rests(*self._rows, last_ids_T, self._limit)
        return (log_rests_T - self.logsumexp_T).float().clamp_(max=0.0)

    def draw(
        self,
        processings_T: Sequence[Processing],
        seeds_T: Sequence[int],
        sample_indices_T: Sequence[int],
        positions_T: Sequence[int],
        banned_T: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their processed log-probs, and whether there was any."""
        sums = self.max_T, self.logsumexp_T
        numbers = seeds_T, sample_indices_T, positions_T
        banned_T = [()] * len(processings_T) if banned_T is None else banned_T
        return self._kernels.draw(*self._rows, sums, processings_T, banned_T, *numbers)

    def truncate(
        self, processings_T: Sequence[Processing], ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""
        sums = self.max_T, self.logsumexp_T, self._possible_T
        found = self._kernels.supports(*self._rows, sums, processings_T)
        pivot_T, least_id_T, size_T, log_kept_T = found
        x_T = self.x_at(ids_T[:, None])[:, 0]
        inside_T = (x_T > pivot_T) | ((x_T == pivot_T) & (ids_T >= least_id_T))
        logprob_T = x_T.double() - self.logsumexp_T
        return of_tokens(logprob_T, inside_T, guarded_T, log_kept_T, size_T)
