"""Where kernels are launched, and what is read of a device's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from scoring_service.kernels import linear_logprobs as logprobs_module
from scoring_service.kernels import linear_processed_logprobs as processed_module
from scoring_service.kernels import linear_sample as sample_module
from scoring_service.kernels.linear_logprobs import LinearHead, computing_on
from scoring_service.kernels.prefix import RowTruncation, row_temperatures


def test_kernels_are_launched_where_the_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer's head may lie on another GPU than the thread's own."""
    inside: list[torch.device] = []

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        inside.append(device)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "device", entered)
    with computing_on(torch.device("cuda", 1)):
        assert inside == [torch.device("cuda", 1)]
        assert not torch.is_autocast_enabled("cuda")
    with computing_on(torch.device("cpu")):
        assert not inside


def log_probs() -> None:
    logprobs_module.linear_logprobs(
        torch.ones(2, 3), LinearHead(torch.ones(5, 3)), torch.tensor([0, 1])
    )


def samples() -> None:
    head = LinearHead(torch.ones(5, 3))
    sample_module.linear_sample(torch.ones(2, 3), head, [1, 2], [0, 0], [0, 1])


def gradients() -> None:
    hidden = torch.ones(2, 3, requires_grad=True)
    labels = torch.tensor([0, 1])
    processed_module.linear_processed_logprobs(hidden, torch.ones(5, 3), labels).sum().backward()


@pytest.mark.parametrize(
    ("module", "call", "times"),
    [
        (logprobs_module, log_probs, 1),
        (sample_module, samples, 1),
        (processed_module, gradients, 2),
    ],
)
def test_each_function_computes_where_its_states_are(
    module: object, call: Callable[[], None], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[torch.device] = []

    def noting(device: torch.device) -> object:
        entered.append(device)
        return computing_on(device)

    monkeypatch.setattr(module, "computing_on", noting)
    call()
    assert entered == [torch.device("cpu")] * times


def test_temperatures_of_a_device_are_not_waited_for() -> None:
    """To read one is to wait for all that the device does; a tensor on "meta" cannot be read."""
    found_T = row_temperatures(torch.ones(3, device="meta"), 3, torch.device("meta"))
    assert found_T.shape == (3,)


def test_a_top_k_of_a_device_is_not_waited_for() -> None:
    """Its type can be seen."""
    meta = torch.device("meta")
    found = RowTruncation.of(torch.ones(3, dtype=torch.int64, device=meta), None, None, 3, 9, meta)
    assert found.top_k_T.shape == (3,)
    with pytest.raises(ValueError, match="top_k must be an integer"):
        RowTruncation.of(torch.ones(3, device=meta), None, None, 3, 9, meta)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), 1e-60, 1e39])
def test_temperatures_of_the_host_are_looked_at(value: float) -> None:
    """In fp32, as rows are divided by them, and wherever the rows are."""
    for given in (value, torch.tensor([1.0, value], dtype=torch.float64)):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            row_temperatures(given, 2, torch.device("meta"))
