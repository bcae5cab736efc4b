"""What is measured beside the service is the same work: every row, every token by itself."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.between_tokens import beside_the_last, between_tokens
from benchmarks.sides import SideConfig, bare, packed_forward
from benchmarks.sides.engine import Engine, sample_call
from benchmarks.workloads import Sampling, Scoring
from scoring_service.engine.attention.packing import Packing
from scoring_service.engine.packed.steps.body import PackedBody
from scoring_service.models import tiny_model_path

CONFIG = SideConfig(str(tiny_model_path()), "bfloat16", "bfloat16")
SCORING = Scoring([([5, 6, 7], [[8] * 70, [9] * 3]), ([4], [[1, 2]])], k=2)
SAMPLING = Sampling([[3, 4], [5, 6], [7, 8]], 6)


@pytest.fixture(scope="module")
def packed() -> packed_forward.PackedForward:
    return packed_forward.make(CONFIG)


def test_the_packed_forward_has_all_steps_and_rows_of_the_engine(
    packed: packed_forward.PackedForward,
) -> None:
    assert sum(recorded.rows for recorded in packed._record(SCORING)) == 70 + 3 + 2
    drawn = packed._record(SAMPLING)
    assert sum(recorded.rows for recorded in drawn) == 3 * 6
    tokens = sum(len(recorded.step.decode_tokens) for recorded in drawn)
    assert tokens == 3 * 5, "the first are prompts'"
    for work in (SCORING, SAMPLING):
        assert packed.run(work).seconds > 0


def test_the_packed_forward_attends_to_and_keeps_what_the_engine_does(
    packed: packed_forward.PackedForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long completions in chunks, and pages that others have by then."""
    long = Scoring([([5, 6, 7], [[8] * 200, [9] * 150]), ([4] * 90, [[1] * 70, [2] * 9])])
    seen: list[list[Any]] = []
    make = PackedBody._packing

    def watched(body: PackedBody, *of_step: Any) -> Packing:
        packing = make(body, *of_step)
        trees = [(tree.prefix_slots.tolist(), tree.nodes) for tree in packing.trees]
        seen.append([trees, packing.kept_rows.tolist(), packing.kept_slots.tolist()])
        return packing

    monkeypatch.setattr(PackedBody, "_packing", watched)
    packed.run(long)
    steps = len(seen) // 2
    assert steps >= 1
    assert seen[:steps] == seen[steps:]
    assert any(slots for _, _, slots in seen)


def test_the_bare_forward_does_the_work_by_itself() -> None:
    side = bare.make(CONFIG)
    for work in (SCORING, SAMPLING):
        assert side.run(work).seconds > 0


def test_every_token_comes_by_itself() -> None:
    gaps = between_tokens(Engine(CONFIG), sample_call(SAMPLING))
    assert len(gaps) == 3 * 5
    assert all(gap > 0 for gap in gaps), "tokens that were handed over together"


def test_what_lies_beside_a_prompt_and_beside_its_sample() -> None:
    drawn = {(0, 0): [1.0, 2.0, 4.0, 7.0], (0, 1): [2.0, 4.0, 8.0], (1, 0): [4.0, 5.0]}
    assert beside_the_last(drawn, came=1.5) == ([2.0, 2.0], [3.0, 4.0])
