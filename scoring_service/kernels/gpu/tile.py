"""A tile of logits on a CUDA device and what can be asked of its rows, by Triton kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from scoring_service.kernels import reference
from scoring_service.kernels.candidates import top_ids
from scoring_service.kernels.gpu.candidates import SIDE, list_room, top_candidates
from scoring_service.kernels.gpu.layout import by_row, rows_contiguous
from scoring_service.kernels.gpu.partials import RowPartials, logsumexp_of_blocks
from scoring_service.kernels.gpu.race import CHUNK, finish_race, race
from scoring_service.kernels.gpu.rows import BLOCK_COLUMNS
from scoring_service.kernels.gpu.search import LIST_KEYS, MIN_KEY, PIVOTS, search_block
from scoring_service.kernels.gpu.statistics import (
    GROUP_COLUMNS,
    block_statistics,
    block_tail,
)
from scoring_service.kernels.gpu.support import Support, find_support
from scoring_service.kernels.settings import without_banned
from scoring_service.kernels.transfer import to_device_async
from scoring_service.kernels.truncation import Truncation
from scoring_service.types import Processing

MAX_K = 1024
"""Longest list of the top-K kernel; longer ones are torch's to sort."""


Numbers = Sequence[int] | Tensor
"""One for each row; a tensor is int64 and on the device already."""


