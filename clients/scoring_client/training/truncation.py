"""The trainer's half of truncation: which tokens a sampler could have drawn, in torch.

Legend: T rows, V vocabulary. Every parameter is a number or a tensor with a value for each row, so
that a batch may mix samples of different settings. Needs torch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RowValue = float | Tensor
"""A number for all rows, or a tensor with one for each."""


def apply_top_k_top_p(
    logits: Tensor,
    top_k: int | Tensor | None = None,
    top_p: RowValue | None = None,
    min_p: RowValue | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Return the logits with everything outside the sampler's support at -inf.

    Top-k and top-p are, to the bit, vLLM's ``apply_top_k_top_p_pytorch``: all ties of the k-th
    value stay; the fp32 softmax of what is left is summed upwards, and tokens whose sum is at most
    1 - p go, never the best one. Its sort is unstable, so which of several equal logits at the
    nucleus's edge stay is arbitrary there; here the higher ids do, as on the server. Min-p comes
    last and keeps x - max >= log(min_p). NaN stays, as it does there: what is made of its row is
    NaN, not a number of the tokens beside it.

    Differentiable: what is kept passes its gradient, the rest gets none.

    Args:
        logits: [..., V], after temperature. Masks of other types than float32 are found in float32.
        top_k: Tokens kept, an integer or [...]; 0, -1 and V or more = all.
        top_p: Mass kept, in (0, 1], a number or [...]; 1 = all. Given as a tensor, 1 still drops
            tokens whose probability underflows to 0 in float32, as vLLM does.
        min_p: Least probability kept relative to the best, in [0, 1], a number or [...]; 0 = all.
        labels: Token ids [...] whose own logit always survives; negative = none in this row.

    Raises:
        ValueError: a parameter is out of range or has another shape than the rows; labels have
            another shape, or one is outside the vocabulary.
    """
    keep = support(logits, top_k, top_p, min_p, labels)
    return logits if keep is None else logits.masked_fill(~keep, -math.inf)


def support(
    logits: Tensor,
    top_k: int | Tensor | None = None,
    top_p: RowValue | None = None,
    min_p: RowValue | None = None,
    labels: Tensor | None = None,
) -> Tensor | None:
    """Return what ``apply_top_k_top_p`` keeps, bool [..., V]; None when nothing is truncated.

    Arguments and errors as of ``apply_top_k_top_p``.
    """
    if labels is not None:
        check_labels(labels, logits.shape[:-1], logits.shape[-1])
    settings = truncation_by_row(logits, top_k, top_p, min_p)
    labels_T = None if labels is None else labels.reshape(-1)
    keep = support_of_rows(logits.reshape(-1, logits.shape[-1]), labels_T, **settings)
    return None if keep is None else keep.reshape(logits.shape)


