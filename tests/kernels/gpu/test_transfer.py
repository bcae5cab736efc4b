"""Copies of a step's tables to its device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.kernels.gpu import attention
from scoring_service.kernels.gpu.attention import work_of
from scoring_service.kernels.gpu.tile import words_inputs
from scoring_service.kernels.transfer import to_device_async
from tests.kernels.gpu.device import DEVICE


def test_a_cpu_gets_the_tensor_itself() -> None:
    table = torch.arange(5)
    assert to_device_async(table, torch.device("cpu")) is table


def test_a_step_is_listed_once_where_its_slots_have_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots that others continue are listed once too, and as int32 at once."""
    listed, joined = [], []
    own, concatenate = attention._listed, np.concatenate
    monkeypatch.setattr(attention, "_listed", lambda *step: listed.append(step) or own(*step))

    def noting(*arguments: Any, **options: Any) -> Any:
        joined.append(concatenate(*arguments, **options))
        return joined[-1]

    monkeypatch.setattr(np, "concatenate", noting)
    slots = np.array([3, 1, 2**31 - 1])
    room = torch.full((9,), -1, dtype=torch.int32, device=DEVICE)
    work = work_of([(0, 1, 3, slots), (1, 2, 3, slots)], 1, torch.bfloat16, DEVICE, room)
    assert len(listed) == 1
    assert [array.dtype for array in joined] == [np.int32]
    assert work.slots.tolist() == [0, 3, 1, 2**31 - 1, *[-1] * 5]
    assert work.few_N_5.tolist() == [[0, 1, 3, 1, 0], [1, 2, 3, 1, 0]]


def test_what_arrives() -> None:
    """On a GPU without that the host waits, which torch makes an error here."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        found = to_device_async(torch.arange(1000), DEVICE)
        none = to_device_async(torch.empty((0, 5), dtype=torch.int64), DEVICE)
        work = work_of(
            [(0, 70, 2, np.array([3, 1])), (70, 1, 0, np.array([], dtype=np.int64))],
            1,
            torch.bfloat16,
            DEVICE,
        )
        words = words_inputs([2**63, 1], [0, 1], [5, 6], DEVICE)
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == list(range(1000))
    assert none.shape == (0, 5)
    assert work.many_N_5.tolist() == [[0, 70, 2, 1, 0], [0, 70, 2, 1, 64]]
    assert work.few_N_5.tolist() == [[70, 1, 0, 3, 0]]
    assert work.slots.tolist() == [0, 3, 1]
    assert words[0].tolist() == [-(2**63), 1]
    assert {tensor.device.type for tensor in (found, none, work.slots, *words)} == {DEVICE.type}
