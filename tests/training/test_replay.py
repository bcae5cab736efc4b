"""Processed log-probs and entropy of the trainer, against float64 row by row."""

from __future__ import annotations

import inspect
import math
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scoring_client import replay
from scoring_client.replay import (
    entropy,
    linear_processed_logprobs,
    processed_logprobs,
    row_settings,
)
from scoring_client.training.fused import FusedLinear, fused_linear_processed_logprobs
from scoring_client.values.processing import ProcessingSources, ResolvedProcessing
from tests.kernels import cases, oracle
from tests.kernels.checks import EDGE

SETTINGS = {
    "temperature": torch.tensor([1.0, 0.7, 1.3, 2.0, 0.25, 1.0, 1.0]),
    "top_k": torch.tensor([0, 5, -1, 60, 1, 20, 7]),
    "top_p": torch.tensor([1.0, 0.9, 0.5, 1.0, 0.8, 0.95, 1.0]),
    "min_p": torch.tensor([0.0, 0.0, 0.0, 0.05, 0.0, 0.02, 0.3]),
}
"""Seven rows, no two alike."""


def tile(seed: int = 0, vocab: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(np.stack([cases.continuous(rng, vocab) for _ in range(7)]))
    return logits, torch.from_numpy(rng.integers(vocab, size=7))


def float64_truth(logits_V: np.ndarray, row: int) -> tuple[np.ndarray, bool]:
    """Every token's processed log-prob, and whether one lies on the nucleus's edge."""
    x_V = oracle.scaled(logits_V, float(SETTINGS["temperature"][row]))
    k, p, m = (float(SETTINGS[name][row]) for name in ("top_k", "top_p", "min_p"))
    keep = oracle.support(x_V, int(k), p, m)
    edge = oracle.nucleus_edge(x_V, int(k), p, EDGE)
    return oracle.processed_logprobs(x_V, keep), bool(edge.any())


def test_mixed_settings_against_float64() -> None:
    compared = outside = 0
    for seed in range(60):
        logits, labels = tile(seed)
        ours = processed_logprobs(logits, labels, **SETTINGS, keep_labels=False)
        for row in range(7):
            truth, on_the_edge = float64_truth(logits[row].numpy(), row)
            if on_the_edge:
                continue
            expected = truth[labels[row]]
            compared += 1
            outside += expected == -math.inf
            assert ours[row].item() == pytest.approx(expected, abs=2e-5)
    assert compared > 400
    assert outside > 100


def test_the_label_guard_gives_a_finite_number() -> None:
    logits, _ = tile()
    worst = logits.argmin(dim=1)
    without = processed_logprobs(logits, worst, **SETTINGS, keep_labels=False)
    guarded = processed_logprobs(logits, worst, **SETTINGS)
    assert torch.isneginf(without[[1, 2, 4, 5, 6]]).all()
    assert torch.isfinite(guarded).all()
    # As with the server's keep_realised: the label joins the support and its mass.
    x_V = oracle.scaled(logits[5].numpy(), 1.0)
    keep = oracle.support(x_V, 20, 0.95, float(SETTINGS["min_p"][5]))
    keep[worst[5]] = True
    expected = oracle.processed_logprobs(x_V, keep)[worst[5]]
    assert guarded[5].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    logits, labels = tile()
    for call in (
        lambda t: processed_logprobs(logits, labels, temperature=t),
        lambda t: entropy(logits, temperature=t),
        lambda t: linear_processed_logprobs(logits, torch.randn(9, 60), labels % 9, temperature=t),
    ):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            call(temperature)
        mixed = torch.ones(7)
        mixed[3] = temperature
        with pytest.raises(ValueError, match="temperature must be above 0"):
            call(mixed)


def test_ignored_labels_give_zero_and_no_gradient() -> None:
    logits, labels = tile()
    logits.requires_grad_(True)
    labels[2] = replay.IGNORED
    ours = processed_logprobs(logits, labels, **SETTINGS)
    ours.sum().backward()
    assert ours[2] == 0
    assert (logits.grad[2] == 0).all()
    assert (logits.grad[1] != 0).any()


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_ignored_rows_may_hold_anything(
    served: bool, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding that is not finite reaches neither the numbers nor the gradients of other rows."""
    if not served:
        monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: None)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 8), torch.randn(60, 8, requires_grad=True)
    labels = torch.arange(7)
    labels[2] = replay.IGNORED
    kept = torch.arange(7) != 2
    clean = hidden[kept].requires_grad_(True)
    expected = torch.log_softmax(clean @ weight.T, dim=1).gather(1, labels[kept][:, None])[:, 0]
    wanted = torch.autograd.grad(expected.sum(), (clean, weight))
    hidden[2] = bad
    hidden.requires_grad_(True)
    for chunk_rows in (None, 3):
        ours = linear_processed_logprobs(hidden, weight, labels, chunk_rows=chunk_rows)
        got = torch.autograd.grad(ours.sum(), (hidden, weight))
        assert ours[2] == 0
        assert (got[0][2] == 0).all()
        torch.testing.assert_close(ours[kept], expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(got[0][kept], wanted[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(got[1], wanted[1], rtol=0, atol=2e-5)
    logits = torch.randn(7, 60)
    logits[2] = bad
    logits.requires_grad_(True)
    processed_logprobs(logits, labels, top_p=0.9).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[2] == 0).all()


@pytest.mark.parametrize("served", [True, False])
def test_ignored_rows_may_have_any_settings(served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of a batch are padded with 0, which is no temperature and no top_p."""
    if not served:
        monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: None)
    logits, labels = tile()
    hidden, weight = torch.randn(7, 8), torch.randn(60, 8)
    labels[[1, 4]] = replay.IGNORED
    expected = [
        processed_logprobs(logits, labels, **SETTINGS),
        linear_processed_logprobs(hidden, weight, labels, **SETTINGS),
    ]
    for padding in (0, -7, math.nan):
        padded = {name: column.clone() for name, column in SETTINGS.items()}
        for column in padded.values():
            column[[1, 4]] = padding if column.is_floating_point() else -5
        ours = [
            processed_logprobs(logits, labels, **padded),
            linear_processed_logprobs(hidden, weight, labels, **padded),
        ]
        for found, wanted in zip(ours, expected, strict=True):
            assert torch.equal(found, wanted)
    # Of a row that counts it is refused, and so is what is said of all rows at once.
    for name, message in (("temperature", "above 0"), ("top_p", r"in \(0, 1\]")):
        wrong = SETTINGS[name].clone()
        wrong[0] = 0.0
        for given, given_labels in ((wrong, labels), (0.0, torch.full((7,), replay.IGNORED))):
            with pytest.raises(ValueError, match=f"{name} must be {message}"):
                processed_logprobs(logits, given_labels, **{**SETTINGS, name: given})


@pytest.mark.parametrize("keep_labels", [True, False])
@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_nan_among_the_logits_is_not_truncated_away(
    keep_labels: bool, chunk_rows: int | None
) -> None:
    """Of its own row log-prob and gradient are NaN under every setting; others do not meet it."""
    logits, _ = tile()
    labels = logits.argmax(dim=1)
    expected = processed_logprobs(logits, labels, **SETTINGS, keep_labels=keep_labels)
    for row in range(7):
        broken = logits.clone()
        broken[row, (labels[row] + 1) % 60] = math.nan
        broken.requires_grad_(True)
        ours = processed_logprobs(
            broken, labels, **SETTINGS, keep_labels=keep_labels, chunk_rows=chunk_rows
        )
        others = torch.arange(7) != row
        assert ours[row].isnan()
        assert torch.equal(ours[others], expected[others])
        (gradient,) = torch.autograd.grad(ours.sum(), broken)
        assert gradient[row].isnan().any()
        assert gradient[others].isfinite().all()


@pytest.mark.parametrize("served", [True, False])
def test_a_weight_with_nan_is_noticed(served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token's row of it is in no support; it is in every log-prob and every gradient."""
    if not served:
        monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: None)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 8, requires_grad=True), torch.randn(60, 8)
    weight[50] = math.nan
    weight.requires_grad_(True)
    ours = linear_processed_logprobs(hidden, weight, torch.arange(7), **SETTINGS)
    assert ours.isnan().all()
    for gradient in torch.autograd.grad(ours.sum(), (hidden, weight)):
        assert gradient.isnan().any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, labels = tile()
    with pytest.raises(ValueError, match=r"labels have shape \[6\] for rows \[7\]"):
        processed_logprobs(logits, labels[:6])
    vocab = logits.shape[1]
    labels[2] = vocab
    with pytest.raises(ValueError, match=f"label {vocab} is outside the vocabulary of {vocab}"):
        processed_logprobs(logits, labels)
    weight = torch.randn(vocab, 4)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        linear_processed_logprobs(torch.randn(7, 4), weight, labels)


