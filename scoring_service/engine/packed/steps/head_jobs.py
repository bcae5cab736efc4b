"""The head over the wanted rows of a step: a tile of logits at a time, used where it is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.head.head import RowHead
from scoring_service.engine.head.tiles import block_rows, tile_rows
from scoring_service.engine.outputs.draws import begin_draw
from scoring_service.engine.outputs.rows import begin_rows, cut_rows
from scoring_service.engine.outputs.sample_slices import DrawnToken
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.score_run import CompletionRun, ScoreRows
from scoring_service.errors import Fault, ServiceError
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.kernels.transfer import to_device_async
from scoring_service.types import Int32Array, RowBlock, RowWants

Scored = tuple[CompletionRun, Int32Array, RowBlock | Fault]
"""A completion, indices of its rows, and their numbers or why there are none."""


def score_rows(
    head: RowHead, states: Tensor, wanted: Sequence[ScoreRows], kernels: CpuKernels | None
) -> Iterator[Scored]:
    """Numbers of rows, in the given order for each completion.

    A GPU is asked for the next block before the numbers of the last one are waited for: it does not
    idle while the host takes them.

    Args:
        head: makes logits of states.
        kernels: what reads them on a CPU, if there is anything.
        states: the step's table of states, [S, H].
        wanted: rows, those of one `score_kind` side by side.
    """
    places = np.concatenate([np.asarray(rows.states, dtype=np.int64) for rows in wanted])
    tiles = _Tiles(head, states, to_device_async(torch.from_numpy(places), states.device))
    most = 0 if states.device.type == "cpu" else 1
    begun: deque[tuple[_Job, Callable[[], RowBlock]]] = deque()
    for job in _jobs(tiles, wanted):
        begun.append((job, _begin(tiles, job, kernels)))
        if len(begun) > most:
            yield from _end(tiles, *begun.popleft(), kernels)
    while begun:
        yield from _end(tiles, *begun.popleft(), kernels)


class _Tiles:
    """The head's products over wanted rows, of which one exists at a time."""

    def __init__(self, head: RowHead, states: Tensor, index: Tensor) -> None:
        self.head = head
        self.rows = len(index)
        self.device = states.device
        self.height = tile_rows(head.vocab_size, head.dtype.itemsize, states.device.type)
        self._states = states
        self._index = index
        self._first = -1
        self._product_T_V: Tensor | None = None

    def product(self, start: int, stop: int) -> Tensor:
        """Of rows inside one tile, which is made unless it is there."""
        first = start - start % self.height
        if self._first != first or self._product_T_V is None:
            self._product_T_V = None  # before the next one is made
            inside = self._index[first : first + self.height]
            self._product_T_V = self.head.product(self._states[inside])
            self._first = first
        return self._product_T_V[start - first : stop - first]


def _spans(wanted: Sequence[ScoreRows]) -> list[tuple[ScoreRows, int, int]]:
    spans = []
    place = 0
    for rows in wanted:
        spans.append((rows, place, place + len(rows.rows)))
        place += len(rows.rows)
    return spans


def score_kind(rows: ScoreRows) -> tuple[RowWants, int]:
    """Rows of one kind are computed together, whichever calls they belong to.

    They are asked the same; how their logits are processed is each row's own.
    """
    candidates = rows.run.task.candidate_ids
    width = -1 if candidates is None else candidates.shape[1]
    return rows.run.call.wants, width


_Piece = tuple[ScoreRows, int, int, int]
"""Rows, where those inside a block begin and end, and where all of them begin."""

_Job = list[_Piece]
"""Rows of one kind, of one block of one tile."""


def _jobs(tiles: _Tiles, wanted: Sequence[ScoreRows]) -> Iterator[_Job]:
    """All rows in order."""
    spans = _spans(wanted)
    for first in range(0, tiles.rows, tiles.height):
        last = min(first + tiles.height, tiles.rows)
        inside = [span for span in spans if span[1] < last and span[2] > first]
        for _, members in groupby(inside, key=lambda span: score_kind(span[0])):
            pieces = [(r, max(a, first), min(b, last), a) for r, a, b in members]
            yield from _cut(pieces, _height(tiles, pieces[0][0]))


def _height(tiles: _Tiles, rows: ScoreRows) -> int:
    listed = rows.run.call.wants.top_k + rows.run.task.candidates
    return block_rows(tiles.head.vocab_size, tiles.device.type, listed)


