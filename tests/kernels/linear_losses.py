"""Checks of the trainer's truncated log-probs, for every back-end that has them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoring_service.kernels import (
    linear_processed_logprobs as linear_processed_logprobs_module,
)
from scoring_service.kernels import (
    reference,
)
from scoring_service.kernels.linear_processed_logprobs import linear_processed_logprobs
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
