"""The C++ kernels as functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from scoring_service.kernels.cpu.build import KernelsUnavailableError, compiled_library
from scoring_service.types import Processing

_DTYPES = (torch.float32, torch.bfloat16)
_WIDEST = 2048
_BLOCK_COLUMNS = 64


class CpuKernels:
    """Loads the library into this process; the functions work on dense rows of fp32 or bf16.

    Attributes:
        name: tells builds apart.
    """

    def __init__(self) -> None:
        library = compiled_library()
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            raise KernelsUnavailableError(f"{library} cannot be loaded: {error}") from error
        self.name = library.stem
        self._ops = torch.ops.scoring_cpu
        self._attended = tuple(dtype for dtype in _DTYPES if self._ops.multiplies(dtype))

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the kernels work on such numbers."""
        return dtype in _DTYPES

    def attends(self, dtype: torch.dtype, *widths: int) -> bool:
        """Whether `attend` takes keys and values of such numbers and widths on this processor."""
        fits = all(width % 2 == 0 and width <= _WIDEST for width in widths)
        return dtype in self._attended and fits

    def can_attend(self, queries: Tensor, values: Tensor) -> bool:
        """Whether `attend` takes such tensors."""
        return (
            queries.device.type == "cpu"
            and values.dtype == queries.dtype
            and self.attends(queries.dtype, queries.shape[-1], values.shape[-1])
        )

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        pool: tuple[Tensor, Tensor],
        kept: tuple[Tensor, Tensor],
        tables: tuple[Tensor, Tensor],
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of one layer over a packed step; keys and values of kept rows go to the pool.

        Args:
            queries: [heads, T, D].
            keys: [kv heads, T, D].
            values: [kv heads, T, Dv].
            pool: keys and values of earlier tokens, [kv heads, slots, D and Dv].
            kept: int64 rows [n] of the step to keep, and their slots [n].
            tables: nodes and runs, as `engine.packed.runs` makes them.
            scaling: of scores.
            window: positions that a query sees, its own included; None = all.
            softcap: of scaled scores.
            sinks: fp32 [heads], scores that take part in the sum and have no value.

        Returns:
            [T, heads, Dv]; rows of no node are zero.
        """
        found: Tensor = self._ops.attend(
            *(_dense(tensor) for tensor in (queries, keys, values)),
            *pool,
            *kept,
            *tables,
            scaling,
            window,
            softcap,
            sinks,
        )
        return found

    def multiplies_wide(self, weight_V_H: Tensor) -> bool:
        """Whether `linear` takes such a weight on this processor."""
        return (
            weight_V_H.device.type == "cpu"
            and weight_V_H.dtype == torch.bfloat16
            and weight_V_H.shape[1] % 2 == 0
            and torch.bfloat16 in self._attended
        )

    def pack_linear(self, weight_V_H: Tensor, into: Tensor | None = None) -> Tensor:
        """A bf16 weight in the layout of `linear`, in new memory or in that of another one."""
        blocks = -(-weight_V_H.shape[0] // _BLOCK_COLUMNS)
        shape = (blocks, weight_V_H.shape[1], _BLOCK_COLUMNS)
        packed = weight_V_H.new_empty(shape) if into is None else into
        self._ops.pack_linear(weight_V_H.contiguous(), packed)
        return packed

    def linear(self, rows_T_H: Tensor, packed: Tensor, columns: int) -> Tensor:
        """Products of bf16 rows with a bf16 weight, summed and left in fp32.

        Factors are exact in fp32, so that this is a float32 product in all but the order of sums,
        at the speed of a bf16 one.

        Args:
            rows_T_H: bf16.
            packed: of `pack_linear`.
            columns: V of the weight.

        Returns:
            fp32 [T, V].
        """
        found: Tensor = self._ops.linear(rows_T_H, packed, columns)
        return found

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float, offset: bool) -> Tensor:
        """rows [..., H] over their root mean square, times weight [H].

        With `offset` times 1 + weight and rounded once, as Gemma does it; without, rounded before
        the product too, as Llama does it. The result has the weight's type; of fp32 rows and a bf16
        weight it is rounded once.
        """
        found: Tensor = self._ops.rms_norm(rows, weight, eps, offset)
        return found

    def add_rows(self, residual: Tensor, rows: Tensor, into: Tensor | None = None) -> Tensor:
        """residual (fp32) + rows, in a new tensor or in `into`, which may be the residual."""
        total = torch.empty_like(residual) if into is None else into
        self._ops.add_rows(residual, rows, total)
        return total

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up, rounded after each."""
        found: Tensor = self._ops.silu_mul(gate, up)
        return found

    def rotate(self, heads_T_D: Tensor, cos_T_D: Tensor, sin_T_D: Tensor) -> Tensor:
        """Rotary positions: x * cos + rotate_half(x) * sin of [heads, T, D]."""
        found: Tensor = self._ops.rotate(_dense(heads_T_D), cos_T_D, sin_T_D)
        return found

    def row_sums(
        self, logits_T_V: Tensor, temperatures_T: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What most other numbers of rows of x are made of.

        Here and below x = logits / temperature, divided in fp32, and temperatures are fp32 [T].

        Returns:
            maximum (fp32 [T]), logsumexp (fp64 [T], not finite for broken rows), entropy (nats,
            fp32 [T]) and the number of tokens above -inf (int32 [T]).
        """
        found: tuple[Tensor, Tensor, Tensor, Tensor] = self._ops.row_sums(
            _dense(logits_T_V), temperatures_T
        )
        return found

    def ranks(
        self, logits_T_V: Tensor, temperatures_T: Tensor, ids_T: Tensor, limit: int
    ) -> Tensor:
        """1 + ids below the limit with larger x, or equal x and a lower id; 0 at or above it.

        Args:
            logits_T_V: fp32 or bf16.
            temperatures_T: of the rows.
            ids_T: int64, one a row.
            limit: of the ids that count.

        Returns:
            int32 [T].
        """
        found: Tensor = self._ops.ranks(_dense(logits_T_V), temperatures_T, ids_T, limit)
        return found

    def top_ids(
        self, logits_T_V: Tensor, temperatures_T: Tensor, ks_T: Sequence[int], limit: int
    ) -> Tensor:
        """Ids of the k largest x below the limit, largest first, equal x to the lower id.

        Returns:
            int64 [T, largest k]; zeros behind the list of a row with a smaller one.
        """
        found: Tensor = self._ops.top_ids(_dense(logits_T_V), temperatures_T, ks_T, limit)
        return found

    def log_rests(
        self, logits_T_V: Tensor, temperatures_T: Tensor, last_ids_T: Tensor, limit: int
    ) -> Tensor:
        """Log of the sum of exp(x) over all ids that `top_ids` left out.

        Args:
            logits_T_V: fp32 or bf16.
            temperatures_T: of the rows.
            last_ids_T: int64, the last id of each list.
            limit: of the lists.

        Returns:
            fp64 [T]; -inf where nothing was left out.
        """
        found: Tensor = self._ops.log_rests(_dense(logits_T_V), temperatures_T, last_ids_T, limit)
        return found

    def supports(
        self,
        logits_T_V: Tensor,
        temperatures_T: Tensor,
        sums: tuple[Tensor, Tensor, Tensor],
        processings_T: Sequence[Processing],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What truncation keeps of each row: x above a pivot, and at the pivot the higher ids.

        Args:
            logits_T_V: fp32 or bf16.
            temperatures_T: of the rows.
            sums: maximum, logsumexp and tokens above -inf, as `row_sums` gives them.
            processings_T: whose filters are the rows'.

        Returns:
            pivots (fp32 [T]), the least id that stays at each (int64 [T]), sizes (int32 [T]) and
            the logs of the supports' probabilities before truncation (fp64 [T], at most 0).
        """
        found: tuple[Tensor, Tensor, Tensor, Tensor] = self._ops.supports(
            _dense(logits_T_V), temperatures_T, *sums, *_filters(processings_T)
        )
        return found

    def draw(
        self,
        logits_T_V: Tensor,
        temperatures_T: Tensor,
        sums: tuple[Tensor, Tensor],
        processings_T: Sequence[Processing],
        banned_T: Sequence[Sequence[int]],
        seeds_T: Sequence[int],
        sample_indices_T: Sequence[int],
        positions_T: Sequence[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token of each row's support, distributed as softmax of x over it.

        Args:
            logits_T_V: fp32 or bf16.
            temperatures_T: of the rows.
            sums: maximum and logsumexp, as `row_sums` gives them.
            processings_T: whose filters are the rows'; of a greedy one the best token is taken.
            banned_T: ids that may not be drawn.
            seeds_T: uint64.
            sample_indices_T: of the prompt.
            positions_T: absolute, of the token to draw.

        Returns:
            Tokens, int64 [T], their log-probs in the support, fp32 [T], and whether there was any
            to draw, bool [T].
        """
        found: tuple[Tensor, Tensor, Tensor] = self._ops.draw(
            _dense(logits_T_V),
            temperatures_T,
            *sums,
            [int(processing.greedy) for processing in processings_T],
            *_filters(processings_T),
            [len(ids) for ids in banned_T],
            [token for ids in banned_T for token in ids],
            [seed - (1 << 64) if seed >= 1 << 63 else seed for seed in seeds_T],
            sample_indices_T,
            positions_T,
        )
        return found


def _filters(
    processings_T: Sequence[Processing],
) -> tuple[list[int], list[float], list[float]]:
    """top_k, top_p and the logarithm of min_p of each row."""
    return (
        [processing.top_k for processing in processings_T],
        [processing.top_p for processing in processings_T],
        [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in processings_T],
    )


@lru_cache(maxsize=1)
def load_cpu_kernels() -> CpuKernels:
    """The kernels, compiled if need be.

    Raises:
        KernelsUnavailableError: with the reason.
    """
    return CpuKernels()


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
