"""The trainer's truncated log-probs with supports and gradients from the kernels."""

from __future__ import annotations

import pytest
import torch

from scoring_service.kernels import dispatch
from tests.kernels.gpu.device import DEVICE
from tests.kernels.linear_losses import (
    Case,
    check,
    check_broken_rows,
    check_changed_in_place,
    check_far_from_zero,
    check_inside_autocast,
    check_label_that_is_not_looked_at,
    check_no_second_derivative,
)


@pytest.fixture(autouse=True)
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "backend", lambda _device: "triton")


@pytest.mark.parametrize("keep_labels", [True, False])
def test_values_and_gradients(keep_labels: bool) -> None:
    check(Case(11, 48, 300, torch.float32), keep_labels, 2e-5, DEVICE)


def test_scale_and_soft_cap() -> None:
    case = Case(6, 32, 200, torch.float32)
    check(case, True, 2e-5, DEVICE, multiplier=1.5, soft_cap=8.0)


def test_bfloat16_leaves() -> None:
    check(Case(6, 32, 200, torch.bfloat16), True, 1e-2, DEVICE)


def test_float16_leaves() -> None:
    check(Case(9, 576, 1000, torch.float16), True, 2e-3, DEVICE)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_inside_autocast(backward_inside: bool) -> None:
    check_inside_autocast(Case(6, 32, 200, torch.float32), backward_inside, DEVICE)


def test_a_vocabulary_of_several_blocks() -> None:
    """Programs past the first have columns, labels and ends of supports of their own."""
    check(Case(6, 32, 5000, torch.float32), True, 2e-5, DEVICE)


def test_logits_far_from_zero() -> None:
    check_far_from_zero(-100.0, 0.01, DEVICE)


@pytest.mark.parametrize("keep_labels", [True, False])
def test_broken_rows(keep_labels: bool) -> None:
    check_broken_rows(keep_labels, DEVICE)


@pytest.mark.parametrize("penalty_alone", [True, False])
def test_no_second_derivative(penalty_alone: bool) -> None:
    check_no_second_derivative(DEVICE, penalty_alone)


@pytest.mark.parametrize("name", ["labels", "temperature"])
def test_changed_in_place_between_the_passes(name: str) -> None:
    check_changed_in_place(name, DEVICE)


@pytest.mark.parametrize("label", [300, 2**32 + 3])
def test_a_label_that_is_not_looked_at(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past 32 bits too, of which the kernel reads no more."""
    check_label_that_is_not_looked_at(label, DEVICE, monkeypatch)