@pytest.mark.parametrize("chunk_rows", [0, -1, -512])
def test_chunks_of_no_rows_are_refused(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every form: one that skipped the rows would return memory as it was allocated."""
    logits, labels = tile()
    hidden, weight = torch.randn(7, 4), torch.randn(logits.shape[1], 4)
    said = f"chunk_rows must be at least 1, got {chunk_rows}"
    with pytest.raises(ValueError, match=said):
        processed_logprobs(logits, labels, chunk_rows=chunk_rows)
    with pytest.raises(ValueError, match=said):
        entropy(logits, chunk_rows=chunk_rows)
    assert fused_linear_processed_logprobs(hidden, weight) is not None
    with pytest.raises(ValueError, match=said):
        linear_processed_logprobs(hidden, weight, labels, chunk_rows=chunk_rows)
    monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: None)
    with pytest.raises(ValueError, match=said):
        linear_processed_logprobs(hidden, weight, labels, chunk_rows=chunk_rows)


def test_gradients_of_the_processed_logprobs() -> None:
    """By finite differences, with the support fixed: small steps do not move it."""
    logits, labels = tile()
    logits = logits.double().requires_grad_(True)
    settings = {**SETTINGS, "temperature": SETTINGS["temperature"].double()}
    assert torch.autograd.gradcheck(
        lambda x: processed_logprobs(x, labels, **settings), logits, eps=1e-7, atol=1e-5
    )
    assert torch.autograd.gradcheck(
        lambda x: entropy(x, temperature=settings["temperature"]), logits
    )


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
def test_chunks_change_nothing(chunk_rows: int) -> None:
    logits, labels = tile()
    logits = logits.double().requires_grad_(True)
    whole = processed_logprobs(logits, labels, **SETTINGS)
    chunked = processed_logprobs(logits, labels, **SETTINGS, chunk_rows=chunk_rows)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-13)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    (expected,) = torch.autograd.grad((whole * weights).sum(), logits)
    (got,) = torch.autograd.grad((chunked * weights).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    chunked = entropy(logits, temperature=0.7, chunk_rows=chunk_rows)
    torch.testing.assert_close(chunked, entropy(logits, temperature=0.7), rtol=0, atol=1e-13)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


@pytest.mark.parametrize(("dtype", "exactly"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_the_linear_form_is_the_same_and_never_holds_the_logits(
    dtype: torch.dtype, exactly: float
) -> None:
    """In float64 this package's own, in float32 the service's."""
    torch.manual_seed(0)
    rows, width, vocab, chunk = 96, 8, 500, 16
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocab, dtype=dtype, requires_grad=True)
    served = fused_linear_processed_logprobs(hidden, weight) is not None
    assert served == (dtype == torch.float32)
    labels = torch.randint(vocab, (rows,))
    labels[::7] = replay.IGNORED
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.001}
    logits = hidden @ weight.T + bias
    expected = processed_logprobs(logits, labels, **settings)
    wanted = torch.autograd.grad(expected.sum(), (hidden, weight, bias))
    with Largest() as largest:
        ours = linear_processed_logprobs(
            hidden,
            weight,
            labels,
            bias=bias,
            head_dtype=dtype,
            chunk_rows=chunk,
            **settings,
        )
        got = torch.autograd.grad(ours.sum(), (hidden, weight, bias))
    torch.testing.assert_close(ours, expected, rtol=0, atol=exactly)
    torch.testing.assert_close(got, wanted, rtol=0, atol=100 * exactly)
    assert largest.elements <= chunk * vocab < rows * vocab // 4
    with Largest() as largest:
        processed_logprobs(logits.detach(), labels, **settings)
    assert largest.elements >= rows * vocab, "the measure itself sees whole logits"


def test_the_fused_form_takes_over_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fused(hidden: Any, weight: Any, labels: Any, **given: Any) -> torch.Tensor:
        # What is passed is what the protocol promises a kernel.
        inspect.signature(FusedLinear.__call__).bind(None, hidden, weight, labels, **given)
        asked.update(given)
        bias, keep = given.pop("bias"), given.pop("keep_labels")
        assert given.pop("chunk_rows") is None
        logits = torch.nn.functional.linear(hidden, weight, bias)
        return processed_logprobs(logits, labels, keep_labels=keep, **given)

    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8), torch.randn(40, 8)
    labels = torch.randint(40, (2, 5))
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": torch.full((2, 5), 9), "top_p": 0.9}
    monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: None)
    plain = linear_processed_logprobs(hidden, weight, labels, **settings)
    assert not asked
    monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: fused)
    taken = linear_processed_logprobs(hidden, weight, labels, **settings)
    torch.testing.assert_close(taken, plain)
    assert asked["top_k"].shape == asked["top_p"].shape == asked["temperature"].shape == (10,)
    assert "min_p" not in asked


def test_which_tensors_the_service_takes() -> None:
    narrow = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert fused_linear_processed_logprobs(narrow, narrow) is not None
    assert fused_linear_processed_logprobs(narrow, narrow.float()) is None
    assert fused_linear_processed_logprobs(narrow.double(), narrow.double()) is None
    elsewhere = narrow.to("meta")
    assert fused_linear_processed_logprobs(elsewhere, elsewhere) is None


def test_the_two_forms_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's, and this package's own for where there is no service."""
    torch.manual_seed(1)
    hidden = torch.randn(30, 16, requires_grad=True)
    weight = torch.randn(300, 16, requires_grad=True)
    labels = torch.randint(300, (30,))
    labels[::5] = replay.IGNORED
    rows: dict[str, Any] = {
        "temperature": torch.linspace(0.5, 2.0, 30),
        "top_k": torch.arange(30) * 3,
        "top_p": torch.linspace(0.2, 1.0, 30),
        "min_p": torch.linspace(0.0, 0.1, 30),
    }
    theirs = linear_processed_logprobs(hidden, weight, labels, **rows)
    monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: None)
    ours = linear_processed_logprobs(hidden, weight, labels, **rows)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(theirs.sum(), (hidden, weight))
    wanted = torch.autograd.grad(ours.sum(), (hidden, weight))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("chunk_rows", [None, 8])
