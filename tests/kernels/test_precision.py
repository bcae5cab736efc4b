"""fp32 products of the library's routes take factors whole, whatever the process asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from scoring_service.kernels.linear_logprobs import LinearHead, computing_on, linear_logprobs
from scoring_service.kernels.linear_processed_logprobs import linear_processed_logprobs
from scoring_service.kernels.linear_sample import linear_sample
from scoring_service.kernels.precision import whole_factors

MATMUL = {"cpu": torch.backends.mkldnn.matmul, "cuda": torch.backends.cuda.matmul}
"""Both can be set and read without a GPU."""


@pytest.fixture(autouse=True)
def settings_as_found() -> Iterator[None]:
    legacy = torch.get_float32_matmul_precision()
    found = {kind: matmul.fp32_precision for kind, matmul in MATMUL.items()}
    everywhere = torch.backends.fp32_precision
    yield
    torch.set_float32_matmul_precision(legacy)
    torch.backends.fp32_precision = everywhere
    for kind, matmul in MATMUL.items():
        matmul.fp32_precision = found[kind]


def by_the_older_name() -> None:
    torch.set_float32_matmul_precision("high")


def by_the_newer_name() -> None:
    """After which to read an older one raises."""
    for matmul in MATMUL.values():
        matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        _ = torch.backends.cuda.matmul.allow_tf32


def everywhere() -> None:
    for matmul in MATMUL.values():
        matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("ask", [by_the_older_name, by_the_newer_name, everywhere])
def test_what_was_asked_for_does_not_hold_inside(
    ask: Callable[[], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And holds again afterwards, also where the computation failed."""
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    inside: list[str] = []

    def fail() -> None:
        inside.append(MATMUL[kind].fp32_precision)
        raise ZeroDivisionError

    ask()
    assert MATMUL[kind].fp32_precision == "tf32"
    with pytest.raises(ZeroDivisionError), computing_on(torch.device(kind)):
        fail()
    assert inside == ["ieee"]
    assert MATMUL[kind].fp32_precision == "tf32"


def test_the_older_name_can_still_be_read() -> None:
    torch.set_float32_matmul_precision("medium")
    for kind in MATMUL:
        with whole_factors(kind):
            pass
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.cuda.matmul.allow_tf32


def test_a_setting_that_rounds_nothing_is_left_alone() -> None:
    """What was never set stays so, and follows what is asked for everywhere later."""
    MATMUL["cuda"].fp32_precision = "none"
    with whole_factors("cuda"):
        assert MATMUL["cuda"].fp32_precision == "none"
    torch.backends.fp32_precision = "tf32"
    assert MATMUL["cuda"].fp32_precision == "tf32"


def test_the_last_that_leaves_puts_it_back() -> None:
    """Backward passes of two GPUs run in two threads of one process."""
    MATMUL["cuda"].fp32_precision = "tf32"
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with whole_factors("cuda"):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with whole_factors("cuda"):
        thread.start()
        assert entered.wait(30)
    assert MATMUL["cuda"].fp32_precision == "ieee"
    leave.set()
    thread.join()
    assert MATMUL["cuda"].fp32_precision == "tf32"


def test_before_torch_had_the_newer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace(cuda=SimpleNamespace(matmul=object()), mkldnn=SimpleNamespace())
    monkeypatch.setattr(torch, "backends", older)
    for kind in ("cpu", "cuda"):
        torch.set_float32_matmul_precision("medium")
        with whole_factors(kind):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"


def test_a_device_without_such_a_setting() -> None:
    by_the_newer_name()
    with whole_factors("mps"):
        assert {matmul.fp32_precision for matmul in MATMUL.values()} == {"tf32"}


def log_probs(hidden: Tensor, head: LinearHead) -> list[Tensor]:
    found = linear_logprobs(hidden, head, torch.arange(len(hidden)))
    return [found.logprobs_T, found.logsumexp_T]


def samples(hidden: Tensor, head: LinearHead) -> list[Tensor]:
    rows = range(len(hidden))
    return [linear_sample(hidden, head, [3] * len(rows), [0] * len(rows), rows)]


def gradients(hidden: Tensor, head: LinearHead) -> list[Tensor]:
    leaves = [hidden.clone().requires_grad_(), head.weight_V_H.clone().requires_grad_()]
    found = linear_processed_logprobs(*leaves, torch.arange(len(hidden)))
    return [found.detach(), *torch.autograd.grad(found.sum(), leaves)]


@contextmanager
def settings_of_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    seen, product = set(), torch.mm

    def noting(*arguments: Tensor, **options: torch.dtype) -> Tensor:
        seen.add(MATMUL["cpu"].fp32_precision)
        return product(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", noting)
        yield seen


@pytest.mark.parametrize("compute", [log_probs, samples, gradients])
def test_every_route_has_the_bits_of_whole_factors(
    compute: Callable[[Tensor, LinearHead], list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this processor rounds none the bits say nothing, and the setting does."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 512, generator=generator)
    head = LinearHead(torch.randn(1000, 512, generator=generator) / 16)
    torch.set_float32_matmul_precision("highest")
    expected = compute(hidden, head)
    torch.set_float32_matmul_precision("medium")
    with settings_of_products(monkeypatch) as seen:
        found = compute(hidden, head)
    assert seen == {"ieee"}
    assert all(torch.equal(mine, want) for mine, want in zip(found, expected, strict=True))