def ordered_keys(x: Tensor) -> Tensor:
    """int32 keys that order like float32 x, as `rows.ordered` makes them."""
    bits = (x + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def least_x(found: Support) -> Tensor:
    """The x of the pivots, float32 [T]."""
    keys = found.pivots_T
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(torch.float32)


class TritonTile:
    """Rows x = finished logits / temperature, with one read of the logits for most numbers."""

    def __init__(
        self,
        logits_T_V: Tensor,
        temperatures: float | Tensor = 1.0,
        *,
        multiplier: float = 1.0,
        soft_cap: float | None = None,
        targets_T: Tensor | None = None,
        token_id_limit: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Reads the logits once.

        Args:
            logits_T_V: float32, bfloat16 or float16. Copied where columns are not side by side, and
                where x is to take the place of rows that share memory.
            temperatures: of all rows, or float32 [T].
            multiplier: of the logits, before everything else.
            soft_cap: x = cap * tanh(logits / cap), before the temperature.
            targets_T: int64, tokens whose rank comes out of the same read; the host's, or on the
                device.
            token_id_limit: of those ranks.
            overwrite: whether float32 logits may become x where they stand. Else a second tile
                holds x, unless x is the logits themselves.

        Raises:
            ValueError: there is not one temperature or target a row.
        """
        rows, vocab = logits_T_V.shape
        logits_T_V = rows_contiguous(logits_T_V)
        if overwrite and rows > 1 and logits_T_V.stride(0) < vocab:
            logits_T_V = logits_T_V.contiguous()
        device = logits_T_V.device
        neutral = not isinstance(temperatures, Tensor) and temperatures == 1.0
        neutral = neutral and multiplier == 1.0 and soft_cap is None
        self.x_T_V: Tensor
        """float32, or of the logits' own type where x is the logits."""
        if neutral or (overwrite and logits_T_V.dtype == torch.float32):
            self.x_T_V = logits_T_V
        else:
            self.x_T_V = torch.empty((rows, vocab), device=device)
        self.vocab_size = vocab
        self._targets_T = targets_T
        self._target_limit = token_id_limit
        self._listed: tuple[Tensor, int] | None = None
        blocks = triton.cdiv(vocab, BLOCK_COLUMNS)
        self._groups_T_G = torch.empty(
            (rows, triton.cdiv(vocab, GROUP_COLUMNS)), device=device, dtype=self.x_T_V.dtype
        )
        self._possible_T_S = torch.empty((rows, blocks), device=device, dtype=torch.int32)
        partials = RowPartials.empty(rows, blocks, device)
        # What is not asked for costs no launch of its own; these are not read then.
        temperatures_T, targets, target_logits = partials.maxima, partials.best, logits_T_V
        if not neutral:
            if not isinstance(temperatures, Tensor):
                temperatures = torch.full((rows,), float(temperatures), device=device)
            temperatures_T = by_row(temperatures, rows, torch.float32)
        if targets_T is not None:
            targets = _there(by_row(targets_T, rows, torch.int64), device)
            target_logits = logits_T_V.gather(1, targets[:, None])
        block_statistics[(rows, blocks)](
            logits_T_V,
            temperatures_T,
            targets,
            target_logits,
            partials.maxima,
            partials.sums,
            partials.weighted,
            partials.above,
            partials.best,
            self._groups_T_G,
            self._possible_T_S,
            self.x_T_V,
            logits_T_V.stride(0),
            self.x_T_V.stride(0),
            vocab,
            0,
            vocab if token_id_limit is None else token_id_limit,
            blocks,
            0,
            self._groups_T_G.shape[1],
            multiplier,
            soft_cap or 0.0,
            SCALED=multiplier != 1.0,
            CAPPED=soft_cap is not None,
            TEMPERED=not neutral,
            TARGETED=targets_T is not None,
            STORED=not neutral,
            GROUPED=True,
            COUNTED=True,
            BLOCK=BLOCK_COLUMNS,
            GROUP=GROUP_COLUMNS,
            num_warps=8,
        )
        found = partials.combine()
        self.max_T = found.max_T
        self.logsumexp_T = found.logsumexp_T
        self._found = found

    def entropy(self) -> Tensor:
        """Nats, float32 [T]."""
        return self._found.entropy_T

    def greedy(self) -> Tensor:
        """The id of the largest x of each row, the lowest among equals. int64 [T]."""
        # Of a row that is not a distribution there may be none.
        return self._found.best_T.long().clamp(max=self.vocab_size - 1)

    def rank(self, ids_T: Tensor, token_id_limit: int | None) -> Tensor:
        """Of given tokens, int32 [T]: free for the targets the tile was made with.

        The host's ids are compared on the host. To compare a device's the host waits for it.
        """
        targets_T = self._targets_T
        comparable = targets_T is not None and targets_T.device == ids_T.device
        if comparable and self._target_limit == token_id_limit and torch.equal(ids_T, targets_T):  # type: ignore[arg-type]
            return self.rank_of_targets()
        other = TritonTile(self.x_T_V, targets_T=ids_T, token_id_limit=token_id_limit)
        return other.rank_of_targets()

    def rank_of_targets(self) -> Tensor:
        """Of the targets the tile was made with, int32 [T]; 0 at or past the limit."""
        if self._target_limit is None or self._targets_T is None:
            return self._found.rank_T
        targets_T = _there(self._targets_T, self._found.rank_T.device)
        return self._found.rank_T.masked_fill(targets_T >= self._target_limit, 0)

    def possible_tokens(self) -> Tensor:
        """Tokens with any probability, int32 [T]."""
        return self._possible_T_S.sum(dim=1, dtype=torch.int32)

    def logprobs_at(self, ids_T_C: Tensor) -> Tensor:
        """Log-probs at given ids, float32 [T, C]; NaN where the id is negative."""
        return reference.logprobs_at(self.x_T_V, self.logsumexp_T, ids_T_C)

    def top_k_ids(self, k: int | Sequence[int], token_id_limit: int) -> Tensor:
        """int64 [T, K], of ids below the limit; lists of all rows are as long as the longest."""
        k = k if isinstance(k, int) else max(k)
        if k > MAX_K:
            ids_T_K = top_ids(self.x_T_V[:, :token_id_limit].float(), k)
        else:
            ids_T_K = self._top_k_ids(k, token_id_limit)
        self._listed = ids_T_K, token_id_limit
        return ids_T_K

    def _top_k_ids(self, k: int, limit: int) -> Tensor:
        (rows, vocab), device = self.x_T_V.shape, self.max_T.device
        room = list_room(k)
        # Zeros, because a row of NaN may not fill its list, and whatever is there is looked up.
        ids_T_K = torch.zeros((rows, k), device=device, dtype=torch.int64)
        top_candidates[(rows,)](
            self.x_T_V,
            self._groups_T_G,
            self.max_T,
            torch.empty((rows, room), device=device, dtype=torch.int32),
            torch.empty((rows, LIST_KEYS), device=device, dtype=torch.int32),
            torch.empty((rows, room), device=device, dtype=torch.int64),
            ids_T_K,
            self.x_T_V.stride(0),
            self._groups_T_G.shape[1],
            limit,
            triton.cdiv(limit, GROUP_COLUMNS),
            k,
            room,
            MIN_KEY=MIN_KEY,
            KEYS=LIST_KEYS,
            BLOCK=search_block(vocab),
            GROUP=GROUP_COLUMNS,
            PIVOTS=PIVOTS,
            SIDE=SIDE,
            num_warps=8,
        )
        return ids_T_K

    def log_tail_mass(self, top_ids_T_K: Tensor) -> Tensor:
        """Log of the probability outside the listed ids, float32 [T]; -inf when none is outside."""
        if self._listed is None or self._listed[0] is not top_ids_T_K:
            return reference.log_tail_mass(self.x_T_V.float(), self.logsumexp_T, top_ids_T_K)
        rows, vocab = self.x_T_V.shape
        device = self.max_T.device
        blocks = triton.cdiv(vocab, BLOCK_COLUMNS)
        partial = torch.empty((2, rows, blocks), device=device)
        block_tail[(rows, blocks)](
            self.x_T_V,
            top_ids_T_K[:, -1].contiguous(),
            *partial,
            self.x_T_V.stride(0),
            vocab,
            self._listed[1],
            BLOCK=BLOCK_COLUMNS,
            num_warps=8,
        )
        tails_T = logsumexp_of_blocks(*partial) - self.logsumexp_T
        return tails_T.float().clamp_(max=0.0)

    def support(self, top_k: int | Tensor, top_p: float | Tensor, min_p: float | Tensor) -> Support:
        """What truncation keeps.

        Args:
            top_k: of all rows or int32 [T]; 0 = off.
            top_p: of all rows or float64 [T]; 1 = off.
            min_p: of all rows or float64 [T]; 0 = off.

        Raises:
            ValueError: there is not one of them a row.
        """
        return find_support(
            self.x_T_V,
            self._groups_T_G,
            self._possible_T_S,
            self.max_T,
            self.logsumexp_T,
            top_k,
            top_p,
            min_p,
        )

    def truncate(
        self, processings_T: Sequence[Processing], ids_T: Tensor, guarded_T: Tensor
    ) -> Truncation:
        """Truncated log-probs of given tokens."""
        found = self.support(*_filters(processings_T, self.max_T.device))
        x_T = self.x_T_V.gather(1, ids_T[:, None])[:, 0].float()
        keys_T = ordered_keys(x_T)
        inside_T = (keys_T > found.pivots_T) | (
            (keys_T == found.pivots_T) & (ids_T >= found.least_ids_T)
        )
        logprob_T = x_T.double() - self.logsumexp_T
        joins_T = ~inside_T & guarded_T
        joined_T = torch.logaddexp(found.log_kept_mass_T, logprob_T).clamp(max=0.0)
        log_kept_T = torch.where(joins_T, joined_T, found.log_kept_mass_T)
        processed_T = (logprob_T - log_kept_T).float()
        processed_T = processed_T.masked_fill(~(inside_T | joins_T), -math.inf)
        return Truncation(log_kept_T, processed_T, found.sizes_T + joins_T.int())

    def draw(
        self,
        processings_T: Sequence[Processing],
        seeds_T: Sequence[int],
        sample_indices_T: Sequence[int],
        positions_T: Sequence[int],
        banned_T: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their processed log-probs, and whether there was any."""
        numbers = seeds_T, sample_indices_T, positions_T
        if banned_T is not None and any(banned_T):
            allowed = TritonTile(without_banned(self.x_T_V, banned_T))
            return allowed.draw(processings_T, *numbers)
        drawable_T = torch.isfinite(self.logsumexp_T)
        greedy = [processing.greedy for processing in processings_T]
        if all(greedy):
            return self.greedy(), torch.zeros_like(self.max_T), drawable_T
        device = self.max_T.device
        found = None
        if any(processing.truncates for processing in processings_T):
            found = self.support(*_filters(processings_T, device))
        ids_T = self.draw_from(found, *numbers)
        ids_T = ids_T.clamp(max=self.vocab_size - 1)  # of a row that is not a distribution
        x_T = self.x_T_V.gather(1, ids_T[:, None])[:, 0].double()
        processed_T = x_T - self.logsumexp_T
        if found is not None:
            processed_T = processed_T - found.log_kept_mass_T
        if any(greedy):
            greedy_T = to_device_async(torch.tensor(greedy), device)
            ids_T = torch.where(greedy_T, self.greedy(), ids_T)
            processed_T = processed_T.masked_fill(greedy_T, 0.0)
        return ids_T, processed_T.float(), drawable_T

    def draw_from(
        self,
        found: Support | None,
        seeds_T: Numbers,
        sample_indices_T: Numbers,
        positions_T: Numbers,
    ) -> Tensor:
        """One token of each row, distributed exactly as softmax of x over a support. int64 [T].

        Of a row that is not a distribution it may be no token at all.

        Args:
            found: the support; None = every token that is not at -inf.
            seeds_T: uint64; those of a tensor are the int64 of the same bits.
            sample_indices_T: of the prompt.
            positions_T: absolute, of the token to draw.

        Raises:
            ValueError: there is not one of them a row.
        """
        rows, vocab = self.x_T_V.shape
        device = self.max_T.device
        numbers = words_inputs(seeds_T, sample_indices_T, positions_T, device)
        blocks = triton.cdiv(vocab, BLOCK_COLUMNS)
        keys = torch.empty((rows, blocks), device=device)
        ids = torch.empty((rows, blocks), device=device, dtype=torch.int32)
        # Of rows without filters nothing is read there.
        filters = (ids,) * 4
        if found is not None:
            filters = found.pivots_T, found.least_ids_T, found.lists_T_L, found.listed_T
        race[(rows, blocks)](
            self.x_T_V,
            self.max_T,
            *filters,
            *(by_row(column, rows, torch.int64) for column in numbers),
            keys,
            ids,
            self.x_T_V.stride(0),
            vocab,
            0,
            MIN_KEY=MIN_KEY,
            FILTERED=found is not None,
            LIST=1 if found is None else found.lists_T_L.shape[1],
            BLOCK=BLOCK_COLUMNS,
            CHUNK=CHUNK,
            num_warps=8,
        )
        winners_T = torch.empty(rows, device=device, dtype=torch.int64)
        finish_race[(rows,)](
            keys, ids, winners_T, blocks, BLOCKS=triton.next_power_of_2(blocks), num_warps=1
        )
        return winners_T


def words_inputs(
    seeds_T: Numbers, sample_indices_T: Numbers, positions_T: Numbers, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers that words depend on, as int64 [T]; seeds keep their 64 bits."""
    columns = seeds_T, sample_indices_T, positions_T
    if all(isinstance(numbers, Tensor) for numbers in columns):
        return columns  # type: ignore[return-value]
    signed = [[int(n) - (1 << 64) if int(n) >> 63 else int(n) for n in c] for c in columns]
    # One copy to the device instead of three.
    seeds, samples, positions = to_device_async(
        torch.tensor(signed, dtype=torch.int64), device
    ).unbind()
    return seeds, samples, positions


def _filters(
    processings_T: Sequence[Processing], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """top_k, top_p and min_p of each row, on the device."""
    top_k_T = torch.tensor([processing.top_k for processing in processings_T])
    floats = [[p.top_p for p in processings_T], [p.min_p for p in processings_T]]
    floats_2_T = to_device_async(torch.tensor(floats, dtype=torch.float64), device)
    return to_device_async(top_k_T, device), floats_2_T[0], floats_2_T[1]


def _there(ids_T: Tensor, device: torch.device) -> Tensor:
    """Ids on a device."""
    return ids_T if ids_T.device == device else to_device_async(ids_T, device)
