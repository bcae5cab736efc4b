"""The trainer's truncated log-probs and their gradients against autograd on full logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scoring_service.kernels import dispatch, linear_logprobs
from scoring_service.kernels.linear_processed_logprobs import linear_processed_logprobs
from scoring_service.kernels.linear_sample import linear_sample
from tests.kernels.cases import Setting
from tests.kernels.linear_losses import (
    SETTINGS,
    Case,
    check,
    check_broken_rows,
    check_changed_in_place,
    check_far_from_zero,
    check_inside_autocast,
    check_label_that_is_not_looked_at,
    check_no_second_derivative,
)


@pytest.mark.parametrize("keep_labels", [True, False])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 17), (23, 100), (31, 1000)])
def test_values_and_gradients(rows: int, vocab: int, keep_labels: bool) -> None:
    """Rows of five settings in one batch, in chunks that do not divide them."""
    check(Case(rows, 48, vocab, torch.float32), keep_labels, 2e-5)


def test_one_chunk_gives_what_many_give() -> None:
    check(Case(23, 48, 300, torch.float32), True, 2e-5, chunk_rows=None)


def test_scale_and_soft_cap() -> None:
    check(Case(11, 32, 200, torch.float32), True, 2e-5, multiplier=1.5, soft_cap=8.0)


def test_bfloat16_leaves() -> None:
    """The product's sums are fp32; gradients err by the rounding of tiles and results to bf16."""
    check(Case(11, 32, 200, torch.bfloat16), True, 1e-2)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("soft_cap", [None, 8.0])
def test_inside_autocast(backward_inside: bool, soft_cap: float | None) -> None:
    """The tensors' own types decide, in both passes, wherever autocast ends."""
    case = Case(23, 48, 100, torch.float32)
    check_inside_autocast(case, backward_inside, "cpu", soft_cap=soft_cap)


def test_numbers_for_all_rows() -> None:
    case = Case(9, 16, 50, torch.float32)
    arguments = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01}
    per_row = {name: torch.tensor([value] * 9) for name, value in arguments.items()}
    alike = [
        linear_processed_logprobs(case.hidden, case.weight, case.labels, **parameters)
        for parameters in (arguments, per_row)
    ]
    assert torch.equal(*alike)


@pytest.mark.parametrize("top_k", [None, 0, -1, 50, 51])
def test_neutral_is_log_softmax(top_k: int | None) -> None:
    case = Case(9, 16, 50, torch.float32)
    got = linear_processed_logprobs(case.hidden, case.weight, case.labels.clamp(min=0), top_k=top_k)
    want = torch.log_softmax(case.hidden.double() @ case.weight.double().t(), dim=1)
    want_T = want.gather(1, case.labels.clamp(min=0)[:, None])[:, 0]
    assert (got.double() - want_T).abs().max() <= 1e-5


@pytest.mark.parametrize("penalty_alone", [True, False])
def test_no_second_derivative(penalty_alone: bool) -> None:
    check_no_second_derivative("cpu", penalty_alone)


@pytest.mark.parametrize("name", ["labels", "temperature"])
def test_changed_in_place_between_the_passes(name: str) -> None:
    check_changed_in_place(name, "cpu")


def test_labels_and_temperatures_from_inference_mode() -> None:
    """As whoever samples in it leaves them; autograd itself keeps no such tensor."""
    case = Case(9, 16, 50, torch.float32)
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            labels, temperature = case.labels + 0, case.parameters["temperature"] + 0
        hidden, weight, _ = case.tensors()
        got = linear_processed_logprobs(hidden, weight, labels, temperature=temperature)
        found.append(torch.autograd.grad(got.sum(), hidden)[0])
    assert torch.equal(*found)


