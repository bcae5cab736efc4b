"""A tile of rows and the numbers that can be asked of it, by the reference or by faster routes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from scoring_service.kernels import candidates, eager, reference
from scoring_service.kernels.truncation import Truncation, truncate, truncate_by_reference


class Tile(Protocol):
    """Rows x = logits / temperature."""

    @property
    def x_T_V(self) -> Tensor:  # noqa: N802
        """float32."""
        ...

    @property
    def logsumexp_T(self) -> Tensor:  # noqa: N802
        """float64."""
        ...

    @property
    def vocab_size(self) -> int:
        """Tokens of a row."""
        ...

    def possible_tokens(self) -> Tensor:
        """Tokens with any probability, int32 [T]."""
        ...

    def logprobs_at(self, ids_T_C: Tensor) -> Tensor:
        """Log-probs at given ids, float32 [T, C]; NaN where the id is negative."""
        ...

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        ...

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]; the ids may be the host's."""
        ...

    def top_k_ids(self, k: int, token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        ...

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list that `top_k_ids` gave, float32 [T]."""
        ...

    def greedy(self) -> Tensor:
        """The id of the largest x of each row, the lowest among equals. int64 [T].

        Here and in `draw`, the id of a row that is no distribution means nothing, but exists.
        """
        ...

    def draw(
        self,
        top_k: int,
        top_p: float,
        min_p: float,
        seeds_T: list[int],
        sample_indices_T: list[int],
        positions_T: list[int],
    ) -> tuple[Tensor, Tensor]:
        """Tokens, int64 [T], and their processed log-probs, float32 [T].

        `reference.draw` of what truncation keeps.

        Args:
            top_k: 0 = off.
            top_p: 1 = off.
            min_p: 0 = off.
            seeds_T: uint64.
            sample_indices_T: of the prompt.
            positions_T: absolute, of the token to draw.
        """
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
        self.vocab_size = x_T_V.shape[1]

    def possible_tokens(self) -> Tensor:
        """Tokens with any probability, int32 [T]."""
        return reference.possible_tokens(self.x_T_V)

    def logprobs_at(self, ids_T_C: Tensor) -> Tensor:
        """Log-probs at given ids, float32 [T, C]; NaN where the id is negative."""
        return reference.logprobs_at(self.x_T_V, self.logsumexp_T, ids_T_C)

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return reference.entropy(self.x_T_V, self.logsumexp_T)

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        return reference.rank(self.x_T_V, ids_T.to(self.x_T_V.device), token_id_limit)

    def top_k_ids(self, k: int, token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        return reference.top_k_ids(self.x_T_V[:, :token_id_limit], k)

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list, float32 [T]."""
        return reference.log_tail_mass(self.x_T_V, self.logsumexp_T, top_ids_T_K)

    def greedy(self) -> Tensor:
        """The id of the largest x of each row, the lowest among equals. int64 [T]."""
        return reference.greedy(self.x_T_V)

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
        keep_T_V = reference.support(self.x_T_V, top_k, top_p, min_p)
        ids_T = reference.draw(self.x_T_V, keep_T_V, seeds_T, sample_indices_T, positions_T)
        kept_T = reference.log_kept_mass(self.x_T_V, self.logsumexp_T, keep_T_V)
        return ids_T, reference.processed_logprobs_at(
            self.x_T_V, self.logsumexp_T, keep_T_V, kept_T, ids_T
        )

    def truncate(
        self, top_k: int, top_p: float, min_p: float, ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""
        return truncate_by_reference(
            self.x_T_V, self.logsumexp_T, top_k, top_p, min_p, ids_T, guarded_T
        )


class EagerTile:
    """The same numbers in few passes; see `eager` for how far they agree."""

    def __init__(self, x_T_V: Tensor) -> None:
        self.x_T_V = x_T_V
        self._masses = eager.row_masses(x_T_V)
        self.max_T = self._masses.max_T
        self.logsumexp_T = self._masses.logsumexp_T
        self.vocab_size = x_T_V.shape[1]

    def possible_tokens(self) -> Tensor:
        """Tokens with any probability, int32 [T]."""
        return reference.possible_tokens(self.x_T_V)

    def logprobs_at(self, ids_T_C: Tensor) -> Tensor:
        """Log-probs at given ids, float32 [T, C]; NaN where the id is negative."""
        return reference.logprobs_at(self.x_T_V, self.logsumexp_T, ids_T_C)

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return eager.entropy(self.x_T_V, self._masses)

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        return eager.rank(self.x_T_V, ids_T.to(self.x_T_V.device), token_id_limit)

    def top_k_ids(self, k: int, token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit."""
        return candidates.top_ids(self.x_T_V[:, :token_id_limit], k)

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list, float32 [T]."""
        return eager.log_tail_mass(self.x_T_V, self._masses, top_ids_T_K)

    def greedy(self) -> Tensor:
        """The id of the largest x of each row, the lowest among equals. int64 [T]."""
        return self.top_k_ids(1, self.vocab_size)[:, 0]

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
        numbers = seeds_T, sample_indices_T, positions_T
        if not (0 < top_k < self.vocab_size or top_p < 1.0 or min_p > 0.0):
            ids_T = reference.draw(self.x_T_V, self.x_T_V > -torch.inf, *numbers)
            return ids_T, self.logprobs_at(ids_T[:, None])[:, 0]
        found, decided_T = eager.support(self.x_T_V, top_k, top_p, min_p)
        ids_T = eager.draw(found, *numbers)
        log_kept_T = eager.log_kept_mass(found, self.max_T, self.logsumexp_T)
        # Rows that the candidates do not decide, unless they cannot be drawn from at all.
        left = torch.nonzero(~decided_T & torch.isfinite(self.logsumexp_T))[:, 0]
        if len(left):
            x_L_V, rows = self.x_T_V[left], left.tolist()
            keep_L_V = reference.support(x_L_V, top_k, top_p, min_p)
            numbers_L = ([values[row] for row in rows] for values in numbers)
            ids_T[left] = reference.draw(x_L_V, keep_L_V, *numbers_L)
            log_kept_T[left] = reference.log_kept_mass(x_L_V, self.logsumexp_T[left], keep_L_V)
        ids_T = ids_T.clamp(max=self.vocab_size - 1)  # of a row that is not a distribution
        x_T = self.x_T_V.gather(1, ids_T[:, None])[:, 0].double()
        return ids_T, (x_T - self.logsumexp_T - log_kept_T).float()

    def truncate(
        self, top_k: int, top_p: float, min_p: float, ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""
        return truncate(
            self.x_T_V, self.max_T, self.logsumexp_T, top_k, top_p, min_p, ids_T, guarded_T
        )
