"""How often a device is asked for rows of one setting, and of eight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_service.kernels import dispatch
from tests.engine.mixed_settings import (
    DRAWN,
    SCORED,
    TRUNCATED,
    drawn_bits,
    mixed_rows,
    scored_bits,
)
from tests.kernels import cases
from tests.kernels.gpu.pretended.cuda import pretended_gpu
from tests.kernels.gpu.pretended.tensors import GPU, PretendedDevice

ROWS, VOCAB = 8, 300


@pytest.fixture(scope="module")
def device() -> Iterator[PretendedDevice]:
    with pretended_gpu() as device:
        yield device


@pytest.fixture
def launches(device: PretendedDevice, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each launch of a kernel of ours."""
    found: list[None] = []
    launch = device.launch

    def counted(work: Callable[[], object]) -> None:
        found.append(None)
        launch(work)

    monkeypatch.setattr(device, "launch", counted)
    return found


def logits() -> Tensor:
    rng = np.random.default_rng(6)
    rows = np.stack([cases.random_row(rng, VOCAB) for _ in range(ROWS)])
    return torch.from_numpy(rows).to(GPU)


def test_draws_are_one_launch_each_whatever_the_settings(
    device: PretendedDevice, launches: list[None]
) -> None:
    """The host waits once, and each row has the bits of itself alone."""
    counts = []
    for settings in ([TRUNCATED], DRAWN):
        logits_T_V, rows = logits(), mixed_rows(settings, ROWS)
        device.wait("the logits")
        launches.clear()
        idled, waits = device.idled, device.waits
        found = drawn_bits(logits_T_V, rows, dispatch.make_tile)
        counts.append(len(launches))
        assert (device.idled - idled, device.waits - waits) == (1, 1)
        for place, row in enumerate(rows):
            one_1_V = logits_T_V[place : place + 1]
            assert drawn_bits(one_1_V, [row], dispatch.make_tile) == found[place : place + 1]
    assert counts[0] == counts[1] > 0


def test_scores_are_one_launch_each_whatever_the_settings(
    device: PretendedDevice, launches: list[None]
) -> None:
    counts = []
    for settings in ([TRUNCATED] * ROWS, SCORED):
        logits_T_V = logits()
        device.wait("the logits")
        launches.clear()
        found = scored_bits(logits_T_V, 0, settings, dispatch.make_tile)
        counts.append(len(launches))
        for place, setting in enumerate(settings):
            one_1_V = logits_T_V[place : place + 1]
            alone = scored_bits(one_1_V, place, [setting], dispatch.make_tile)
            assert alone == found[place : place + 1], setting
    assert counts[0] == counts[1] > 0
