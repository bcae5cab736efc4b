"""A tile of logits to the numbers that were asked of its rows, in one pass."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.kernels import reference
from scoring_service.types import Int32Array, Processing, RowBlock, RowWants

_REALISED = ("logprobs", "processed_logprobs", "ranks")


def compute_rows(
    logits_T_V: Tensor,
    realised_ids: Int32Array,
    processing: Processing,
    wants: RowWants,
    candidate_ids_T_C: Int32Array | None,
) -> RowBlock:
    """Numbers of a tile of rows.

    Args:
        logits_T_V: float32.
        realised_ids: the realised token of each row, or of each but the last (a next_token row).
        processing: applied to every row.
        wants: what to compute.
        candidate_ids_T_C: ids per row, -1 = not asked.

    Raises:
        ServiceError: NON_FINITE_LOGITS, when a row is not a distribution.
    """
    device = logits_T_V.device
    rows, vocab = logits_T_V.shape
    realised = len(realised_ids)
    # The next_token row takes part with an arbitrary token; what speaks of it is cut off below.
    ids_T = torch.zeros(rows, dtype=torch.int64, device=device)
    ids_T[:realised] = torch.from_numpy(realised_ids.astype(np.int64)).to(device)

    x_T_V = reference.scale(logits_T_V, processing.temperature)
    lse_T = reference.logsumexp(x_T_V)
    if not bool(torch.isfinite(lse_T).all()):
        raise ServiceError(
            Fault(Reason.NON_FINITE_LOGITS, "the model's logits are not finite at a wanted row")
        )
    logprobs_T = reference.logprobs_at(x_T_V, lse_T, ids_T[:, None])[:, 0]

    processed_T = kept_T = sizes_T = None
    if wants.processed_logprobs or wants.log_kept_mass or wants.support_size:
        if processing.truncates:
            keep_T_V = reference.support(
                x_T_V, processing.top_k, processing.top_p, processing.min_p
            )
            if processing.keep_realised:
                keep_T_V[torch.arange(realised, device=device), ids_T[:realised]] = True
            kept64_T = reference.log_kept_mass(x_T_V, lse_T, keep_T_V)
            kept_T = kept64_T.float()
            processed_T = reference.processed_logprobs_at(x_T_V, lse_T, keep_T_V, kept64_T, ids_T)
            sizes_T = keep_T_V.sum(dim=1, dtype=torch.int32)
        else:
            kept_T = torch.zeros_like(logprobs_T)
            processed_T = logprobs_T
            sizes_T = (x_T_V > -torch.inf).sum(dim=1, dtype=torch.int32)

    candidates = None
    if candidate_ids_T_C is not None:
        candidate_ids = torch.from_numpy(candidate_ids_T_C.astype(np.int64)).to(device)
        candidates = reference.logprobs_at(x_T_V, lse_T, candidate_ids)

    top_ids = top_logprobs = tail_T = None
    if wants.top_k:
        limit = vocab if wants.token_id_limit is None else wants.token_id_limit
        top_ids = reference.top_k_ids(x_T_V[:, :limit], wants.top_k)
        top_logprobs = reference.logprobs_at(x_T_V, lse_T, top_ids)
        tail_T = reference.log_tail_mass(x_T_V, lse_T, top_ids)
        top_ids = top_ids.int()

    ranks_T = reference.rank(x_T_V, ids_T, wants.token_id_limit) if wants.rank else None
    entropies_T = reference.entropy(x_T_V, lse_T) if wants.entropy else None
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
    arrays = {
        name: value[: realised if name in _REALISED else rows].cpu().numpy()
        for name, value in values.items()
        if value is not None
    }
    return RowBlock(rows=rows, **arrays)


def cut_rows(block: RowBlock, start: int, stop: int) -> RowBlock:
    """Rows start … stop - 1 of a block."""
    arrays = {
        name: value[start:stop] for name, value in _arrays(block).items() if value is not None
    }
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
