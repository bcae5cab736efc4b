"""The trainer's truncated log-probs and their gradients against autograd on full logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scoring_service.kernels import dispatch, linear_logprobs, reference
from scoring_service.kernels import linear_processed_logprobs as linear_processed_logprobs_module
from scoring_service.kernels.linear_processed_logprobs import linear_processed_logprobs
from scoring_service.kernels.linear_sample import linear_sample
from tests.kernels.cases import Setting, promoted

SETTINGS = [
    Setting(),
    Setting(0.7, top_k=5),
    Setting(1.3, top_p=promoted(0.8)),
    Setting(1.0, top_k=40, top_p=promoted(0.9), min_p=promoted(0.02)),
    Setting(2.0, min_p=promoted(0.1)),
]


class Case:
    """Random rows; labels inside and outside of supports, one of them ignored."""

    def __init__(self, rows: int, hidden: int, vocab: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(vocab)
        self.hidden = torch.randn(rows, hidden, generator=generator).to(dtype)
        self.weight = (torch.randn(vocab, hidden, generator=generator) * 3 / hidden**0.5).to(dtype)
        self.bias = torch.randn(vocab, generator=generator).to(dtype)
        self.labels = torch.randint(vocab, (rows,), generator=generator)
        best = (self.hidden.double() @ self.weight.double().t()).argmax(dim=1)
        self.labels[::2] = best[::2]
        self.labels[rows // 2] = -100
        self.upstream = torch.rand(rows, generator=generator) + 0.5
        chosen = [SETTINGS[row % len(SETTINGS)] for row in range(rows)]
        self.parameters = {
            "temperature": torch.tensor([s.temperature for s in chosen]),
            "top_k": torch.tensor([s.top_k for s in chosen]),
            "top_p": torch.tensor([s.top_p for s in chosen], dtype=torch.float64),
            "min_p": torch.tensor([s.min_p for s in chosen], dtype=torch.float64),
        }
        self.settings = chosen

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """hidden, weight and bias as leaves of a graph of their own."""
        leaves = (self.hidden, self.weight, self.bias)
        return tuple(leaf.detach().clone().to(device).requires_grad_() for leaf in leaves)  # type: ignore[return-value]

    def truth(
        self, keep_labels: bool, multiplier: float = 1.0, soft_cap: float | None = None
    ) -> tuple[Tensor, ...]:
        """Log-probs and gradients by autograd on full logits in float64, supports from fp32 x."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.tensors()]
        hidden, weight, bias = leaves

        def x_of(kind: torch.dtype) -> Tensor:
            logits = hidden.to(kind) @ weight.to(kind).t() + bias.to(kind)
            logits = logits * multiplier
            if soft_cap is not None:
                logits = torch.tanh(logits / soft_cap) * soft_cap
            return logits / self.parameters["temperature"].to(kind)[:, None]

        labels_1 = self.labels.clamp(min=0)[:, None]
        fp32 = x_of(torch.float32).detach()
        keep = torch.cat(
            [
                reference.support(fp32[row : row + 1], **setting.truncation)
                for row, setting in enumerate(self.settings)
            ]
        )
        if keep_labels:
            keep = keep.scatter(1, labels_1, True)
        logprobs = torch.log_softmax(x_of(torch.float64).masked_fill(~keep, -math.inf), dim=1)
        values = logprobs.gather(1, labels_1)[:, 0].masked_fill(self.labels < 0, 0.0)
        finite = values.masked_fill(values == -math.inf, 0.0)
        return (values.detach(), *torch.autograd.grad((finite * self.upstream).sum(), leaves))


