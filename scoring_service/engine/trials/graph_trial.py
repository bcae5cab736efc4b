"""Whether recorded steps give what they give when each kernel is launched anew.

A model may do what cannot be recorded: wait for the device, or choose by its numbers what to
launch, as some mixtures of experts do. So at load a few samples take some steps both ways, before
pages are sized, and what differs or fails is not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from scoring_service.engine.attention.pages import LayerShape, PagePool, pages_for, slots_of
from scoring_service.engine.attention.segments import DecodeToken
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.fused.trials import first_line
from scoring_service.engine.machine.cuda_graphs import CudaRecorder, Recorder
from scoring_service.engine.machine.memory import is_lost
from scoring_service.engine.machine.page_budget import GRAPH_ROWS
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.packed.steps.body import PackedBody, Step
from scoring_service.engine.packed.steps.decode_graphs import DecodeGraphs
from scoring_service.engine.trials.closeness import states_agree

_PROMPT_TOKENS = 24
_STEPS = (3, 3, 2, 3)
"""Samples of each: computed, recorded, and twice replayed, with rows to spare."""


def graphs_failure(
    model: CausalModel,
    shapes: list[LayerShape],
    make_recorder: Callable[[], Recorder] = CudaRecorder,
) -> str:
    """Why steps of a model are not recorded; empty where they can be.

    Args:
        model: whose attention is Triton's.
        shapes: what its layers keep of a token.
        make_recorder: of the trial.

    Raises:
        RuntimeError: the device was lost meanwhile.
    """
    try:
        return _compare(model, shapes, make_recorder)
    except Exception as error:
        if is_lost(model.device):
            raise RuntimeError("the device was lost while a step was recorded") from error
        return first_line(error)


def _compare(
    model: CausalModel, shapes: list[LayerShape], make_recorder: Callable[[], Recorder]
) -> str:
    samples, steps = max(_STEPS), len(_STEPS)
    # Twice the pages of samples: those of one way, and those of the other.
    pages = pages_for(_PROMPT_TOKENS) + 2 * samples * pages_for(steps)
    pool = PagePool(shapes, pages, model.dtype, model.device)
    prompt = SegmentStore(pool, _PROMPT_TOKENS).prompt(_ids(model, _PROMPT_TOKENS), b"")
    eager = PackedBody(model, pool)
    eager.run(Step.of(prompt))
    before = prompt[-1].chain_slots()
    anew, recorded = (
        [
            np.concatenate([before, slots_of(pool.take(pages_for(steps)), steps)])
            for _ in range(samples)
        ]
        for _ in range(2)
    )
    graphs = DecodeGraphs(model, pool, GRAPH_ROWS[:1], _raise, make_recorder)
    ids = _ids(model, samples * steps).reshape(steps, samples)
    lengths = [_PROMPT_TOKENS] * samples
    for step, count in enumerate(_STEPS):
        for sample in range(count):
            lengths[sample] += 1
        expected, given = (
            tuple(
                DecodeToken(int(ids[step, sample]), ways[sample][: lengths[sample]])
                for sample in range(count)
            )
            for ways in (anew, recorded)
        )
        with _refusing_waits(model.device):
            found_T_H = graphs.run(given)
        expected_T_H = eager.run(Step((), expected)).states_T_H
        if found_T_H is None or not states_agree(found_T_H, expected_T_H, expected_T_H.dtype):
            return f"the states of step {step + 1} are not what they are without"
    return ""


def _ids(model: CausalModel, count: int) -> np.ndarray:
    return np.array([(17 * i + 5) % model.head.vocab_size for i in range(count)], dtype=np.int32)


@contextmanager
def _refusing_waits(device: torch.device) -> Iterator[None]:
    """What waits for the device raises: to find that while recording spoils torch's allocator."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _raise(error: Exception) -> None:
    raise error
