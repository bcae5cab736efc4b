"""Figures of GPU kernels: like is compared with like, and nothing of a peer's costs one of ours."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_kernels, gpu_timing, machine
from benchmarks.gpu_judging import at_most, judged, ranks_within
from benchmarks.gpu_linear import linear_checks
from benchmarks.gpu_sizes import DRY
from benchmarks.gpu_timing import EVENTS, GRAPH, Sides, Work, buffers_for
from benchmarks.peers import flashinfer_sampler
from scoring_service.kernels import linear_logprobs
from scoring_service.kernels.linear_logprobs import LinearHead

LIMITS = {"matrix_flops_per_second": 1e12, "copy_bytes_per_second": 1e11}


def waits(_: int) -> None:
    """Work that no graph captures."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on which a replay takes 1 s, a call from Python 3 s, and `waits` cannot be captured."""

    def capture(work: Work, buffers: int) -> Any:
        if work is waits:
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        return SimpleNamespace(replay=lambda: None)

    def seconds(run: Callable[[], object], buffers: int) -> float:
        run()
        return 1.0 if run.__name__ == "<lambda>" else 3.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_timing, "capture", capture)
    monkeypatch.setattr(gpu_timing, "seconds", seconds)


@pytest.mark.usefixtures("device")
def test_a_peer_without_a_graph_is_compared_with_ours_without_one() -> None:
    sides = Sides(2)
    assert sides.ours("ours", lambda n: None) == 1.0
    sides.peer("captured", lambda: lambda n: None)
    sides.peer("waiting", lambda: waits)
    found = sides.found
    assert [found[name]["timed"] for name in ("ours", "captured", "waiting")] == [
        GRAPH,
        GRAPH,
        EVENTS,
    ]
    assert found["waiting"]["not_captured"].endswith("when stream is capturing")
    assert found["waiting"]["times"] == [3.0] * 10, "every repetition is kept"
    assert sides.speed_over("captured", "ours") == 1.0
    assert sides.speed_over("waiting", "ours") == 1.0, "three seconds each: launches in both"
    assert found["waiting"]["over"] == {"ours": [1.0] * 10}


@pytest.mark.usefixtures("device")
def test_a_time_of_another_kind_is_compared_with_nothing() -> None:
    sides = Sides(1)
    sides.ours("ours", waits)
    sides.peer("captured", lambda: lambda n: None)
    sides.peer("missing", lambda: flashinfer_sampler.make([], *[torch.tensor([0.5])] * 3))
    assert sides.speed_over("captured", "ours") is None
    assert sides.speed_over("nobody", "ours") is None
    assert sides.found.keys() == {"ours", "captured", "missing"}


@pytest.mark.usefixtures("device")
def test_two_that_are_compared_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that becomes slower with all it does, who is last is not the slower one."""
    ran: list[str] = []

    def seconds(run: Callable[[], object], buffers: int) -> float:
        run()
        return float(len(ran))

    monkeypatch.setattr(gpu_timing, "seconds", seconds)
    monkeypatch.setattr(gpu_timing, "capture", lambda work, _: SimpleNamespace(replay=work))
    sides = Sides(1)
    sides.ours("ours", lambda n=0: ran.append("ours"))
    sides.peer("theirs", lambda: lambda n=0: ran.append("theirs"))
    alone = [statistics.median(sides.found[name]["times"]) for name in ("theirs", "ours")]
    assert alone[0] / alone[1] > 2
    ran[:] = ran[:20]
    assert sides.speed_over("theirs", "ours") == pytest.approx(1.0, abs=0.01)
    assert ran[20:] == ["theirs", "ours", "ours", "theirs"] * 5
    assert len(sides.found["theirs"]["over"]["ours"]) == 10


@pytest.mark.usefixtures("device")
def test_a_peer_that_fails_while_it_is_compared_costs_its_own_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_graphs(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    calls: list[int] = []

    def work(n: int) -> None:
        calls.append(n)
        if len(calls) > 1 + 10 + 5:
            raise RuntimeError("no memory is left")

    monkeypatch.setattr(gpu_timing, "capture", without_graphs)
    sides = Sides(1)
    sides.ours("ours", waits)
    sides.peer("theirs", lambda: work)
    assert sides.speed_over("theirs", "ours") is None
    assert "no memory" in sides.found["theirs"]["failed"]
    assert sides.found["theirs"]["seconds"] == sides.found["ours"]["seconds"] == 3.0


@pytest.mark.usefixtures("device")
def test_what_a_graph_reads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer's parameters, which are nobody else's: replays would read what is there after them."""
    parameters: list[weakref.ref[Tensor]] = []

    def make() -> Work:
        own_T = torch.ones(4)
        parameters.append(weakref.ref(own_T))
        return lambda n: own_T + n

    sides = Sides(1)
    sides.ours("ours", lambda n: None)
    sides.peer("theirs", make)
    assert sides.found["theirs"]["timed"] == GRAPH
    assert parameters[0]() is not None
    assert sides.speed_over("theirs", "ours") == 1.0


