"""The pretended device notices what CUDA would, so that tests on it can fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from scoring_service.kernels.transfer import copy_async, to_device_async
from tests.kernels.gpu.pretended.cuda import pretended_gpu
from tests.kernels.gpu.pretended.tensors import GPU, PretendedDevice, WaitError
from tests.kernels.gpu.small_kernels import exponentials


@pytest.fixture
def device() -> Iterator[PretendedDevice]:
    with pretended_gpu() as device:
        yield device


@pytest.mark.usefixtures("device")
def test_what_is_made_there_is_there() -> None:
    made = torch.arange(6, device="cuda").reshape(2, 3)
    for tensor in (
        made,
        made[1],
        made.float() * 2,
        made.new_empty(3),
        torch.tensor([1], device=GPU),
    ):
        assert tensor.is_cuda
        assert tensor.device == GPU
    assert made[1].tolist() == [3, 4, 5]
    made[1, 1] = 7
    assert made.sum().item() == 18
    with pytest.raises(RuntimeError):
        made.numpy()


@pytest.mark.usefixtures("device")
def test_tensors_of_two_devices_do_not_meet() -> None:
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="at least two devices"):
        _ = here + there
    with pytest.raises(RuntimeError, match="at least two devices"):
        torch.nn.functional.linear(there, torch.ones(3, 2))
    assert (there + torch.tensor(2.0)).tolist() == [3, 3]  # a number may


@pytest.mark.usefixtures("device")
def test_kernels_take_no_tensors_of_the_host() -> None:
    words = torch.tensor([1 << 30, 1 << 20], device="cuda")
    found = torch.zeros(2, device="cuda")
    exponentials[(1,)](words, found, BLOCK=2)
    assert (found > 0).all()
    with pytest.raises(ValueError, match="cpu tensor"):
        exponentials[(1,)](words.cpu(), found, BLOCK=2)


def test_what_is_copied_to_the_host_is_there_when_somebody_waited(device: PretendedDevice) -> None:
    there = torch.arange(4.0, device="cuda")
    early = torch.empty(4, pin_memory=True)
    early.copy_(there, non_blocking=True)
    late = there.to("cpu", non_blocking=True)
    assert early.tolist() != [0, 1, 2, 3]
    assert late.tolist() != [0, 1, 2, 3]
    assert device.waits == 0
    copied = torch.cuda.Event()
    copied.record()
    later = (there + 1).to("cpu", non_blocking=True)
    for _ in range(2):
        copied.synchronize()
        assert early.tolist() == late.tolist() == [0, 1, 2, 3]
        assert (device.waits, device.idled) == (1, 0)
    assert later.tolist() != [1, 2, 3, 4]
    torch.cuda.synchronize()
    assert later.tolist() == [1, 2, 3, 4]
    assert (device.waits, device.idled) == (2, 1)


def test_who_waits_is_counted_and_may_be_refused(device: PretendedDevice) -> None:
    there = torch.arange(4, device="cuda")
    pinned = to_device_async(torch.arange(4), GPU)
    copy_async(torch.arange(4), pinned)
    assert device.waits == 0
    waiting = (
        there.cpu, there[0].item, there.nonzero, lambda: there[there > 1],
        lambda: there[torch.tensor([1, 2])], lambda: torch.tensor([1], device="cuda"),
        lambda: bool((there == pinned).all()), torch.cuda.synchronize,
    )  # fmt: skip
    for number, wait in enumerate(waiting, 1):
        there.add_(0)  # something to wait for
        wait()
        assert device.waits == number
    torch.cuda.set_sync_debug_mode("error")
    for wait in waiting:
        with pytest.raises(WaitError):
            wait()
    torch.cuda.set_sync_debug_mode("default")


def test_what_is_recorded_is_done_when_it_is_replayed(device: PretendedDevice) -> None:
    given, kept = torch.zeros(2, device="cuda"), torch.zeros(2, device="cuda")
    found = torch.zeros(2, device="cuda")

    def compute() -> Tensor:
        doubled = given * 2
        kept.add_(doubled)
        exponentials[(1,)](doubled.long().abs() << 20, found.fill_(0), BLOCK=2)
        return doubled[1:] + 1

    graph = torch.cuda.CUDAGraph()
    graph.capture_begin((0, 1), capture_error_mode="thread_local")
    output = compute()
    graph.capture_end()
    given.copy_(torch.tensor([3.0, -4.0], device="cuda"))
    assert kept.tolist() == found.tolist() == [0, 0]
    for times in (1, 2):
        graph.replay()
        assert output.tolist() == [-7]
        assert kept.tolist() == [6 * times, -8 * times]
        assert (found > 0).all()
    assert device.replays == 2


def test_nothing_waits_while_it_is_recorded(device: PretendedDevice) -> None:
    there = torch.ones(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin((0, 1), capture_error_mode="thread_local")
    for wait in (there.cpu, lambda: to_device_async(torch.ones(2), GPU)):
        with pytest.raises(WaitError):
            wait()
    elsewhere: list[float] = []  # another thread's stream is not recorded
    thread = threading.Thread(target=lambda: elsewhere.extend((there + 1).tolist()))
    thread.start()
    thread.join()
    graph.capture_end()
    assert elsewhere == [2, 2]
    assert device.waits == 1


def test_nothing_is_left_of_it() -> None:
    with pretended_gpu():
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.empty(1, device="cuda")
    assert torch.empty(1).add_(1).device.type == "cpu"
