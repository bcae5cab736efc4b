"""Cross-entropy with several weighted targets a row. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scoring_client.training.given import Given, as_tensor
from scoring_client.training.reductions import Reduction, kept_rows, matrix_shape, reduced, working
from scoring_client.training.truncation import RowValue


def soft_cross_entropy(
    logits: Tensor,
    targets: Given | Sequence[Given],
    weights: Given | Sequence[Given] | None = None,
    *,
    temperature: RowValue = 1.0,
    mask: Given | None = None,
    reduction: Reduction = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """Return -sum w log q over each row's targets.

    With weights that add up to 1 it is KL(w || q) plus the entropy of w, so at least that entropy.
    With K = 1 and weight 1 it is the hard cross-entropy, to the bit whichever shape it comes in.

    Args:
        logits: [N, V].
        targets: Token ids [N, K], or [N] for one a row, a tensor or an array; or a sequence of
            such, one a datum, whose rows add up to N. Where the weight is 0 an id may be any
            number.
        weights: Of the same shape. None for [N]: all 1.
        temperature: Divides the logits; a number or [N].
        mask: bool or 0 and 1, [N]; what is masked may hold anything.
        reduction: See Reduction.
        chunk_rows: Rows computed at a time, again in the backward pass.

    Raises:
        ValueError: targets of one and of two dimensions in a batch, weights of another shape,
            another number of rows, an id outside the vocabulary, or temperature <= 0.
    """
    targets_N_K, weights_N_K = _targets(targets, weights, logits.device)
    rows, vocab = matrix_shape(logits)
    if len(targets_N_K) != rows:
        raise ValueError(f"targets have {len(targets_N_K)} rows, the logits {rows}")
    weights_N_K = weights_N_K.to(working(logits))
    kept = kept_rows(mask, logits)
    wanted = (weights_N_K != 0) if kept is None else (weights_N_K != 0)[kept]
    asked = (targets_N_K if kept is None else targets_N_K[kept])[wanted]
    if asked.numel() and not 0 <= int(asked.min()) <= int(asked.max()) < vocab:
        raise ValueError(f"a target is outside the vocabulary of {vocab} and has weight")
    others = {"targets": targets_N_K, "weights": weights_N_K}
    return reduced(_cross_entropy_rows, logits, others, temperature, kept, reduction, chunk_rows)


def _cross_entropy_rows(x_N_V: Tensor, *, targets: Tensor, weights: Tensor) -> Tensor:
    unread_N_K = weights == 0
    # Padding may be no id of the vocabulary, which on a GPU would end the process's CUDA context.
    at_targets_N_K = x_N_V.gather(1, targets.masked_fill(unread_N_K, 0))
    logprobs_N_K = at_targets_N_K - x_N_V.logsumexp(dim=1, keepdim=True)
    return -(weights * logprobs_N_K.masked_fill(unread_N_K, 0.0)).sum(dim=1)


def _targets(
    targets: Given | Sequence[Given],
    weights: Given | Sequence[Given] | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Both as [N, K]."""
    parts = _tensors("targets", targets, device)
    if weights is None:
        if any(part.ndim != 1 for part in parts):
            raise ValueError("targets [N, K] need weights of the same shape")
        weight_parts = [torch.ones_like(part, dtype=torch.float32) for part in parts]
    else:
        weight_parts = _tensors("weights", weights, device)
    if not parts or len(parts) != len(weight_parts):
        raise ValueError(f"{len(parts)} targets with {len(weight_parts)} weights")
    for index, (part, weight) in enumerate(zip(parts, weight_parts, strict=True)):
        if part.ndim not in (1, 2) or part.is_floating_point():
            raise ValueError(
                f"targets {index} must be integers [N] or [N, K], got {part.dtype} "
                f"{list(part.shape)}"
            )
        if part.shape != weight.shape:
            raise ValueError(
                f"weights {index} have shape {list(weight.shape)}, their targets {list(part.shape)}"
            )
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"a batch is either [N] or [N, K] with one K: targets 0 have shape "
                f"{list(parts[0].shape)}, targets {index} {list(part.shape)}"
            )
    joined, joined_weights = torch.cat(parts).long(), torch.cat(weight_parts)
    if joined.ndim == 1:
        joined, joined_weights = joined[:, None], joined_weights[:, None]
    return joined, joined_weights


def _tensors(name: str, given: Given | Sequence[Given], device: torch.device) -> list[Tensor]:
    if isinstance(given, (Tensor, np.ndarray)):
        return [as_tensor(name, given, device)]
    return [as_tensor(name, part, device) for part in given]
