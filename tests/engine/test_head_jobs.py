"""Tiles of logits: how large, and in what order a device is asked for them and their numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_service.engine.packed.calls.score_run import ScoreRows
from scoring_service.engine.packed.steps import head_jobs
from scoring_service.engine.plain.scoring import score_completion
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    Int32Array,
    Processing,
    RowBlock,
    RowWants,
    ScoreCall,
)

FAULT = Fault(Reason.NON_FINITE_LOGITS, "not finite")
ROWS = 9


class Device:
    """Notes what it is asked for; a row's log-prob is its realised token's id, a bad id a fault."""

    def __init__(self, name: str, bad: tuple[int, ...] = ()) -> None:
        self.device = torch.device(name)
        self.bad = bad
        self.asked: list[str] = []
        self.tiles: list[weakref.ref[Tensor]] = []
        self.head = SimpleNamespace(
            vocab_size=100,
            dtype=torch.float32,
            finishes_nothing=False,
            finish=lambda product_T_V: product_T_V,
            product=self.product,
        )

    def product(self, states_T_H: Tensor) -> Tensor:
        assert not any(tile() is not None for tile in self.tiles), "two tiles of logits"
        self.asked.append(f"product of {len(states_T_H)}")
        product_T_V = torch.zeros(len(states_T_H), 100, device=self.device)
        self.tiles.append(weakref.ref(product_T_V))
        return product_T_V

    def begin(self, logits_T_V: Tensor, ids_T: Int32Array, *_: Any) -> Callable[[], RowBlock]:
        assert len(logits_T_V) == len(ids_T)
        first = ids_T[0]
        self.asked.append(f"begin {first}")

        def wait() -> RowBlock:
            self.asked.append(f"wait {first}")
            if set(ids_T) & set(self.bad):
                raise ServiceError(FAULT)
            return RowBlock(len(ids_T), ids_T.astype(np.float32))

        return wait

    def score(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float] | Fault]]:
        """Nine rows of two completions in tiles of 4."""
        monkeypatch.setattr(head_jobs, "tile_rows", lambda *_: 4)
        monkeypatch.setattr(head_jobs.dispatch, "make_tile", lambda logits_T_V, *_: logits_T_V)
        monkeypatch.setattr(head_jobs, "begin_rows", self.begin)
        wanted = [rows_of("a", 0, 3), rows_of("b", 3, ROWS)]
        states = torch.zeros(ROWS, 8, device=self.device)
        return [
            (run.name, found if isinstance(found, Fault) else found.logprobs.tolist())
            for run, _, found in head_jobs.score_rows(self.head, states, wanted, None)  # type: ignore[arg-type,attr-defined]
        ]


def rows_of(name: str, start: int, stop: int) -> ScoreRows:
    task = SimpleNamespace(candidate_ids=None, candidates=0, token_ids=np.arange(start, stop))
    group, call = SimpleNamespace(processing=Processing()), SimpleNamespace(wants=RowWants())
    run: Any = SimpleNamespace(name=name, task=task, group=group, call=call)
    places = list(range(start, stop))
    return ScoreRows(run, np.arange(stop - start, dtype=np.int32), places)


def test_a_device_has_the_next_tile_before_the_last_one_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device("meta")
    found = device.score(monkeypatch)
    assert found == [("a", [0, 1, 2]), ("b", [3]), ("b", [4, 5, 6, 7]), ("b", [8])]
    assert device.asked == [
        "product of 4", "begin 0", "product of 4", "begin 4", "wait 0",
        "product of 1", "begin 8", "wait 4", "wait 8",
    ]  # fmt: skip


def test_a_cpu_has_computed_what_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("cpu")
    assert len(device.score(monkeypatch)) == 4
    assert device.asked == [
        "product of 4", "begin 0", "wait 0", "product of 4", "begin 4", "wait 4",
        "product of 1", "begin 8", "wait 8",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["meta", "cpu"])
def test_a_tile_is_made_again_for_rows_beside_one_at_fault(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, with one tile of logits at a time, and whatever was begun meanwhile."""
    found = Device(name, bad=(1, 8)).score(monkeypatch)
    assert found == [("a", FAULT), ("b", [3]), ("b", [4, 5, 6, 7]), ("b", FAULT)]


@pytest.mark.parametrize(("name", "height"), [("cpu", 32), ("meta", 208)])
def test_the_plain_path_has_tiles_as_its_device_takes_them(name: str, height: int) -> None:
    """Of 24 and of 128 MiB: rows of a few would leave a GPU waiting for its host."""
    heights: list[int] = []

    def logits(states_T_H: Tensor) -> Tensor:
        heights.append(len(states_T_H))
        raise ServiceError(FAULT)

    model: Any = SimpleNamespace(
        head=SimpleNamespace(vocab_size=151_936, logits=logits),
        states=lambda ids: torch.empty(len(ids), 8, device=name),
        weight_version=1,
    )
    completion = CompletionTask(0, np.zeros(600, np.int32), ((0, 600),))
    group = GroupTask(0, np.zeros(3, np.int32), (completion,), Processing(), 0)
    with pytest.raises(ServiceError):
        next(score_completion(model, ScoreCall(1, (group,), RowWants()), group, completion))
    assert heights == [height]
