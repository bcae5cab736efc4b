"""Replay of sampling in the trainer: the log-probs of drawn tokens under the current weights.

A sample's ``processed_logprobs`` are those of the distribution that it was drawn from, after
temperature, top-k, top-p and min-p. To compare a trainer's own numbers with them, the trainer has
to apply the same. Legend: T rows, H hidden, V vocabulary. Needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from scoring_client.training.chunks import by_chunks
from scoring_client.training.fused import fused_linear_processed_logprobs
from scoring_client.training.given import Given, as_tensor
from scoring_client.training.mismatch import MismatchKL, importance_ratios, mismatch_kl
from scoring_client.training.reductions import below_largest
from scoring_client.training.truncation import (
    RowValue,
    apply_top_k_top_p,
    check_labels,
    per_row,
    support_of_rows,
    truncation_by_row,
)
from scoring_client.values.processing import ResolvedProcessing

__all__ = [
    "IGNORED",
    "MismatchKL",
    "RowSettings",
    "apply_top_k_top_p",
    "entropy",
    "importance_ratios",
    "linear_processed_logprobs",
    "mismatch_kl",
    "processed_logprobs",
    "row_settings",
]

IGNORED = -100
"""Label of a row that nothing is wanted of; any negative one does."""


class RowSettings(TypedDict, total=False):
    """Settings row by row, as keyword arguments of processed_logprobs."""

    temperature: Tensor
    """float32 [T], always there."""
    top_k: Tensor
    """int64 [T], always there."""
    top_p: Tensor
    """float32 [T], where any row has one."""
    min_p: Tensor
    """float32 [T], where any row has one."""


def processed_logprobs(
    logits: Tensor,
    labels: Given,
    *,
    temperature: RowValue = 1.0,
    top_k: int | Tensor | None = None,
    top_p: RowValue | None = None,
    min_p: RowValue | None = None,
    keep_labels: bool = True,
    chunk_rows: int | None = None,
) -> Tensor:
    """Return the labels' log-probs after temperature and truncation; differentiable.

    log-softmax over the support of x = logits / temperature, divided in float32 (float64 when
    the logits are). What a sampler returned as ``processed_logprobs`` is this under its weights.

    Args:
        logits: [..., V], before temperature, any floating type.
        labels: Token ids [...], a tensor or an array, aligned: row i of the logits predicts label
            i. A negative label gives 0 and no gradient, whatever else its row holds: logits and
            settings of its own.
        temperature: Divisor, above 0; a number or [...].
        top_k: See ``apply_top_k_top_p``.
        top_p: See ``apply_top_k_top_p``.
        min_p: See ``apply_top_k_top_p``.
        keep_labels: The label joins the support. Without it a token that is outside, if only by
            the last bit at the edge of the nucleus, has -inf, and so has a loss.
        chunk_rows: Rows computed at a time. What lies between logits and log-probs (about ten
            bytes an element of the logits) is then held for so many rows only, and computed again
            in the backward pass.

    Returns:
        [...], float32 (float64 for float64 logits). NaN, and so is its gradient, of a row with NaN
        among its logits, whatever the truncation.

    Raises:
        ValueError: temperature <= 0, another parameter out of range, chunk_rows < 1, a label
            outside the vocabulary, or shapes that do not fit.
    """
    labels = as_tensor("labels", labels, logits.device)
    check_labels(labels, logits.shape[:-1], logits.shape[-1])
    settings = _settings_by_row(logits, temperature, top_k, top_p, min_p, labels < 0)
    labels_T = labels.reshape(-1)
    guarded_T = labels_T if keep_labels else None
    others = {"labels_T": labels_T, "guarded_T": guarded_T, **settings}
    return by_chunks(_processed_rows, logits, others, chunk_rows).reshape(labels.shape)


def linear_processed_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Given,
    *,
    bias: Tensor | None = None,
    temperature: RowValue = 1.0,
    top_k: int | Tensor | None = None,
    top_p: RowValue | None = None,
    min_p: RowValue | None = None,
    keep_labels: bool = True,
    head_dtype: torch.dtype = torch.float32,
    chunk_rows: int | None = None,
) -> Tensor:
    """Return ``processed_logprobs`` of a linear head without ever holding all of its logits.

    ``chunk_rows`` rows of logits at a time, computed again in the backward pass. Where the service
    is installed, tensors of float32 and of half precision go through its own form of this, on a GPU
    with its Triton kernels; its supports are those of exact arithmetic, as the server decides them.

    Args:
        hidden: [..., H], the head's input.
        weight: [V, H], the head's weight, as of ``torch.nn.Linear``.
        labels: Token ids [...], a tensor or an array; a negative one gives 0 and no gradient.
        bias: [V].
        temperature: See ``processed_logprobs``.
        top_k: See ``apply_top_k_top_p``.
        top_p: See ``apply_top_k_top_p``.
        min_p: See ``apply_top_k_top_p``.
        keep_labels: See ``processed_logprobs``.
        head_dtype: Type of the product, inside ``torch.autocast`` too, as the server's
            ``--head-dtype``: in another type than the sampler's the truncation meets other values.
        chunk_rows: Rows of logits held at a time. Default: what suits the device in the service's
            form, else 512.

    Returns:
        [...], float32 (float64 for a float64 head); NaN as of ``processed_logprobs``.

    Raises:
        ValueError: as of ``processed_logprobs``.
    """
    labels = as_tensor("labels", labels, hidden.device)
    check_labels(labels, hidden.shape[:-1], len(weight))
    settings = _settings_by_row(hidden, temperature, top_k, top_p, min_p, labels < 0)
    hidden_T_H, labels_T = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    fused = fused_linear_processed_logprobs(hidden, weight)
    if fused is not None and head_dtype == torch.float32:
        logprobs_T = fused(
            hidden_T_H, weight, labels_T, bias=bias, keep_labels=keep_labels,
            chunk_rows=chunk_rows, **settings,
        )  # fmt: skip
        return logprobs_T.reshape(labels.shape)
    weight_V_H = weight.to(head_dtype)
    bias_V = None if bias is None else bias.to(head_dtype)

    def rows(hidden_T_H: Tensor, **others: Any) -> Tensor:
        # Rows that nothing is wanted of may hold NaN, and 0 times that is NaN in every gradient.
        hidden_T_H = hidden_T_H.masked_fill((others["labels_T"] < 0)[:, None], 0.0)
        # A trainer's autocast would make the product in another type than was asked.
        with torch.autocast(hidden_T_H.device.type, enabled=False):
            logits_T_V = torch.nn.functional.linear(hidden_T_H.to(head_dtype), weight_V_H, bias_V)
        return _processed_rows(logits_T_V, **others)

    guarded_T = labels_T if keep_labels else None
    others = {"labels_T": labels_T, "guarded_T": guarded_T, **settings}
    chunk_rows = 512 if chunk_rows is None else chunk_rows
    return by_chunks(rows, hidden_T_H, others, chunk_rows).reshape(labels.shape)


def entropy(
    logits: Tensor, *, temperature: RowValue = 1.0, chunk_rows: int | None = None
) -> Tensor:
    """Return the entropy (nats) of softmax(logits / temperature), untruncated; differentiable.

    log Z - sum(exp(d) * d) / Z with d = x - max and Z = sum(exp(d)): the server's ``entropies``.

    Args:
        logits: [..., V].
        temperature: Above 0; a number or [...].
        chunk_rows: Rows computed at a time; see ``processed_logprobs``.

    Returns:
        [...], float32 (float64 for float64 logits).

    Raises:
        ValueError: temperature <= 0, or chunk_rows < 1.
    """
    settings = _settings_by_row(logits, temperature, None, None, None)
    return by_chunks(_entropy_rows, logits, settings, chunk_rows).reshape(logits.shape[:-1])


def row_settings(
    processings: Sequence[ResolvedProcessing | None],
    lengths: Sequence[int],
    device: torch.device | str | None = None,
) -> RowSettings:
    """Return settings row by row for samples laid end to end, as keyword arguments.

    ``processed_logprobs(logits, labels, **row_settings(...))`` replays exactly what was applied.
    Where ``min_tokens`` banned stops, before truncation, set their logits to -inf first.

    Args:
        processings: What each sample or completion says in ``processing``.
        lengths: Rows of each.
        device: Where the tensors go.

    Returns:
        ``temperature`` float32 [T], ``top_k`` int64 [T], and ``top_p`` and ``min_p`` float32 [T]
        where any of them truncates; T is the sum of the lengths.

    Raises:
        ValueError: different numbers of the two, something else than processings, or a sample
            failed or was greedy.
    """
    given: Any = processings
    others = (
        [given]
        if isinstance(given, ResolvedProcessing)
        else [
            item for item in given if item is not None and not isinstance(item, ResolvedProcessing)
        ]
    )
    if others:
        raise ValueError(
            "expected the processing of each sample, [sample.processing for sample in samples], "
            f"got a {type(others[0]).__name__}"
        )
    if len(processings) != len(lengths):
        raise ValueError(f"{len(processings)} processings for {len(lengths)} lengths")
    for index, processing in enumerate(processings):
        if processing is None:
            raise ValueError(f"item {index} failed: there is nothing to replay")
        if processing.temperature <= 0:
            raise ValueError(
                f"item {index} was drawn greedily (temperature 0): no distribution to replay"
            )
    counts = torch.tensor(list(lengths), dtype=torch.int64, device=device)
    known = [processing for processing in processings if processing is not None]

    def column(name: str, dtype: torch.dtype) -> Tensor:
        values = torch.tensor([getattr(p, name) for p in known], dtype=dtype, device=device)
        return values.repeat_interleave(counts)

    settings: RowSettings = {
        "temperature": column("temperature", torch.float32),
        "top_k": column("top_k", torch.int64),
    }
    if any(p.top_p < 1 for p in known):
        settings["top_p"] = column("top_p", torch.float32)
    if any(p.min_p > 0 for p in known):
        settings["min_p"] = column("min_p", torch.float32)
    return settings


def _settings_by_row(
    rows: Tensor,
    temperature: RowValue,
    top_k: int | Tensor | None,
    top_p: RowValue | None,
    min_p: RowValue | None,
    unread: Tensor | None = None,
) -> dict[str, Tensor]:
    """The parameters that say something, each [T]; the neutral numbers are left out."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    # As on the wire: the number is rounded to float32 before anything is divided by it.
    temperature_T = per_row("temperature", temperature, rows, torch.float32, unread).to(dtype)
    if not (temperature_T > 0).all() or not temperature_T.isfinite().all():
        raise ValueError(
            f"temperature must be above 0, got {float(temperature_T.min()):g}: a greedy sample has "
            "no distribution to replay; score it at temperature 1"
        )
    return {"temperature": temperature_T, **truncation_by_row(rows, top_k, top_p, min_p, unread)}