def truncation_by_row(
    rows: Tensor,
    top_k: int | Tensor | None,
    top_p: RowValue | None,
    min_p: RowValue | None,
    unread: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the parameters that truncate, each [T], for rows [..., anything].

    ``top_k`` int64, ``top_p`` and ``min_p`` float32 as on the wire; neutral numbers are left out.
    Rows that are ``unread``, bool [...], may have any.

    Raises:
        ValueError: one is out of range or has another shape than the rows.
    """
    settings = {}
    if top_k is not None and not (isinstance(top_k, int) and top_k in (0, -1)):
        if torch.as_tensor(top_k).is_floating_point():
            raise ValueError(f"top_k must be an integer, got {top_k}")
        settings["top_k"] = per_row("top_k", top_k, rows, torch.int64, unread, 0)
        if (settings["top_k"] < -1).any():
            raise ValueError(f"top_k must be at least 1, or 0 or -1 for all, got {top_k}")
    if top_p is not None and not (isinstance(top_p, (int, float)) and top_p == 1):
        settings["top_p"] = per_row("top_p", top_p, rows, torch.float32, unread, 1)
        if not ((settings["top_p"] > 0) & (settings["top_p"] <= 1)).all():
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if min_p is not None and not (isinstance(min_p, (int, float)) and min_p == 0):
        settings["min_p"] = per_row("min_p", min_p, rows, torch.float32, unread, 0)
        if not ((settings["min_p"] >= 0) & (settings["min_p"] <= 1)).all():
            raise ValueError(f"min_p must be in [0, 1], got {min_p}")
    return settings


@torch.no_grad()
def support_of_rows(
    logits_T_V: Tensor,
    labels_T: Tensor | None,
    *,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Tensor | None:
    """Return ``support`` of rows [T, V] whose parameters ``truncation_by_row`` made."""
    if top_k is None and top_p is None and min_p is None:
        return None
    x_T_V = logits_T_V.detach().float()
    if top_k is not None:
        vocab = x_T_V.shape[1]
        top_k = top_k.masked_fill(top_k <= 0, vocab).clamp(max=vocab)
    if top_p is not None:
        keep_T_V = _top_k_top_p(x_T_V, top_k, top_p)
    elif top_k is not None:
        keep_T_V = _top_k_only(x_T_V, top_k)
    else:
        keep_T_V = x_T_V != -math.inf
    if min_p is not None:
        # The server compares in float64, with min_p as the wire carries it, in float32.
        below_max_T_V = x_T_V.double() - x_T_V.amax(dim=1, keepdim=True).double()
        # Negated: NaN, and all of its row, is not below the bound.
        keep_T_V &= ~(below_max_T_V < min_p.double().log()[:, None])
    if labels_T is not None:
        ids_T_1 = labels_T.clamp(min=0)[:, None]
        # A row without a label gets back the bit that it had.
        keep_T_V.scatter_(1, ids_T_1, keep_T_V.gather(1, ids_T_1) | (labels_T >= 0)[:, None])
    return keep_T_V


def per_row(
    name: str,
    value: RowValue,
    rows: Tensor,
    dtype: torch.dtype,
    unread: Tensor | None = None,
    neutral: int = 1,
) -> Tensor:
    """Return a parameter as [T] beside rows [..., anything].

    A value of its own of a row that is ``unread``, bool [...], becomes the neutral one: nobody says
    what stands beside padding.

    Raises:
        ValueError: a tensor with neither one value nor one for each row.
    """
    shape = rows.shape[:-1]
    given = torch.as_tensor(value, device=rows.device)
    if given.numel() != 1 and given.shape != shape:
        raise ValueError(
            f"{name} has shape {list(given.shape)}; expected a number or one value a row, "
            f"{list(shape)}"
        )
    if given.shape != shape:
        given = given.reshape(())
    elif unread is not None:
        given = given.masked_fill(unread, neutral)
    return given.to(dtype).expand(shape).reshape(-1)


def check_labels(labels: Tensor, rows: torch.Size, vocab: int) -> None:
    """Refuse labels that are not one for each row, or outside the vocabulary.

    Raises:
        ValueError: so it is.
    """
    if labels.shape != rows:
        raise ValueError(f"labels have shape {list(labels.shape)} for rows {list(rows)}")
    if torch.compiler.is_compiling() or (
        labels.is_cuda and torch.cuda.is_current_stream_capturing()
    ):
        return  # values cannot be looked at there
    # On a GPU gather would end the process's CUDA context instead of raising.
    if labels.numel() and int(labels.max()) >= vocab:
        raise ValueError(f"label {int(labels.max())} is outside the vocabulary of {vocab}")


def _top_k_only(x_T_V: Tensor, k_T: Tensor) -> Tensor:
    """Keeps x at or above the k-th largest, without a sort of the vocabulary."""
    vocab = x_T_V.shape[1]
    limited_T = k_T < vocab
    most = int(k_T.masked_fill(~limited_T, 1).max()) if len(k_T) else 1
    index_T_1 = (k_T.clamp(max=most) - 1)[:, None]
    kth_T_1 = x_T_V.topk(most, dim=1).values.gather(1, index_T_1)
    kth_T_1 = kth_T_1.masked_fill(~limited_T[:, None], -math.inf)
    # Negated: torch has NaN above every number, and a comparison with it is false.
    return ~(x_T_V < kth_T_1) & (x_T_V != -math.inf)


def _top_k_top_p(x_T_V: Tensor, k_T: Tensor | None, p_T: Tensor) -> Tensor:
    """Keeps the nucleus of what top-k left."""
    sorted_T_V, ids_T_V = x_T_V.sort(dim=1, stable=True)
    if k_T is not None:
        kth_T_1 = sorted_T_V.gather(1, (sorted_T_V.shape[1] - k_T)[:, None])
        sorted_T_V.masked_fill_(sorted_T_V < kth_T_1, -math.inf)
    mass_T_V = sorted_T_V.softmax(dim=1)
    dropped_T_V = torch.cumsum(mass_T_V, dim=1, out=mass_T_V) <= 1 - p_T[:, None]
    dropped_T_V[:, -1] = False
    keep_T_V = (sorted_T_V != -math.inf) & ~dropped_T_V
    return torch.empty_like(keep_T_V).scatter_(1, ids_T_V, keep_T_V)
