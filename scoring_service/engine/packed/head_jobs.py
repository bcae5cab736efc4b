"""The head over the wanted rows of a step: a tile of logits at a time, used where it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.head import RowHead
from scoring_service.engine.packed.draws import draw_rows
from scoring_service.engine.packed.sample_run import SampleRun
from scoring_service.engine.packed.score_run import CompletionRun, ScoreRows
from scoring_service.engine.rows import compute_rows, cut_rows
from scoring_service.engine.sampling import DrawnToken
from scoring_service.engine.tiles import block_rows, tile_rows
from scoring_service.errors import Fault, ServiceError
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.kernels.transfer import to_device_async
from scoring_service.types import Int32Array, Processing, RowBlock, RowWants

Scored = tuple[CompletionRun, Int32Array, RowBlock | Fault]
"""A completion, indices of its rows, and their numbers or why there are none."""


def score_rows(
    head: RowHead, states: Tensor, wanted: Sequence[ScoreRows], kernels: CpuKernels | None
) -> Iterator[Scored]:
    """Numbers of rows, in the given order for each completion.

    Args:
        head: makes logits of states.
        kernels: what reads them on a CPU, if there is anything.
        states: the step's table of states, [S, H].
        wanted: rows, those of one `score_kind` side by side.
    """
    tile = tile_rows(head.vocab_size, head.dtype.itemsize, states.device.type)
    places = np.concatenate([np.asarray(rows.states, dtype=np.int64) for rows in wanted])
    spans = _spans(wanted)
    index = to_device_async(torch.from_numpy(places), states.device)
    for first in range(0, len(places), tile):
        last = min(first + tile, len(places))
        product_T_V = head.product(states[index[first:last]])
        inside = [span for span in spans if span[1] < last and span[2] > first]
        for _, members in groupby(inside, key=lambda span: score_kind(span[0])):
            pieces = [(r, max(a, first), min(b, last), a) for r, a, b in members]
            yield from _blocks(head, product_T_V, first, pieces, kernels)
        del product_T_V  # before the next one is made


def _spans(wanted: Sequence[ScoreRows]) -> list[tuple[ScoreRows, int, int]]:
    spans = []
    place = 0
    for rows in wanted:
        spans.append((rows, place, place + len(rows.rows)))
        place += len(rows.rows)
    return spans


def score_kind(rows: ScoreRows) -> tuple[Processing, RowWants, int]:
    """Rows of one kind are computed together, whichever calls they belong to."""
    candidates = rows.run.task.candidate_ids
    width = -1 if candidates is None else candidates.shape[1]
    return rows.run.group.processing, rows.run.call.wants, width


_Piece = tuple[ScoreRows, int, int, int]
"""Rows, where those inside the tile begin and end, and where all of them begin."""


def _blocks(
    head: RowHead,
    product_T_V: Tensor,
    first: int,
    pieces: list[_Piece],
    kernels: CpuKernels | None,
) -> Iterator[Scored]:
    """Rows of one kind in blocks."""
    start, stop = pieces[0][1], pieces[-1][2]
    run = pieces[0][0].run
    listed = run.call.wants.top_k + run.task.candidates
    height = block_rows(head.vocab_size, product_T_V.device.type, listed)
    for a in range(start, stop, height):
        b = min(a + height, stop)
        cut = [(r, max(x, a), min(y, b), o) for r, x, y, o in pieces if x < b and y > a]
        try:
            logits_T_V = _finished(head, product_T_V[a - first : b - first], kernels)
            yield from _block(logits_T_V, a, cut, kernels)
        except ServiceError:
            # One of them is at fault; the others are answered.
            for piece in cut:
                rows, x, y, origin = piece
                logits_T_V = _finished(head, product_T_V[x - first : y - first], kernels)
                try:
                    yield from _block(logits_T_V, x, [piece], kernels)
                except ServiceError as error:
                    yield rows.run, rows.rows[x - origin : y - origin], error.fault


def _finished(head: RowHead, product_T_V: Tensor, kernels: CpuKernels | None) -> Tensor:
    """Logits as numbers are made of them: float32, or as they are for kernels of ours."""
    as_it_is = as_they_are(head, product_T_V.device, kernels)
    return product_T_V if as_it_is else head.finish(product_T_V)


def as_they_are(head: RowHead, device: torch.device, kernels: CpuKernels | None) -> bool:
    """Whether kernels of ours read what the head's product leaves on a device."""
    if not head.finishes_nothing:
        return False
    if kernels is not None:
        return kernels.takes(head.dtype)
    return dispatch.backend(device) == "triton"