def _scaled(logits_T_V: Tensor, temperature_T: Tensor) -> Tensor:
    return logits_T_V.to(temperature_T.dtype) / temperature_T[:, None]


def _processed_rows(
    logits_T_V: Tensor,
    *,
    labels_T: Tensor,
    guarded_T: Tensor | None,
    temperature: Tensor,
    **truncation: Tensor,
) -> Tensor:
    # Of rows that nothing is wanted of no value is looked at, nor sent back.
    x_T_V = _scaled(logits_T_V, temperature).masked_fill_((labels_T < 0)[:, None], 0.0)
    labels_T_1 = labels_T.clamp(min=0)[:, None]
    keep_T_V = support_of_rows(x_T_V, guarded_T, **truncation)
    kept_T_V = below_largest(x_T_V)
    if keep_T_V is not None:
        kept_T_V = kept_T_V.masked_fill_(~keep_T_V, -math.inf)
    logprobs_T = kept_T_V.gather(1, labels_T_1)[:, 0] - kept_T_V.logsumexp(dim=1)
    return logprobs_T.masked_fill(labels_T < 0, 0.0)


def _entropy_rows(logits_T_V: Tensor, *, temperature: Tensor) -> Tensor:
    x_T_V = _scaled(logits_T_V, temperature)
    below_T_V = x_T_V - x_T_V.amax(dim=1, keepdim=True).detach()
    total_T = below_T_V.exp().sum(dim=1)
    # A token at -inf has probability 0; its term is 0, and so is its gradient.
    finite_T_V = below_T_V.masked_fill(below_T_V == -math.inf, 0.0)
    return total_T.log() - (below_T_V.exp() * finite_T_V).sum(dim=1) / total_T