def check(
    case: Case,
    keep_labels: bool,
    tolerance: float,
    device: torch.device | str = "cpu",
    chunk_rows: int | None = 7,
    **head: float,
) -> None:
    want, *gradients = case.truth(keep_labels, **head)
    leaves = case.tensors(device)
    hidden, weight, bias = leaves
    got = linear_processed_logprobs(
        hidden,
        weight,
        case.labels.to(device),
        bias=bias,
        keep_labels=keep_labels,
        chunk_rows=chunk_rows,
        **{name: value.to(device) for name, value in case.parameters.items()},
        **head,
    )
    assert got.dtype == torch.float32
    assert torch.equal(got.cpu() == -math.inf, want == -math.inf)
    finite = want > -math.inf
    assert (got.cpu()[finite].double() - want[finite]).abs().max() <= tolerance
    upstream = torch.where(finite, case.upstream, 0.0).to(device)
    for mine, truth in zip(torch.autograd.grad(got, leaves, upstream), gradients, strict=True):
        assert mine.dtype == leaves[0].dtype
        assert (mine.cpu().double() - truth).abs().max() <= tolerance * max(1.0, truth.abs().max())


def check_inside_autocast(
    case: Case, backward_inside: bool, device: torch.device | str, **head: float | None
) -> None:
    """As `check`, where a trainer has the layers before the head in bfloat16."""
    want, *gradients = case.truth(True, **head)  # type: ignore[arg-type]
    leaves = case.tensors(device)
    parameters = {name: value.to(device) for name, value in case.parameters.items()}
    kind = torch.device(device).type
    with torch.autocast(kind, dtype=torch.bfloat16):
        assert (leaves[0] @ leaves[1].t()).dtype == torch.bfloat16
        got = linear_processed_logprobs(
            leaves[0], leaves[1], case.labels.to(device), bias=leaves[2], **parameters, **head
        )
    upstream = case.upstream.to(device)
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=backward_inside):
        mine = torch.autograd.grad(got, leaves, upstream)
    assert (got.cpu().double() - want).abs().max() <= 2e-5
    for ours, truth in zip(mine, gradients, strict=True):
        assert (ours.cpu().double() - truth).abs().max() <= 2e-5 * max(1.0, truth.abs().max())


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


def plain_loss(case: Case) -> tuple[Tensor, list[Tensor]]:
    """The sum of the labels' log-probs by autograd on all logits in float64, and its leaves."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in case.tensors()]
    logits = leaves[0] @ leaves[1].t() + leaves[2]
    values = logits.log_softmax(dim=1).gather(1, case.labels.clamp(min=0)[:, None])[:, 0]
    return values.masked_fill(case.labels < 0, 0.0).sum(), leaves


def check_no_second_derivative(device: torch.device | str, penalty_alone: bool) -> None:
    """A penalty on gradients fails, be it all of a loss or, where it could pass unseen, a part."""
    case = Case(5, 16, 50, torch.float32)
    leaves = case.tensors(device)
    loss = linear_processed_logprobs(*leaves[:2], case.labels.to(device), bias=leaves[2]).sum()
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    truth = torch.autograd.grad(*plain_loss(case))
    for mine, want in zip(gradients, truth, strict=True):
        assert (mine.detach().cpu().double() - want).abs().max() <= 2e-5 * max(1, want.abs().max())
    penalty = sum((gradient**2).sum() for gradient in gradients)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(penalty if penalty_alone else loss + penalty, leaves)


@pytest.mark.parametrize("penalty_alone", [True, False])
def test_no_second_derivative(penalty_alone: bool) -> None:
    check_no_second_derivative("cpu", penalty_alone)


def check_changed_in_place(name: str, device: torch.device | str) -> None:
    """A view is no copy of the caller's memory: gradients would be of other labels."""
    case = Case(5, 16, 50, torch.float32)
    leaves = case.tensors(device)
    given = {
        "labels": case.labels.to(device),
        "temperature": case.parameters["temperature"].to(device),
    }
    got = linear_processed_logprobs(
        leaves[0], leaves[1], given["labels"].reshape(-1), temperature=given["temperature"]
    )
    given[name].fill_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        got.sum().backward()


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


