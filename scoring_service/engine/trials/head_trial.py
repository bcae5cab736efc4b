"""Whether the kernels of the head work where they are: tried at load, as steps use them.

A compiler may refuse a device or a processor that is new to it, a kernel may want more shared
memory than there is, and what was tested on one architecture may err on another. Made-up logits of
the model's own vocabulary and type are answered twice, by the kernels (Triton's, or on a CPU those
in C++) and by torch's operators: every number of a row, lists, supports and drawn tokens. What
differs or fails takes the kernels out of use, and the model answers without them.

On a GPU it also compiles what steps launch, so that no request waits for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scoring_service.engine.head.head import LinearHead, RowHead
from scoring_service.engine.outputs.draws import DrawRow, draw_rows
from scoring_service.engine.outputs.rows import compute_rows
from scoring_service.engine.outputs.sample_slices import DrawnToken
from scoring_service.engine.packed.steps.head_jobs import as_they_are
from scoring_service.errors import Fault
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.types import Processing, RowBlock, RowWants, SamplingTask

_ROWS = 3
_LISTED = 20
_ERROR = 1e-4
"""Of a number of a row, in nats, relative where it is larger than 1: eager fp32 and the kernels are
both within 1e-5 of float64 on such rows. Ids, ranks and sizes have to be equal."""

_PROCESSINGS = (
    Processing(),
    Processing(0.7),
    Processing(top_k=40, top_p=0.9),
    Processing(0.7, top_k=50, top_p=0.95, min_p=0.001, keep_realised=True),
)
_GREEDY = Processing(0.0)

_HEIGHTS = (1, 16, 65)
"""Of products: one row, as many as make a block, and more than the largest block."""
_COLUMNS = 64

_CLOSE_CALLS = 1
"""Draws that may come out otherwise: where the two best keys are closer than both ways' errors,
which is so once in 100,000 draws."""


def head_failure(
    head: RowHead,
    device: torch.device,
    kernels: CpuKernels | None = None,
    weight_V_H: Tensor | None = None,
) -> str:
    """Why the kernels are not to make a model's numbers on a device; empty where they work.

    Args:
        head: of the model: its vocabulary and the type of its logits.
        device: a CPU, or one of which `dispatch.backend` says "triton".
        kernels: those in C++, on a CPU.
        weight_V_H: what the head was made of, where a kernel makes its product too.
    """
    try:
        refusal = ""
        if isinstance(head, LinearHead) and weight_V_H is not None:
            refusal = product_failure(head, weight_V_H)
        return refusal or _differing_numbers(head, device, kernels)
    except Exception as error:  # noqa: BLE001 - whatever it is, torch's operators do without
        return _told(error)


def product_failure(head: LinearHead, weight_V_H: Tensor) -> str:
    """Why a head's product is not to make its logits; empty where it works.

    Args:
        head: with a product that leaves fp32.
        weight_V_H: what the head was made of, in the model's own type.
    """
    try:
        return "" if _multiplies(head, weight_V_H) else "products of the head differ from torch's"
    except Exception as error:  # noqa: BLE001 - whatever it is, another product does without
        return _told(error)


def _told(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _differing_numbers(head: RowHead, device: torch.device, kernels: CpuKernels | None) -> str:
    differing = 0
    for processing in _PROCESSINGS:
        for logits_T_V, banned in _tiles(head, device, kernels):
            block, drawn = _answers(logits_T_V, processing, banned, kernels)
            with dispatch.without_triton(device):
                want_block, want_drawn = _answers(logits_T_V, processing, banned)
            if name := _differing_rows(block, want_block):
                return f"{name} of rows differ from torch's"
            differing += sum(not _same(a, b) for a, b in zip(drawn, want_drawn, strict=True))
            if differing > _CLOSE_CALLS:
                return "drawn tokens differ from torch's"
    return ""


def _multiplies(head: LinearHead, weight_V_H: Tensor) -> bool:
    """Compares the first columns, some in the middle and the last ones, at several heights."""
    generator = torch.Generator().manual_seed(0)
    vocab = len(weight_V_H)
    for height in _HEIGHTS:
        noise_T_H = torch.randn(height, weight_V_H.shape[1], generator=generator)
        states_T_H = noise_T_H.to(weight_V_H.device, weight_V_H.dtype)
        found_T_V = head.product(states_T_H)
        for column in (0, vocab // 2, vocab - 1):
            part = slice(column // _COLUMNS * _COLUMNS, column // _COLUMNS * _COLUMNS + _COLUMNS)
            bias_V = None if head.bias_V is None else head.bias_V[part]
            wanted_T_V = functional.linear(states_T_H.float(), weight_V_H[part].float(), bias_V)
            error = (found_T_V[:, part] - wanted_T_V).abs().max()
            if not error <= _ERROR * wanted_T_V.abs().max():
                return False
    return True


def _tiles(
    head: RowHead, device: torch.device, kernels: CpuKernels | None
) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Logits, and ids that no row of them may draw.

    Rows of a step may begin anywhere in a tile, where odd vocabularies are aligned in another way:
    without bans tokens are drawn from them as they lie there, with bans from a copy.
    """
    generator = torch.Generator().manual_seed(0)
    spreads_T_1 = torch.linspace(0.5, 6.0, _ROWS)[:, None]
    logits_T_V = torch.randn(_ROWS, head.vocab_size, generator=generator) * spreads_T_1
    logits_T_V[1] = logits_T_V[1].round()  # ties
    dtype = head.dtype if as_they_are(head, device, kernels) else torch.float32
    logits_T_V = logits_T_V.to(dtype).to(device)
    yield logits_T_V, ()
    yield logits_T_V[1:], ()
    yield logits_T_V[1:], (0, head.vocab_size // 2)


def _answers(
    logits_T_V: Tensor,
    processing: Processing,
    banned: tuple[int, ...],
    kernels: CpuKernels | None = None,
) -> tuple[RowBlock, list[DrawnToken | Fault]]:
    """Everything that steps ask of rows."""
    rows, vocab = logits_T_V.shape
    limit = max(1, vocab - 3) if banned else None
    realised_T = np.arange(-1, rows - 1, dtype=np.int32) % vocab
    realised_T[-1] = -1
    candidates_T_C = np.tile(np.array([0, vocab - 1, -1], dtype=np.int32), (rows, 1))
    wants = RowWants.everything(top_k=min(_LISTED, limit or vocab), token_id_limit=limit)
    tile = dispatch.make_tile(logits_T_V, processing.temperature, realised_T, limit, kernels)
    block = compute_rows(tile, realised_T, [processing] * rows, wants, candidates_T_C)
    make_tile = partial(dispatch.make_tile, kernels=kernels)
    drawn = []
    for setting, listed in ((processing, 0), (_GREEDY, 1 if banned else 0)):
        draws = [_draw_row(place, setting, banned, listed) for place in range(rows)]
        drawn += draw_rows(logits_T_V, draws, make_tile)
    return block, drawn


def _draw_row(
    place: int, processing: Processing, banned: tuple[int, ...], top_logprobs: int
) -> DrawRow:
    task = SamplingTask(
        index=0,
        prompt_ids=np.zeros(1, dtype=np.int32),
        n=1,
        seed=2**63 + place,
        first_sample_index=0,
        processing=processing,
        processing_index=0,
        max_tokens=1,
    )
    return DrawRow(task, place, 100 + place, banned, top_logprobs)


def _differing_rows(ours: RowBlock, theirs: RowBlock) -> str:
    """A number of rows that is not the same; empty where all are."""
    for field in fields(theirs):
        a, b = np.asarray(getattr(ours, field.name)), np.asarray(getattr(theirs, field.name))
        if not (np.array_equal(a, b) if b.dtype.kind == "i" else _close(a, b)):
            return field.name
    return ""


def _same(ours: DrawnToken | Fault, theirs: DrawnToken | Fault) -> bool:
    if not isinstance(ours, DrawnToken) or not isinstance(theirs, DrawnToken):
        return ours == theirs
    same_ids = ours.token_id == theirs.token_id and np.array_equal(ours.top_ids, theirs.top_ids)
    return same_ids and _close(_numbers(ours), _numbers(theirs))


def _numbers(drawn: DrawnToken) -> np.ndarray:
    return np.append(drawn.top_logprobs, [drawn.logprob, drawn.processed_logprob])


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.allclose(ours, theirs, rtol=_ERROR, atol=_ERROR, equal_nan=True))
