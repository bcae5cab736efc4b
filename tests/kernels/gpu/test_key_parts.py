"""Chains of earlier keys that are cut into parts: against float64, and the same bits anyhow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_service.kernels import key_parts
from scoring_service.kernels.gpu import attention, attention_work
from scoring_service.kernels.gpu.attention import Scores, attend
from scoring_service.kernels.gpu.attention_work import MANY_QUERIES, Heads, Room, work_of
from scoring_service.kernels.key_parts import KEY_PARTS, PARTIAL_BYTES, KeyParts, partial_bytes
from tests.kernels.gpu import wrong_kernels
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.test_attention import (
    SLACK,
    Layer,
    Step,
    plainly,
    random_step,
    run,
    run_work,
)
from tests.kernels.gpu.variants import Variant, recorded

FP32 = torch.float32
SMALL = KeyParts(few=64, many=128)
"""An interpreter is slow."""

SEGMENTS = [
    *((row, 1, first) for row, first in enumerate((0, 1, 63, 64, 65, 127, 128, 129, 199, 448))),
    (10, 7, 150),
    (17, 33, 193),
    (50, 2, 64),
]
"""Sampled tokens around multiples of a part, and segments of several."""
ROWS = 52

LAYERS = {
    "grouped": Layer(),
    "odd widths": Layer(width=24, value_width=20),
    "window that begins inside a part": Layer(window=100),
    "window wider than most chains": Layer(window=300),
    "window of a part, which is not cut": Layer(window=64),
    "window of a part and one": Layer(window=65),
    "soft-cap": Layer(softcap=2.0),
    "sinks": Layer(sinks=True),
    "everything": Layer(5, 1, 40, 8, window=83, softcap=3.0, sinks=True),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_parts, "KEY_PARTS", SMALL)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name: str) -> None:
    layer = LAYERS[name]
    step = random_step(layer, FP32, SEGMENTS, ROWS + 1)
    truth = plainly(layer, step, torch.float64)
    error = (run(layer, step, step.places).double() - truth)[:ROWS].abs().max()
    eager_error = (plainly(layer, step, FP32).double() - truth)[:ROWS].abs().max()
    assert error <= eager_error + SLACK
    assert (run(layer, step, step.places)[ROWS:] == 7.0).all(), "padding is nobody's to write"


def test_parts_as_they_are_served() -> None:
    """A sampled token far into a sequence, one that is not cut, and one on the edge of a part."""
    layer = Layer(heads=2, kv_heads=1, sinks=True)
    step = random_step(layer, FP32, [(0, 1, 1300), (1, 1, 512), (2, 1, 1024)], 3)
    work = work_of(step.places, layer.of(FP32), DEVICE)
    (items,) = work.items
    assert [(int(n[2]), int(n[5])) for n in items.numbers[1:]] == [
        (1300, 1024), (512, 0), (1024, 512), (1300, 0), (1300, 512), (1024, 0),
    ]  # fmt: skip
    truth = plainly(layer, step, torch.float64)
    eager_error = (plainly(layer, step, FP32).double() - truth).abs().max()
    assert (run_work(layer, step, work).double() - truth).abs().max() <= eager_error + SLACK


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "layer", [Layer(sinks=True), Layer(window=150), Layer(heads=40, kv_heads=1)]
)
def test_blocks_of_many_queries(layer: Layer) -> None:
    """In half precision: segments, and sampled tokens with more heads than a small block has."""
    dtype = torch.bfloat16
    step = random_step(layer, dtype, [(0, 70, 300), (70, 1, 200), (71, 9, 128)], 80)
    work = work_of(step.places, layer.of(dtype), DEVICE)
    assert work.items[0].kind[0] == MANY_QUERIES
    assert work.items[0].is_cut
    truth = plainly(layer, step, torch.float64)
    error = (run_work(layer, step, work).double() - truth).abs().max()
    assert error <= torch.finfo(dtype).eps * step.values.abs().max().double()


def in_room(layer: Layer, step: Step, places: Sequence[Any], programs: int) -> Tensor:
    """As a recorded step has it, which was another before."""
    room = Room(torch.zeros(5000, dtype=torch.int32, device=DEVICE), parts=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_work, "PROGRAMS", programs)
        begun = [(row, tokens, 0, np.zeros(0, dtype=np.int64)) for row, tokens, *_ in places]
        work = work_of(begun, layer.of(FP32), DEVICE, room)
    work.refill(places)
    return run_work(layer, step, work)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layer", [Layer(sinks=True), Layer(window=100)])
def test_bits_do_not_depend_on_company_or_programs(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, beside others, in as many launches as have room, and by any number of programs."""
    step = random_step(layer, FP32, SEGMENTS, ROWS)
    together = run(layer, step, step.places)
    assert torch.equal(run(layer, step, step.places[::-1]), together)
    for place in step.places:
        rows = slice(place[0], place[0] + place[1])
        assert torch.equal(run(layer, step, [place])[rows], together[rows])
    sampled = [place for place in step.places if place[1] == 1]
    rows = slice(0, len(sampled))
    for programs in (1, 2 * len(sampled) + 6, 200):
        assert torch.equal(in_room(layer, step, sampled, programs)[rows], together[rows])
    monkeypatch.setattr(key_parts, "PARTIAL_BYTES", 150 * partial_bytes(2, 32))
    assert layer.of(FP32).partial_rows == 150
    work = work_of(step.places, layer.of(FP32), DEVICE)
    assert [items.kind[0] for items in work.items] == [16, 16, 16]
    assert torch.equal(run_work(layer, step, work), together)


