"""Copies of a step's tables to its device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.kernels.gpu import attention_work
from scoring_service.kernels.gpu.attention_work import Heads, Room, work_of
from scoring_service.kernels.gpu.tile import words_inputs
from scoring_service.kernels.transfer import to_device_async
from tests.kernels.gpu.device import DEVICE

HEADS = Heads(group=1, kv_heads=2, value_width=8, dtype=torch.bfloat16)


def test_a_cpu_gets_the_tensor_itself() -> None:
    table = torch.arange(5)
    assert to_device_async(table, torch.device("cpu")) is table


def test_a_step_is_listed_once_where_its_slots_have_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots that others continue are listed once too, and as int32 at once."""
    listed, joined = [], []
    own, concatenate = attention_work._listed, np.concatenate
    monkeypatch.setattr(attention_work, "_listed", lambda *step: listed.append(step) or own(*step))

    def noting(*arguments: Any, **options: Any) -> Any:
        joined.append(concatenate(*arguments, **options))
        return joined[-1]

    monkeypatch.setattr(np, "concatenate", noting)
    slots = np.array([3, 1, 2**31 - 1])
    room = Room(torch.full((9,), -1, dtype=torch.int32, device=DEVICE), parts=5)
    work = work_of([(0, 1, 3, slots), (1, 2, 3, slots)], HEADS, DEVICE, room)
    assert len(listed) == 1
    # And work items, which are few.
    assert [(array.dtype, array.shape) for array in joined] == [
        (np.int64, (3, 8)),
        (np.int32, (4,)),
    ]
    assert work.slots.tolist() == [0, 3, 1, 2**31 - 1, *[-1] * 5]
    (items,) = work.items
    listing = [[2] * 8, [0, 1, 3, 1, 0, 0, 3, -1], [1, 2, 3, 1, 0, 0, 3, -1]]
    assert items.numbers[:3].tolist() == listing


def test_what_arrives() -> None:
    """On a GPU without that the host waits, which torch makes an error here."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        found = to_device_async(torch.arange(1000), DEVICE)
        none = to_device_async(torch.empty((0, 5), dtype=torch.int64), DEVICE)
        work = work_of(
            [(0, 70, 2, np.array([3, 1])), (70, 1, 0, np.array([], dtype=np.int64))],
            HEADS,
            DEVICE,
        )
        words = words_inputs([2**63, 1], [0, 1], [5, 6], DEVICE)
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == list(range(1000))
    assert none.shape == (0, 5)
    many, few = (items.numbers.tolist() for items in work.items)
    assert many == [[2] * 8, [0, 70, 2, 1, 0, 0, 2, -1], [0, 70, 2, 1, 64, 0, 2, -1]]
    assert few == [[1] * 8, [70, 1, 0, 3, 0, 0, 0, -1]]
    assert work.slots.tolist() == [0, 3, 1]
    assert words[0].tolist() == [-(2**63), 1]
    assert {tensor.device.type for tensor in (found, none, work.slots, *words)} == {DEVICE.type}