def test_waiting_is_found_before_a_capture_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: pytest.fail("a capture was begun"))

    def work(_: int) -> None:
        assert modes[-1] == "error"
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        gpu_timing.capture(work, 1)
    assert modes == ["default", "error", "default"]


def test_buffers_of_one_row_are_more_than_a_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an H200: 50 MB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    row = 4 * 151_936
    assert buffers_for(row) * row > 5 * 50e6


def test_ranks_are_exact_where_logits_are_there() -> None:
    x_T_V = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    for target, rank in ((0, 2), (1, 1), (2, 3), (3, 4)):
        ids_T = torch.tensor([target])
        for given in range(1, 5):
            found = ranks_within("ranks", torch.tensor([given]), x_T_V, ids_T, 0.0)
            assert found.met is (given == rank)
        near = ranks_within("ranks", torch.tensor([rank]), x_T_V.double(), ids_T, 1e-4)
        assert near.met


def test_plain_fp32_errs_as_a_product_of_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may add up a few rows in another order than thousands."""
    heights: list[int] = []

    def x_of(hidden_T_H: Tensor, head: LinearHead) -> Tensor:
        heights.append(len(hidden_T_H))
        return hidden_T_H @ head.weight_V_H.t()

    monkeypatch.setattr(linear_logprobs, "x_of", x_of)
    hidden_T_H, weight_V_H = torch.randn(64, 8), torch.randn(50, 8)
    targets_T = torch.arange(64) % 50
    checks = linear_checks(hidden_T_H, LinearHead(weight_V_H), targets_T, [], 4)
    assert list(checks) == []
    assert heights == [64]


def test_a_device_waits_once_for_several_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a tenth of a copy's time and more would be the launch and the wait."""
    copies: list[int] = []
    waits: list[int] = []
    clock = SimpleNamespace(perf_counter=lambda: 2.0 * len(copies) + len(waits))
    monkeypatch.setattr(machine, "time", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(len(copies)))
    assert machine._best(lambda: copies.append(0), "cuda", 0.0) == 2.1, "copies of 2 s, a wait of 1"
    assert waits == [10, 20, 30]
    assert machine._best(lambda: copies.append(0), "cpu", 0.0) == 2.0
    assert len(waits) == 3


@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 1)])
def test_wrong_numbers_end_the_program_with_1(
    met: bool,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check = {"what": "error", "wanted": "<= 1", "got": 2.0, "met": met}
    figure = {"what": "one", "checks": [check]}
    monkeypatch.setattr(gpu_kernels, "run_part", lambda *_: [figure])
    monkeypatch.setattr(gpu_kernels, "machine", lambda *_: LIMITS)
    output = tmp_path / "figures.json"
    asked = argparse.Namespace(parts="top-k", output=output, time_limit=1.0, dry_run=True)
    assert gpu_kernels.measure_all(asked, DRY, "cpu") == code
    written = json.loads(output.read_text())
    assert written.keys() >= {"date", "commit", "command", "machine", "peers", "sizes", "top-k"}
    assert ("* one: **wrong**: error 2.0, wanted <= 1" in capsys.readouterr().out) is not met


def test_a_profiler_that_may_not_watch_costs_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(**_: Any) -> Any:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.profiler.profile", refuses)
    missed = judged([at_most("seconds", 2.0, 1.0)], [], waits)
    assert missed["targets"][0]["met"] is False
    assert "INSUFFICIENT_PRIVILEGES" in missed["profile"][0]["failed"]


def test_a_peer_pays_for_no_filter_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, int, dict[str, Any]]] = []

    def function(name: str) -> Callable[..., None]:
        def old(probs: Tensor, *given: Tensor, **named: Any) -> None:
            called.append((name, len(given), named))

        def new(probs: Tensor, *given: Any, seed: int | None = None, offset: int = 0) -> None:
            called.append((name, len(given), {"seed": seed}))

        return new if name.startswith("top_p") else old

    names = ("top_k_top_p", "min_p", "top_k", "top_p")
    functions = {f"{name}_sampling_from_probs": function(name) for name in names}
    functions["sampling_from_probs"] = function("none")
    sampling = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(sampling=sampling))

    def draw(k: int, p: float, m: float) -> None:
        tensors = torch.tensor([k]), torch.tensor([p]), torch.tensor([m])
        flashinfer_sampler.make([torch.zeros(1, 8)], *tensors)(0)

    draw(0, 1.0, 0.0)
    draw(5, 1.0, 0.0)
    draw(0, 0.9, 0.0)
    draw(5, 0.9, 0.0)
    draw(0, 1.0, 0.1)
    assert [name for name, _, _ in called] == ["none", "top_k", "top_p", "top_k_top_p", "min_p"]
    assert [count for _, count, _ in called] == [0, 1, 1, 2, 1]
    assert called[2][2] == {"seed": 1}, "no generator is asked"
    assert called[3][2] == {"filter_apply_order": "top_k_first"}
    with pytest.raises(NotImplementedError):
        draw(5, 1.0, 0.1)