def test_only_what_is_asked_has_a_gradient() -> None:
    case = Case(5, 16, 50, torch.float32)
    hidden, weight, _ = case.tensors()
    linear_processed_logprobs(hidden, weight.detach(), case.labels, top_k=3).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_no_tile_but_the_chunks_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are of chunk_rows rows, forward and backward, and nothing of V a row is saved."""
    case = Case(20, 16, 400, torch.float32)
    seen: list[tuple[int, ...]] = []
    product = torch.mm

    def spy(*arguments: Tensor, **options: Tensor) -> Tensor:
        found = product(*arguments, **options)
        seen.append(tuple(found.shape))
        return found

    monkeypatch.setattr(torch, "mm", spy)
    hidden, weight, _ = case.tensors()
    got = linear_processed_logprobs(hidden, weight, case.labels, top_p=0.5, chunk_rows=8)
    saved = got.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert all(t is None or t.numel() <= 400 * 16 for t in saved)
    got.sum().backward()
    assert seen == [(8, 400), (8, 400), (4, 400)] * 2


class LargeTensors(TorchDispatchMode):
    """What made tensors of at least so many numbers, in memory of their own."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.made_by: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for made in tree_leaves(found):
            large = isinstance(made, Tensor) and made.numel() >= self.elements
            if large and made.untyped_storage().data_ptr() not in given:
                self.made_by.append(func.overloadpacket.__name__)
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_the_weight_but_its_gradient(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a half-precision weight too, which a CPU multiplies in float32."""
    monkeypatch.setattr(linear_logprobs, "_TILE_BYTES", {"cpu": 40_000})
    case = Case(25, 64, 1000, dtype)
    hidden, weight, bias = case.tensors()
    with LargeTensors(weight.numel()) as forward:
        got = linear_processed_logprobs(hidden, weight, case.labels, bias=bias, top_k=5)
    assert forward.made_by == []
    with LargeTensors(weight.numel()) as backward:
        torch.autograd.grad(got, (hidden, weight, bias), case.upstream)
    rounded = [] if dtype == torch.float32 else ["_to_copy"]
    assert backward.made_by == ["zeros_like", *rounded]
    check(case, True, 2e-5 if dtype == torch.float32 else 1e-2, chunk_rows=None)


def test_what_does_not_fit_is_refused() -> None:
    case = Case(5, 16, 50, torch.float32)
    with pytest.raises(ValueError, match="shapes"):
        linear_processed_logprobs(case.hidden, case.weight, case.labels[:4])
    with pytest.raises(ValueError, match="temperature"):
        linear_processed_logprobs(case.hidden, case.weight, case.labels, temperature=0.0)


def test_no_rows() -> None:
    got = linear_processed_logprobs(torch.empty(0, 4), torch.ones(9, 4), torch.empty(0).long())
    assert got.shape == (0,)
    assert dispatch.backend(torch.device("cpu")) == "eager"


@pytest.mark.parametrize(("level", "temperature"), [(-100.0, 0.01), (20.0, 0.01), (-100.0, 1.0)])
def test_logits_far_from_zero(level: float, temperature: float) -> None:
    check_far_from_zero(level, temperature, "cpu")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"min_p": 1.5}, "min_p must be at least 0 and at most 1, got 1.5"),
        ({"min_p": torch.tensor([0.1, -0.1, 0.0])}, "min_p .* got -0.1"),
        ({"top_p": math.nan}, "top_p .* got nan"),
        ({"top_p": 1.01}, "top_p .* got 1.01"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": math.inf}, "temperature must be above 0 and finite, got inf"),
        ({"top_k": 2.9}, "top_k must be an integer, got 2.9"),
        ({"top_k": torch.tensor([1.0, 3.7, 0.0])}, "top_k must be an integer, got torch.float32"),
        ({"top_k": torch.tensor([1, -2, 0])}, "top_k must be at least -1, got -2"),
        ({"soft_cap": 0.0}, "soft_cap must be above 0 and finite, got 0"),
        ({"soft_cap": math.inf}, "soft_cap must be above 0 and finite, got inf"),
        ({"multiplier": 0.0}, "multiplier must be above 0 and finite, got 0"),
        ({"multiplier": math.nan}, "multiplier must be above 0 and finite, got nan"),
    ],
)
def test_parameters_that_are_none(options: dict[str, Any], named: str) -> None:
    hidden, weight, labels = torch.randn(3, 8), torch.randn(20, 8), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match=named):
        linear_processed_logprobs(hidden, weight, labels, **options)


@pytest.mark.parametrize(
    "temperature", [0.0, -1.0, math.nan, math.inf, 1e-60, torch.tensor([1.0, -1.0, 1.0])]
)
def test_temperatures_that_are_none(temperature: float | Tensor) -> None:
    head = linear_logprobs.LinearHead(torch.randn(20, 8))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        linear_logprobs.linear_logprobs(
            torch.randn(3, 8), head, torch.tensor([1, 2, 3]), temperatures=temperature
        )


def test_a_label_outside_the_vocabulary() -> None:
    case = Case(5, 16, 50, torch.float32)
    case.labels[3] = 50
    with pytest.raises(ValueError, match="id 50 is outside the vocabulary of 50"):
        linear_processed_logprobs(case.hidden, case.weight, case.labels)


@pytest.mark.parametrize("soft_cap", [0.0, -30.0, math.inf, math.nan])
def test_soft_caps_that_are_none(soft_cap: float) -> None:
    """Each function says so: with 0 every row would be uniform on a GPU."""
    head = linear_logprobs.LinearHead(torch.randn(20, 8), soft_cap=soft_cap)
    with pytest.raises(ValueError, match="soft_cap must be above 0 and finite"):
        linear_logprobs.linear_logprobs(torch.randn(1, 8), head, torch.tensor([1]))
    with pytest.raises(ValueError, match="soft_cap must be above 0 and finite"):
        linear_sample(torch.randn(1, 8), head, [1], [0], [0])


@pytest.mark.parametrize("label", [300, 2**40])
def test_a_label_that_is_not_looked_at(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_label_that_is_not_looked_at(label, "cpu", monkeypatch)


@pytest.mark.parametrize("keep_labels", [True, False])
def test_broken_rows(keep_labels: bool) -> None:
    check_broken_rows(keep_labels, "cpu")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("keep_labels", [True, False])
@pytest.mark.parametrize(
    "row_V",
    [
        [math.nan, 1.0, 2.0, 3.0, 4.0],
        [0.0, 1.0, 2.0, math.nan, 4.0],
        [math.nan, math.inf, 2.0, 3.0, -math.inf],
        [math.inf, 1.0, 2.0, 3.0, 4.0],
        [math.nan] * 5,
        [-math.inf] * 5,
    ],
)
def test_what_is_no_distribution(row_V: list[float], keep_labels: bool, setting: Setting) -> None:
    """Whatever truncates it, and wherever the label stands."""
    found = linear_processed_logprobs(
        torch.zeros(5, 4), torch.zeros(5, 4), torch.arange(5), bias=torch.tensor(row_V),
        keep_labels=keep_labels, temperature=setting.temperature, **setting.truncation,
    )  # fmt: skip
    assert found.isnan().all()