@pytest.mark.usefixtures("small")
def test_what_is_launched() -> None:
    """Nothing more than ever where nothing is cut: short chains, windows no wider than a part."""

    def launched(layer: Layer, segments: list[tuple[int, int, int]]) -> set[str]:
        step = random_step(layer, FP32, segments, 20)
        variants = set[Variant]()
        with recorded(variants):
            run(layer, step, step.places)
        return {name for name, _ in variants}

    short, long = [(0, 1, 64), (1, 8, 64)], [(0, 1, 64), (1, 1, 65)]
    assert launched(Layer(), short) == launched(Layer(window=64), long) == {"packed_attention"}
    assert launched(Layer(), long) == {"packed_attention", "join_parts"}
    assert launched(Layer(window=65), long) == {"packed_attention", "join_parts"}


@pytest.mark.usefixtures("small")
def test_no_length_is_a_variant_of_its_own() -> None:
    """Steps that are cut or not, alone or recorded, launch one compilation of each kernel."""
    layer, variants = Layer(window=70), set[Variant]()
    for firsts in ((16, 200, 1), (64, 63, 7), (65, 66, 448)):
        segments = [(row, 1, first) for row, first in enumerate(firsts)]
        step = random_step(layer, FP32, segments, 16)
        with recorded(variants):
            run(layer, step, step.places)
            in_room(layer, step, step.places, 48)
    assert sorted(name for name, _ in variants) == ["join_parts", "packed_attention"]


@pytest.mark.usefixtures("small")
def test_steps_that_become_longer_in_the_same_place() -> None:
    """As a recorded step does: chains grow past a part's end, and others take their rows."""
    layer = Layer(sinks=True)
    step = random_step(layer, FP32, [(0, 1, 300), (1, 1, 300), (2, 1, 300)], 3)
    room = Room(torch.zeros(1000, dtype=torch.int32, device=DEVICE), parts=11)
    begun = [(row, 1, 0, slots[:0]) for row, *_, slots in step.places]
    works = [work_of(begun[:n], layer.of(FP32), DEVICE, room) for n in (2, 3)]
    assert works[0].partials is works[1].partials
    for firsts in ((0, 5), (64, 64, 0), (65, 63), (129, 128, 300), (1, 300), (0, 0, 0)):
        places = [
            (row, 1, first, slots[:first])
            for (row, *_, slots), first in zip(step.places, firsts, strict=False)
        ]
        work = works[len(firsts) - 2]
        work.refill(places)
        found = run_work(layer, step, work)[: len(firsts)]
        assert torch.equal(found, run(layer, step, places)[: len(firsts)])
    with pytest.raises(ValueError, match="more parts of keys than the 11"):
        works[1].refill(step.places)


def cut(tokens: int, first: int, heads: Heads) -> list[int]:
    """Where the parts of a segment's first block begin."""
    slots = np.zeros(first, dtype=np.int64)
    found = []
    for items in work_of([(0, tokens, first, slots)], heads, torch.device("cpu")).items:
        found += [int(item[5]) for item in items.numbers[1:] if item[4] == 0]
    return sorted(found)


