"""A tile of logits to the numbers that were asked of its rows, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.outputs.arrival import on_their_way
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.kernels.tile import Tile
from scoring_service.kernels.transfer import to_device_async
from scoring_service.types import Int32Array, Processing, RowBlock, RowWants

_LOGSUMEXP = "float64 logsumexp"

_REALISED = ("logprobs", "processed_logprobs", "ranks")


def compute_rows(
    tile: Tile,
    realised_ids_T: Int32Array,
    processings_T: Sequence[Processing],
    wants: RowWants,
    candidate_ids_T_C: Int32Array | None,
) -> RowBlock:
    """Numbers of a tile of rows; see `begin_rows`.

    Raises:
        ServiceError: NON_FINITE_LOGITS, when a row is not a distribution.
    """
    return begin_rows(tile, realised_ids_T, processings_T, wants, candidate_ids_T_C)()


def begin_rows(
    tile: Tile,
    realised_ids_T: Int32Array,
    processings_T: Sequence[Processing],
    wants: RowWants,
    candidate_ids_T_C: Int32Array | None,
) -> Callable[[], RowBlock]:
    """Asks for the numbers of a tile of rows. The call of what it returns waits for them.

    A GPU makes and copies them meanwhile; of the tile it needs nothing that is asked for later, so
    that its memory may go to whatever comes next.

    Args:
        tile: the rows at their temperatures.
        realised_ids_T: the realised token of each row; -1 = none, as in a next_token row, whose
            numbers of realised tokens mean nothing (see `cut_rows`).
        processings_T: of each row, any mixture.
        wants: what to compute.
        candidate_ids_T_C: ids per row, -1 = not asked.

    Returns:
        A function that returns them, and raises ServiceError, NON_FINITE_LOGITS, when a row is not
        a distribution.
    """
    lse_T = tile.logsumexp_T
    rows, on_cpu = len(lse_T), lse_T.device.type == "cpu"
    if on_cpu and not _is_finite(lse_T):
        return _refuse_non_finite
    found = _numbers(tile, realised_ids_T, processings_T, wants, candidate_ids_T_C)
    if on_cpu:
        block = _block_of(rows, found)
        return lambda: block
    # One wait for the device, after everything was asked of it: each would leave it idle. Only
    # lists too long for the kernel, and tiles of torch's operators, wait before.
    arrive = on_their_way({**found, _LOGSUMEXP: lse_T})

    def wait() -> RowBlock:
        copies = arrive()
        if not _is_finite(copies.pop(_LOGSUMEXP)):
            _refuse_non_finite()
        return _block_of(rows, copies)

    return wait


def _numbers(
    tile: Tile,
    realised_ids_T: Int32Array,
    processings_T: Sequence[Processing],
    wants: RowWants,
    candidate_ids_T_C: Int32Array | None,
) -> dict[str, Tensor]:
    """What is wanted, by its name in a block."""
    device = tile.logsumexp_T.device
    host_ids_T = torch.from_numpy(np.maximum(realised_ids_T, 0, dtype=np.int64))
    ids_T = to_device_async(host_ids_T, device)
    found = {"logprobs": tile.logprobs_at(ids_T[:, None])[:, 0]}
    found |= _of_supports(tile, realised_ids_T, ids_T, found["logprobs"], processings_T, wants)
    if candidate_ids_T_C is not None:
        candidate_ids = torch.from_numpy(candidate_ids_T_C.astype(np.int64))
        found["candidate_logprobs"] = tile.logprobs_at(to_device_async(candidate_ids, device))
    if wants.top_k:
        limit = tile.vocab_size if wants.token_id_limit is None else wants.token_id_limit
        top_ids = tile.top_k_ids(wants.top_k, limit)
        found["top_token_ids"] = top_ids.int()
        found["top_logprobs"] = tile.logprobs_at(top_ids)
        found["log_tail_masses"] = tile.log_tail_mass(top_ids)
    if wants.rank:
        # The host's own ids: a tile that knows their ranks is asked without a wait for the device.
        found["ranks"] = tile.rank(host_ids_T, wants.token_id_limit)
    if wants.entropy:
        found["entropies"] = tile.entropy()
    if wants.logsumexp:
        found["logsumexps"] = tile.logsumexp_T.float()
    return found


def _of_supports(
    tile: Tile,
    realised_ids_T: Int32Array,
    ids_T: Tensor,
    logprobs_T: Tensor,
    processings_T: Sequence[Processing],
    wants: RowWants,
) -> dict[str, Tensor]:
    """What is wanted of the numbers that truncation decides."""
    found: dict[str, Tensor] = {}
    if not (wants.processed_logprobs or wants.log_kept_mass or wants.support_size):
        return found
    truncation = None
    if any(processing.truncates for processing in processings_T):
        joins_T = [p.keep_realised and p.truncates for p in processings_T]
        guarded_T = torch.from_numpy((realised_ids_T >= 0) & np.array(joins_T))
        truncation = tile.truncate(processings_T, ids_T, to_device_async(guarded_T, ids_T.device))
    if wants.processed_logprobs:
        found["processed_logprobs"] = truncation.processed_T if truncation else logprobs_T
    if wants.log_kept_mass:
        kept_T = truncation.log_kept_mass_T if truncation else torch.zeros_like(logprobs_T)
        found["log_kept_masses"] = kept_T.float()
    if wants.support_size:
        found["support_sizes"] = truncation.sizes_T if truncation else tile.possible_tokens()
    return found


def _block_of(rows: int, found: dict[str, Tensor]) -> RowBlock:
    return RowBlock(rows=rows, **{name: value.numpy() for name, value in found.items()})


def _is_finite(lse_T: Tensor) -> bool:
    return bool(torch.isfinite(lse_T).all())


def _refuse_non_finite() -> NoReturn:
    raise ServiceError(
        Fault(Reason.NON_FINITE_LOGITS, "the model's logits are not finite at a wanted row")
    )


def cut_rows(
    block: RowBlock, start: int, stop: int, next_token: bool = False, copy: bool = False
) -> RowBlock:
    """Rows start … stop - 1 of a block.

    Args:
        block: arrays of [rows, ...].
        start: see above.
        stop: see above.
        next_token: whether the last has no realised token.
        copy: whether they get memory of their own; else they are views.
    """
    arrays = {
        name: value[start : stop - next_token if name in _REALISED else stop]
        for name, value in _arrays(block).items()
        if value is not None
    }
    if copy:
        arrays = {name: value.copy() for name, value in arrays.items()}
    return replace(block, rows=stop - start, **arrays)


def join_rows(blocks: list[RowBlock]) -> RowBlock:
    """Blocks one after another as one."""
    if len(blocks) == 1:
        return blocks[0]
    names = [name for name, value in _arrays(blocks[0]).items() if value is not None]
    arrays = {name: np.concatenate([getattr(b, name) for b in blocks]) for name in names}
    return replace(blocks[0], rows=sum(block.rows for block in blocks), **arrays)


def block_bytes(block: RowBlock) -> int:
    """Bytes of a block's arrays."""
    return sum(value.nbytes for value in _arrays(block).values() if value is not None)


def _arrays(block: RowBlock) -> dict[str, np.ndarray | None]:
    return {f.name: getattr(block, f.name) for f in fields(block) if f.name != "rows"}