def test_the_head_keeps_its_type_inside_autocast(
    served: bool, chunk_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 autograd, the backward pass outside as torch wants it."""
    torch.manual_seed(2)
    hidden = torch.randn(20, 16, requires_grad=True)
    weight = torch.randn(100, 16, requires_grad=True)
    labels = torch.randint(100, (20,))
    if not served:
        monkeypatch.setattr(replay, "fused_linear_processed_logprobs", lambda *_: None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_processed_logprobs(
            hidden, weight, labels, temperature=0.7, top_k=9, chunk_rows=chunk_rows
        )
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    truth = processed_logprobs(wide[0] @ wide[1].T, labels, temperature=0.7, top_k=9)
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=2e-5)
    got = torch.autograd.grad(ours.sum(), (hidden, weight))
    for mine, wanted in zip(got, torch.autograd.grad(truth.sum(), wide), strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_logits_keep_their_type_inside_autocast(chunk_rows: int | None) -> None:
    logits, labels = tile()
    plain = processed_logprobs(logits, labels, **SETTINGS), entropy(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = (
            processed_logprobs(logits, labels, **SETTINGS, chunk_rows=chunk_rows),
            entropy(logits, chunk_rows=chunk_rows),
        )
    for ours, expected in zip(mixed, plain, strict=True):
        assert torch.equal(ours, expected)


def test_entropy_against_float64() -> None:
    rng = np.random.default_rng(1)
    rows = [cases.random_row(rng, 300) for _ in range(50)]
    ours = entropy(torch.from_numpy(np.stack(rows)))
    for x_V, value in zip(rows, ours, strict=True):
        assert value.item() == pytest.approx(oracle.entropy(x_V), abs=1e-5)


def resolved(temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Any:
    sources = ProcessingSources(*["request"] * 5)
    return ResolvedProcessing(temperature, top_k, top_p, min_p, False, sources)


def test_settings_row_by_row() -> None:
    settings = row_settings([resolved(0.5, 7), resolved(1.0, top_p=0.9)], [2, 3])
    assert settings["temperature"].tolist() == [0.5, 0.5, 1, 1, 1]
    assert settings["top_k"].tolist() == [7, 7, 0, 0, 0]
    assert settings["top_p"].tolist() == [1, 1] + [float(np.float32(0.9))] * 3
    assert "min_p" not in settings
    assert [len(column) for column in row_settings([], []).values()] == [0, 0]
    with pytest.raises(ValueError, match="item 1 was drawn greedily"):
        row_settings([resolved(1.0), resolved(0.0)], [1, 1])
    with pytest.raises(ValueError, match="item 0 failed"):
        row_settings([None], [1])
    with pytest.raises(ValueError, match="1 processings for 2 lengths"):
        row_settings([resolved(1.0)], [1, 2])


@pytest.mark.parametrize("function", [processed_logprobs, linear_processed_logprobs])
def test_settings_row_by_row_are_typed_as_the_arguments_that_they_become(function: Any) -> None:
    """A checker takes `**row_settings(...)` key by key; of a plain dict it refuses all of them."""
    assert get_type_hints(row_settings)["return"] is replay.RowSettings
    taken = get_type_hints(function)
    for name, kind in get_type_hints(replay.RowSettings).items():
        assert kind in get_args(taken[name]), name
    settings = row_settings([resolved(1.0, 7, 0.9, 0.1)], [2])
    assert settings.keys() == get_type_hints(replay.RowSettings).keys()


def test_settings_are_made_of_processings() -> None:
    with pytest.raises(ValueError, match=r"\[sample\.processing for .*, got a tuple"):
        row_settings([(1.0, 5)], [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"of each sample.*got a ResolvedProcessing"):
        row_settings(resolved(1.0), [1])  # type: ignore[arg-type]


def test_labels_may_be_an_array_of_a_result() -> None:
    logits, labels = tile()
    ids = labels.numpy().astype(np.int32)
    assert torch.equal(
        processed_logprobs(logits, ids, **SETTINGS), processed_logprobs(logits, labels, **SETTINGS)
    )
    hidden, weight = torch.randn(7, 9), torch.randn(60, 9)
    assert torch.equal(
        linear_processed_logprobs(hidden, weight, ids, top_k=5),
        linear_processed_logprobs(hidden, weight, labels, top_k=5),
    )
    with pytest.raises(ValueError, match="labels must be a tensor or a numpy array, got list"):
        processed_logprobs(logits, ids.tolist())  # type: ignore[arg-type]


def test_decimals_replay_the_32_bits_that_were_applied() -> None:
    """Results tell 0.7 of what was 0.699999988: a replay gets the same bits of either."""
    told, exact = resolved(0.7, 0, 0.95, 0.05), [float(np.float32(v)) for v in (0.7, 0.95, 0.05)]
    settings = row_settings([told], [1])
    assert [settings[name].item() for name in ("temperature", "top_p", "min_p")] == exact
    logits, labels = (
        torch.randn(64, 500, generator=torch.Generator().manual_seed(0)),
        torch.arange(64),
    )
    by_number = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05}
    by_bits = dict(zip(by_number, exact, strict=True))
    one = processed_logprobs(logits, labels, **by_number)
    assert torch.equal(one, processed_logprobs(logits, labels, **by_bits))


@pytest.mark.parametrize("level", [-100.0, 20.0])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("top_p", [None, 0.9])
def test_logits_far_from_zero(level: float, temperature: float, top_p: float | None) -> None:
    """What all logits share costs no digits, whatever the temperature makes of it."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(16, 2000)) * 3 * temperature + level).astype(np.float32)
    labels = np.argsort(logits, axis=1)[:, -3]
    found = processed_logprobs(
        torch.from_numpy(logits), torch.from_numpy(labels), temperature=temperature, top_p=top_p
    )
    for row, (logits_V, label) in enumerate(zip(logits, labels, strict=True)):
        x_V = oracle.scaled(logits_V, cases.promoted(temperature))
        keep = oracle.support(x_V, 0, 1.0 if top_p is None else cases.promoted(top_p), 0.0)
        expected = oracle.processed_logprobs(x_V, keep)[label]
        assert found[row].item() == pytest.approx(expected, abs=2e-6)
