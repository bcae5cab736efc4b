"""A tile of rows and the numbers that can be asked of it, by the reference or by faster routes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from scoring_service.kernels import candidates, eager, reference
from scoring_service.kernels.settings import by_setting, rows_at, without_banned
from scoring_service.kernels.truncation import Truncation, truncate, truncate_by_reference
from scoring_service.types import Processing


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

    def top_k_ids(self, k: int | Sequence[int], token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit.

        Args:
            k: of all rows, or one for each: then K is the largest, and what stands behind a
                shorter list means nothing, but exists.
            token_id_limit: see above.
        """
        ...

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list that `top_k_ids` gave, float32 [T]."""
        ...

    def draw(
        self,
        processings_T: Sequence[Processing],
        seeds_T: Sequence[int],
        sample_indices_T: Sequence[int],
        positions_T: Sequence[int],
        banned_T: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token of each row.

        `reference.draw` of what truncation keeps; of a greedy row the largest x, the lowest id
        among equals, and 0. The id of a row that is no distribution means nothing, but exists.

        Args:
            processings_T: whose filters are the rows'. Their temperatures x has already.
            seeds_T: uint64.
            sample_indices_T: of the prompt.
            positions_T: absolute, of the token to draw.
            banned_T: ids that may not be drawn, at -inf before truncation; None = none.

        Returns:
            Tokens, int64 [T], their processed log-probs, float32 [T], and whether there was any to
            draw, bool [T].
        """
        ...

    def truncate(
        self, processings_T: Sequence[Processing], ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens.

        Args:
            processings_T: whose filters are the rows'. Their temperatures x has already.
            ids_T: int64, one token a row.
            guarded_T: bool; of these rows, the token always belongs to the support. Rows without
                filters are none of them.
        """
        ...


Filters = tuple[int, float, float]
"""top_k, top_p and min_p."""

_OFF: Filters = (0, 1.0, 0.0)


class _TorchTile(ABC):
    """What tiles of torch's operators have in common.

    Filters decide the shapes that these are called with, and so a row's bits: rows of one setting
    are computed together, by a tile of their own.
    """

    x_T_V: Tensor
    logsumexp_T: Tensor

    @abstractmethod
    def __init__(self, x_T_V: Tensor) -> None: ...

    @property
    def vocab_size(self) -> int:
        """Tokens of a row."""
        return self.x_T_V.shape[1]

    def possible_tokens(self) -> Tensor:
        """Tokens with any probability, int32 [T]."""
        return reference.possible_tokens(self.x_T_V)

    def logprobs_at(self, ids_T_C: Tensor) -> Tensor:
        """Log-probs at given ids, float32 [T, C]; NaN where the id is negative."""
        return reference.logprobs_at(self.x_T_V, self.logsumexp_T, ids_T_C)

    def draw(
        self,
        processings_T: Sequence[Processing],
        seeds_T: Sequence[int],
        sample_indices_T: Sequence[int],
        positions_T: Sequence[int],
        banned_T: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their processed log-probs, and whether there was any."""
        columns = seeds_T, sample_indices_T, positions_T
        if banned_T is not None and any(banned_T):
            allowed = type(self)(without_banned(self.x_T_V, banned_T))
            return allowed.draw(processings_T, *columns)

        def drawn(filters: Filters | None, rows: list[int]) -> tuple[Tensor, Tensor]:
            tile = self._of(rows)
            if filters is None:
                return tile._greedy(), torch.zeros_like(tile.x_T_V[:, 0])
            return tile._draw(filters, *([column[row] for row in rows] for column in columns))

        filters_T = [None if p.greedy else _filters(p) for p in processings_T]
        ids_T, processed_T = by_setting(filters_T, drawn)
        return ids_T, processed_T, torch.isfinite(self.logsumexp_T)

    def truncate(
        self, processings_T: Sequence[Processing], ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""

        def truncated(filters: Filters, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            tile, ids_R = self._of(rows), rows_at(ids_T, rows)
            if filters == _OFF:
                logprobs_R = tile.logprobs_at(ids_R[:, None])[:, 0]
                return torch.zeros_like(tile.logsumexp_T), logprobs_R, tile.possible_tokens()
            found = tile._truncate(filters, ids_R, rows_at(guarded_T, rows))
            return found.log_kept_mass_T, found.processed_T, found.sizes_T

        return Truncation(*by_setting([_filters(p) for p in processings_T], truncated))

    def _of(self, rows: list[int]) -> Self:
        """A tile of some rows."""
        x_R_V = rows_at(self.x_T_V, rows)
        return self if x_R_V is self.x_T_V else type(self)(x_R_V)

    @abstractmethod
    def _greedy(self) -> Tensor:
        """The id of the largest x of each row, the lowest among equals. int64 [T]."""

    @abstractmethod
    def _draw(
        self,
        filters: Filters,
        seeds_T: list[int],
        sample_indices_T: list[int],
        positions_T: list[int],
    ) -> tuple[Tensor, Tensor]:
        """`draw` of one setting."""

    @abstractmethod
    def _truncate(self, filters: Filters, ids_T: Tensor, guarded_T: Tensor) -> Truncation:
        """`truncate` of one setting."""


def _filters(processing: Processing) -> Filters:
    return processing.top_k, processing.top_p, processing.min_p


def _longest(k: int | Sequence[int]) -> int:
    return k if isinstance(k, int) else max(k)


class ReferenceTile(_TorchTile):
    """Every number as `reference` has it."""

    def __init__(self, x_T_V: Tensor) -> None:
        self.x_T_V = x_T_V
        self.logsumexp_T = reference.logsumexp(x_T_V)

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return reference.entropy(self.x_T_V, self.logsumexp_T)

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        return reference.rank(self.x_T_V, ids_T.to(self.x_T_V.device), token_id_limit)

    def top_k_ids(self, k: int | Sequence[int], token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit; lists of all rows are as long as the longest."""
        return reference.top_k_ids(self.x_T_V[:, :token_id_limit], _longest(k))

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list, float32 [T]."""
        return reference.log_tail_mass(self.x_T_V, self.logsumexp_T, top_ids_T_K)

    def _greedy(self) -> Tensor:
        return reference.greedy(self.x_T_V)

    def _draw(
        self,
        filters: Filters,
        seeds_T: list[int],
        sample_indices_T: list[int],
        positions_T: list[int],
    ) -> tuple[Tensor, Tensor]:
        keep_T_V = reference.support(self.x_T_V, *filters)
        ids_T = reference.draw(self.x_T_V, keep_T_V, seeds_T, sample_indices_T, positions_T)
        kept_T = reference.log_kept_mass(self.x_T_V, self.logsumexp_T, keep_T_V)
        return ids_T, reference.processed_logprobs_at(
            self.x_T_V, self.logsumexp_T, keep_T_V, kept_T, ids_T
        )

    def _truncate(self, filters: Filters, ids_T: Tensor, guarded_T: Tensor) -> Truncation:
        return truncate_by_reference(self.x_T_V, self.logsumexp_T, *filters, ids_T, guarded_T)


class EagerTile(_TorchTile):
    """The same numbers in few passes; see `eager` for how far they agree."""

    def __init__(self, x_T_V: Tensor) -> None:
        self.x_T_V = x_T_V
        self._masses = eager.row_masses(x_T_V)
        self.max_T = self._masses.max_T
        self.logsumexp_T = self._masses.logsumexp_T

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return eager.entropy(self.x_T_V, self._masses)

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]."""
        return eager.rank(self.x_T_V, ids_T.to(self.x_T_V.device), token_id_limit)

    def top_k_ids(self, k: int | Sequence[int], token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit; lists of all rows are as long as the longest."""
        return candidates.top_ids(self.x_T_V[:, :token_id_limit], _longest(k))

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the list, float32 [T]."""
        return eager.log_tail_mass(self.x_T_V, self._masses, top_ids_T_K)

    def _greedy(self) -> Tensor:
        return self.top_k_ids(1, self.vocab_size)[:, 0]

    def _draw(
        self,
        filters: Filters,
        seeds_T: list[int],
        sample_indices_T: list[int],
        positions_T: list[int],
    ) -> tuple[Tensor, Tensor]:
        numbers = seeds_T, sample_indices_T, positions_T
        top_k, top_p, min_p = filters
        if not (0 < top_k < self.vocab_size or top_p < 1.0 or min_p > 0.0):
            ids_T = reference.draw(self.x_T_V, self.x_T_V > -torch.inf, *numbers)
            return ids_T, self.logprobs_at(ids_T[:, None])[:, 0]
        found, decided_T = eager.support(self.x_T_V, *filters)
        ids_T = eager.draw(found, *numbers)
        log_kept_T = eager.log_kept_mass(found, self.max_T, self.logsumexp_T)
        # Rows that the candidates do not decide, unless they cannot be drawn from at all.
        left = torch.nonzero(~decided_T & torch.isfinite(self.logsumexp_T))[:, 0]
        if len(left):
            x_L_V, rows = self.x_T_V[left], left.tolist()
            keep_L_V = reference.support(x_L_V, *filters)
            numbers_L = ([values[row] for row in rows] for values in numbers)
            ids_T[left] = reference.draw(x_L_V, keep_L_V, *numbers_L)
            log_kept_T[left] = reference.log_kept_mass(x_L_V, self.logsumexp_T[left], keep_L_V)
        ids_T = ids_T.clamp(max=self.vocab_size - 1)  # of a row that is not a distribution
        x_T = self.x_T_V.gather(1, ids_T[:, None])[:, 0].double()
        return ids_T, (x_T - self.logsumexp_T - log_kept_T).float()

    def _truncate(self, filters: Filters, ids_T: Tensor, guarded_T: Tensor) -> Truncation:
        return truncate(self.x_T_V, self.max_T, self.logsumexp_T, *filters, ids_T, guarded_T)