def test_what_is_cut() -> None:
    """By a segment's own length and place, and a layer's heads."""
    few, many = KEY_PARTS.few, KEY_PARTS.many
    heads = Heads(group=2, kv_heads=8, value_width=128, dtype=torch.bfloat16)
    assert cut(1, few, heads) == [0]
    assert cut(1, few + 1, heads) == [0, few]
    assert cut(8, 3 * few, heads) == [0, few, 2 * few]
    assert cut(9, many, heads) == [0]
    assert cut(128, many + 1, heads) == [0, many]
    # It has more programs of its own than a quarter of a large device.
    assert cut(129, 10 * many, heads) == [0]
    assert cut(8, 10 * few, replace(heads, kv_heads=64)) == [0]
    assert len(cut(1, 10 * few, replace(heads, kv_heads=64))) == 10
    # Sampled tokens whose heads take a larger block.
    assert cut(1, 2 * few, replace(heads, group=20)) == [0, few]
    # One more part, and its results would have no room.
    wide = Heads(group=1, kv_heads=128, value_width=128, dtype=torch.bfloat16)
    longest = wide.partial_rows * few
    assert longest > 500_000
    assert len(cut(1, longest, wide)) == wide.partial_rows
    assert cut(1, longest + 1, wide) == [0]


def test_results_of_parts_have_the_bytes_that_are_counted() -> None:
    """However many parts a step has."""
    heads = Heads(group=4, kv_heads=16, value_width=128, dtype=torch.bfloat16)
    slots = np.zeros(20_000, dtype=np.int64)
    places = [(row, 1, len(slots), slots) for row in range(60)]
    places += [(60 + 17 * n, 17, len(slots), slots) for n in range(20)]
    work = work_of(places, heads, torch.device("cpu"))
    assert len(work.items) > 2
    held = sum(t.nbytes for t in (work.partials.sums, work.partials.marks))
    assert 0.9 * PARTIAL_BYTES < held <= PARTIAL_BYTES
    for items in work.items:
        total = int(items.numbers[0, 0])
        assert total == len(items.numbers) - 1 == items.programs
        assert len({int(place) for place in items.numbers[1:, 7]}) == total


# --- other ways to join


def split_attention(mode: str, step: Step) -> Tensor:
    """[rows, heads] of one-wide values, by the small kernel."""
    rows, heads = step.queries.shape[1], step.queries.shape[0]
    scores, values = torch.full((rows, heads, 512), -torch.inf), torch.zeros(rows, heads, 512)
    for row, _, first, slots in step.places:
        keys = torch.cat([step.kept[0][0].cpu()[slots], step.keys[0].cpu()[row : row + 1]])
        own = torch.cat([step.kept[1][0].cpu()[slots], step.values[0].cpu()[row : row + 1]])
        scores[row, :, : first + 1] = step.queries[:, row].cpu() @ keys.T * keys.shape[1] ** -0.5
        values[row, :, : first + 1] = own[:, 0]
    result = torch.empty(rows, heads, device=DEVICE)
    wrong_kernels.attend_parts[(rows, heads)](
        scores.to(DEVICE), values.to(DEVICE), step.sinks, result, MODE=mode, PART=64, BLOCK=512
    )
    return result


@pytest.fixture(params=["sink in each part", "not rescaled", "mean of parts"])
def wrong(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.usefixtures("small")
def test_parts_are_joined_in_another_way(wrong: str) -> None:
    layer = Layer(heads=2, kv_heads=1, width=16, value_width=1, sinks=True)
    step = random_step(layer, FP32, [(0, 1, 300), (1, 1, 65), (2, 1, 128)], 3)
    truth = plainly(layer, step, torch.float64)[..., 0]
    bound = (plainly(layer, step, FP32)[..., 0].double() - truth).abs().max() + SLACK

    def is_right(found: Tensor) -> bool:
        return bool((found.double() - truth).abs().max() <= bound)

    assert is_right(run(layer, step, step.places)[..., 0])
    assert is_right(split_attention("right", step))
    assert not is_right(split_attention(wrong, step))


@pytest.mark.usefixtures("small")
def test_a_part_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a query sees in one part of seven counts in these tests."""
    layer = Layer()
    step = random_step(layer, FP32, [(0, 1, 448)], 1)
    truth = plainly(layer, step, torch.float64)
    joined = attention.join_parts

    class Loses:
        def __getitem__(self, grid: Any) -> Any:
            def launch(
                numbers: Tensor, sums: Tensor, marks: Tensor, *rest: Any, **how: Any
            ) -> None:
                marks[4, 0] = -torch.inf
                joined[grid](numbers, sums, marks, *rest, **how)

            return launch

    monkeypatch.setattr(attention, "join_parts", Loses())
    work = work_of(step.places, layer.of(FP32), DEVICE)
    output = torch.empty(1, layer.heads, layer.value_width, device=DEVICE)
    scores = Scores(layer.width**-0.5, None, None, None)
    attend(step.queries, step.keys, step.values, step.kept, work, scores, output)
    assert (output.double() - truth).abs().max() > 100 * SLACK