def check_far_from_zero(level: float, temperature: float, device: torch.device | str) -> None:
    """All logits share `level`, which after division by T is many times what tells them apart."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1000, generator=generator) * 3 * temperature
    bias = (spread + level).to(device).requires_grad_()
    label = bias.detach().topk(5).indices[2:3]
    zeros = torch.zeros(1001, 4, device=device)
    found = linear_processed_logprobs(
        zeros[:1], zeros[1:], label, bias=bias, temperature=temperature, top_p=0.9
    )
    (gradient_V,) = torch.autograd.grad(found.sum(), bias)
    x_1_V = reference.scale(bias.detach()[None].cpu(), promoted(temperature))
    keep_1_V = reference.support(x_1_V, 0, promoted(0.9), 0.0)
    logprobs_V = x_1_V.double().masked_fill(~keep_1_V, -math.inf).log_softmax(dim=1)[0]
    assert found.item() == pytest.approx(logprobs_V[label.item()].item(), abs=1e-6)
    p_V = logprobs_V.exp()
    expected_V = -p_V
    expected_V[label.item()] += 1.0
    error_V = (gradient_V.cpu().double() * promoted(temperature) - expected_V).abs()
    assert (error_V[keep_1_V[0]] / p_V[keep_1_V[0]]).max().item() < 2e-5


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


def check_label_that_is_not_looked_at(
    label: int, device: torch.device | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where an index past a row ends the process: NaN in its row, and nowhere else."""
    monkeypatch.setattr(linear_processed_logprobs_module, "check_ids", lambda *_: None)
    case = Case(11, 48, 300, torch.float32)
    want, hidden_truth, *_ = case.truth(True)
    row = 2
    labels = case.labels.to(device)
    labels[row] = label
    hidden, weight, bias = case.tensors(device)
    got = linear_processed_logprobs(
        hidden, weight, labels, bias=bias, chunk_rows=4,
        **{name: value.to(device) for name, value in case.parameters.items()},
    )  # fmt: skip
    of_hidden, of_weight = torch.autograd.grad(got, (hidden, weight), case.upstream.to(device))
    others = torch.arange(len(want)) != row
    assert got[row].isnan()
    assert of_hidden[row].isnan().all()
    assert of_weight.isnan().all()
    assert (got.cpu()[others].double() - want[others]).abs().max() <= 2e-5
    assert (of_hidden.cpu()[others].double() - hidden_truth[others]).abs().max() <= 2e-5


@pytest.mark.parametrize("label", [300, 2**40])
def test_a_label_that_is_not_looked_at(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_label_that_is_not_looked_at(label, "cpu", monkeypatch)


def check_broken_rows(keep_labels: bool, device: torch.device | str) -> None:
    """NaN in one row's states, or at one token of all rows: NaN where it is wanted, elsewhere not.

    A number made of the other tokens, with a finite gradient, would be trained on.
    """
    case = Case(11, 48, 300, torch.float32)
    row, ignored = 2, 5
    assert case.labels[ignored] < 0 <= case.labels[row]
    want, hidden_truth, *_ = case.truth(keep_labels)
    parameters = {name: value.to(device) for name, value in case.parameters.items()}
    finite = want > -math.inf
    upstream = torch.where(finite, case.upstream, 0.0).to(device)

    def found(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        got = linear_processed_logprobs(
            hidden, weight, case.labels.to(device), bias=bias, keep_labels=keep_labels,
            chunk_rows=4, **parameters,
        )  # fmt: skip
        gradients = torch.autograd.grad(got, (hidden, weight), upstream)
        return got.detach().cpu(), *(gradient.cpu() for gradient in gradients)

    hidden, weight, bias = case.tensors(device)
    with torch.no_grad():
        hidden[row, 3] = math.nan
    got, of_hidden, of_weight = found(hidden, weight, bias)
    assert got[row].isnan()
    assert of_hidden[row].isnan().all()
    assert of_weight.isnan().all()
    others = finite & (torch.arange(len(want)) != row)
    assert (got[others].double() - want[others]).abs().max() <= 2e-5
    assert (of_hidden[others].double() - hidden_truth[others]).abs().max() <= 2e-5
    hidden, weight, bias = case.tensors(device)
    with torch.no_grad():
        weight[7] = math.nan
    got, of_hidden, of_weight = found(hidden, weight, bias)
    assert torch.equal(got.isnan(), case.labels >= 0)
    assert got[ignored] == 0
    assert of_hidden[case.labels >= 0].isnan().all()
    assert of_weight.isnan().all()


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