def _block(
    logits_T_V: Tensor, first: int, pieces: list[_Piece], kernels: CpuKernels | None
) -> list[Scored]:
    run = pieces[0][0].run
    realised = [r.realised_ids[x - o : y - o] for r, x, y, o in pieces]
    candidates = None
    if run.task.candidate_ids is not None:
        found = [(r.candidate_ids, x - o, y - o) for r, x, y, o in pieces]
        candidates = np.concatenate([ids[x:y] for ids, x, y in found if ids is not None])
    processing = run.group.processing
    realised_ids = np.concatenate(realised)
    block = compute_rows(
        dispatch.make_tile(
            logits_T_V,
            processing.temperature,
            realised_ids,
            run.call.wants.token_id_limit,
            kernels,
        ),
        realised_ids,
        processing,
        run.call.wants,
        candidates,
    )
    # Results of several calls are not sent at the same time: each has memory of its own.
    shared = any(r.run.call is not run.call for r, _, _, _ in pieces)
    return [
        (
            r.run,
            r.rows[x - o : y - o],
            cut_rows(block, x - first, y - first, next_token=bool(ids[-1] < 0), copy=shared),
        )
        for (r, x, y, o), ids in zip(pieces, realised, strict=True)
    ]


def draw_samples(
    head: RowHead,
    states: Tensor,
    wanted: Sequence[tuple[SampleRun, int]],
    kernels: CpuKernels | None,
) -> Iterator[tuple[SampleRun, DrawnToken | Fault]]:
    """The next token of each sample.

    Args:
        head: makes logits of states.
        states: the step's table of states, [S, H].
        wanted: samples with the place of their state; those of one `sample_kind` side by side.
        kernels: what reads logits on a CPU, if there is anything.
    """
    tile = tile_rows(head.vocab_size, head.dtype.itemsize, states.device.type)
    index = to_device_async(torch.tensor([place for _, place in wanted]), states.device)
    for first in range(0, len(wanted), tile):
        product_T_V = head.product(states[index[first : first + tile]])
        inside = (sample for sample, _ in wanted[first : first + tile])
        place = 0
        for _, members in groupby(inside, key=sample_kind):
            samples = list(members)
            yield from _draw(head, product_T_V[place : place + len(samples)], samples, kernels)
            place += len(samples)
        del product_T_V  # before the next one is made


def _draw(
    head: RowHead, product_T_V: Tensor, samples: list[SampleRun], kernels: CpuKernels | None
) -> Iterator[tuple[SampleRun, DrawnToken | Fault]]:
    """Samples of one kind: in blocks, where copies of logits are made."""
    rows = [sample.draw_row() for sample in samples]
    top_logprobs = samples[0].call.top_logprobs
    height = len(samples)
    if not as_they_are(head, product_T_V.device, kernels) or any(row.banned for row in rows):
        height = block_rows(head.vocab_size, product_T_V.device.type, top_logprobs)
    for a in range(0, len(samples), height):
        b = min(a + height, len(samples))
        drawn = draw_rows(
            _finished(head, product_T_V[a:b], kernels),
            rows[a:b],
            samples[0].task.processing,
            top_logprobs,
            kernels,
        )
        yield from zip(samples[a:b], drawn, strict=True)


def sample_kind(sample: SampleRun) -> tuple[Processing, int, bool]:
    """Samples of one kind are drawn together, whichever calls they belong to."""
    return sample.task.processing, sample.call.top_logprobs, sample.stop_checker.bans_stops
