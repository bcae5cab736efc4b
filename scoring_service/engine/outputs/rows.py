"""A tile of logits to the numbers that were asked of its rows, in one pass."""

from __future__ import annotations

from collections.abc import Callable
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
    processing: Processing,
    wants: RowWants,
    candidate_ids_T_C: Int32Array | None,
) -> RowBlock:
    """Numbers of a tile of rows; see `begin_rows`.

    Raises:
        ServiceError: NON_FINITE_LOGITS, when a row is not a distribution.
    """
    return begin_rows(tile, realised_ids_T, processing, wants, candidate_ids_T_C)()


def begin_rows(
    tile: Tile,
    realised_ids_T: Int32Array,
    processing: Processing,
    wants: RowWants,
    candidate_ids_T_C: Int32Array | None,
) -> Callable[[], RowBlock]:
    """Asks for the numbers of a tile of rows. The call of what it returns waits for them.

    A GPU makes and copies them meanwhile; of the tile it needs nothing that is asked for later, so
    that its memory may go to whatever comes next.

    Args:
        tile: the rows at the processing's temperature.
        realised_ids_T: the realised token of each row; -1 = none, as in a next_token row, whose
            numbers of realised tokens mean nothing (see `cut_rows`).
        processing: applied to every row.
        wants: what to compute.
        candidate_ids_T_C: ids per row, -1 = not asked.

    Returns:
        A function that returns them, and raises ServiceError, NON_FINITE_LOGITS, when a row is not
        a distribution.
    """
    lse_T = tile.logsumexp_T
    device, rows = lse_T.device, len(lse_T)
    realised_T = torch.from_numpy(realised_ids_T.astype(np.int64))
    given_T = to_device_async(realised_T, device)
    ids_T = given_T.clamp(min=0)
    if device.type == "cpu" and not _is_finite(lse_T):
        return _refuse_non_finite
    logprobs_T = tile.logprobs_at(ids_T[:, None])[:, 0]

    processed_T = kept_T = sizes_T = None
    if wants.processed_logprobs or wants.log_kept_mass or wants.support_size:
        if processing.truncates:
            truncation = tile.truncate(
                processing.top_k,
                processing.top_p,
                processing.min_p,
                ids_T,
                given_T >= 0 if processing.keep_realised else torch.zeros_like(given_T).bool(),
            )
            kept_T = truncation.log_kept_mass_T.float()
            processed_T, sizes_T = truncation.processed_T, truncation.sizes_T
        else:
            kept_T = torch.zeros_like(logprobs_T)
            processed_T = logprobs_T
            sizes_T = tile.possible_tokens() if wants.support_size else None

    candidates = None
    if candidate_ids_T_C is not None:
        candidate_ids = to_device_async(
            torch.from_numpy(candidate_ids_T_C.astype(np.int64)), device
        )
        candidates = tile.logprobs_at(candidate_ids)

    top_ids = top_logprobs = tail_T = None
    if wants.top_k:
        limit = tile.vocab_size if wants.token_id_limit is None else wants.token_id_limit
        top_ids = tile.top_k_ids(wants.top_k, limit)
        top_logprobs = tile.logprobs_at(top_ids)
        tail_T = tile.log_tail_mass(top_ids)
        top_ids = top_ids.int()

    # The host's own ids: a tile that knows their ranks is asked without a wait for the device.
    ranks_T = tile.rank(realised_T.clamp(min=0), wants.token_id_limit) if wants.rank else None
    entropies_T = tile.entropy() if wants.entropy else None
    values = {
        "logprobs": logprobs_T,
        "processed_logprobs": processed_T if wants.processed_logprobs else None,
        "log_kept_masses": kept_T if wants.log_kept_mass else None,
        "entropies": entropies_T,
        "ranks": ranks_T,
        "logsumexps": lse_T.float() if wants.logsumexp else None,
        "support_sizes": sizes_T if wants.support_size else None,
        "candidate_logprobs": candidates,
        "top_token_ids": top_ids,
        "top_logprobs": top_logprobs,
        "log_tail_masses": tail_T,
    }
    found = {name: value for name, value in values.items() if value is not None}
    if device.type == "cpu":
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