def _cut(pieces: list[_Piece], height: int) -> Iterator[_Job]:
    start, stop = pieces[0][1], pieces[-1][2]
    for a in range(start, stop, height):
        b = min(a + height, stop)
        yield [(r, max(x, a), min(y, b), o) for r, x, y, o in pieces if x < b and y > a]


def _end(
    tiles: _Tiles, job: _Job, wait: Callable[[], RowBlock], kernels: CpuKernels | None
) -> Iterator[Scored]:
    """The numbers of a block that was begun."""
    try:
        yield from _parts(job, wait())
    except ServiceError:
        # One of them is at fault; the others are answered.
        for piece in job:
            rows, x, y, origin = piece
            try:
                yield from _parts([piece], _begin(tiles, [piece], kernels)())
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


def _begin(tiles: _Tiles, job: _Job, kernels: CpuKernels | None) -> Callable[[], RowBlock]:
    """Asks for the numbers of a block."""
    run = job[0][0].run
    product_T_V = tiles.product(job[0][1], job[-1][2])
    candidates = None
    if run.task.candidate_ids is not None:
        found = [(r.candidate_ids, x - o, y - o) for r, x, y, o in job]
        candidates = np.concatenate([ids[x:y] for ids, x, y in found if ids is not None])
    processings = [r.run.group.processing for r, x, y, _ in job for _ in range(x, y)]
    realised_ids = np.concatenate([r.realised_ids[x - o : y - o] for r, x, y, o in job])
    return begin_rows(
        dispatch.make_tile(
            _finished(tiles.head, product_T_V, kernels),
            [processing.temperature for processing in processings],
            realised_ids,
            run.call.wants.token_id_limit,
            kernels,
        ),
        realised_ids,
        processings,
        run.call.wants,
        candidates,
    )


def _parts(job: _Job, block: RowBlock) -> Iterator[Scored]:
    """Each completion's own."""
    run, first = job[0][0].run, job[0][1]
    # Results of several calls are not sent at the same time: each has memory of its own.
    shared = any(r.run.call is not run.call for r, _, _, _ in job)
    for r, x, y, o in job:
        ends_without = bool(r.realised_ids[y - o - 1] < 0)
        yield (
            r.run,
            r.rows[x - o : y - o],
            cut_rows(block, x - first, y - first, next_token=ends_without, copy=shared),
        )


_Begun = tuple[list[SampleRun], Callable[[], list[DrawnToken | Fault]]]
"""Samples, and what waits for the token of each."""


def draw_samples(
    head: RowHead,
    states: Tensor,
    wanted: Sequence[tuple[SampleRun, int]],
    kernels: CpuKernels | None,
) -> Iterator[tuple[SampleRun, DrawnToken | Fault]]:
    """The next token of each sample.

    A GPU is asked for everything that is drawn from a product before any of it is waited for.

    Args:
        head: makes logits of states.
        states: the step's table of states, [S, H].
        wanted: samples with the place of their state.
        kernels: what reads logits on a CPU, if there is anything.
    """
    tile = tile_rows(head.vocab_size, head.dtype.itemsize, states.device.type)
    index = to_device_async(torch.tensor([place for _, place in wanted]), states.device)
    for first in range(0, len(wanted), tile):
        product_T_V = head.product(states[index[first : first + tile]])
        samples = [sample for sample, _ in wanted[first : first + tile]]
        begun = list(_begin_draws(head, product_T_V, samples, kernels))
        del product_T_V  # before the next one is made
        for samples, wait in begun:
            yield from zip(samples, wait(), strict=True)


def _begin_draws(
    head: RowHead, product_T_V: Tensor, samples: list[SampleRun], kernels: CpuKernels | None
) -> Iterator[_Begun]:
    """Samples of a tile, of any settings: in blocks, where copies of logits are made."""
    rows = [sample.draw_row() for sample in samples]
    height = len(samples)
    if not as_they_are(head, product_T_V.device, kernels):
        listed = max(row.top_logprobs for row in rows)
        height = block_rows(head.vocab_size, product_T_V.device.type, listed)
    make_tile = partial(dispatch.make_tile, kernels=kernels)
    for a in range(0, len(samples), height):
        b = min(a + height, len(samples))
        wait = begin_draw(_finished(head, product_T_V[a:b], kernels), rows[a:b], make_tile)
        yield samples[a:b], wait
