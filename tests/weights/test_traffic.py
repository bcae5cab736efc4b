"""A training loop on two workers, calls of other clients all the time, and what may go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import grpc
import pytest
import pytest_asyncio

from scoring_client.proto import admin_pb2_grpc, weights_pb2
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.stream import Part
from scoring_service.pool.workers.process import ProcessExecutor
from scoring_service.pool.workers.worker import Worker
from scoring_service.rpc.admin.config import AdminConfig
from tests.rpc.calls import failure, reason
from tests.rpc.conftest import LIMITS, run_server
from tests.weights.conftest import ENGINE, WeightServer
from tests.weights.long_sequence import Held, assert_plain, long_part, long_sequence
from tests.weights.traffic import Traffic
from tests.weights.trainer import Trainer, begin, commit, messages

STAGING = weights_pb2.WEIGHT_UPDATE_PHASE_STAGING
COMMITTED = weights_pb2.WEIGHT_UPDATE_PHASE_COMMITTED
STEPS = 12
"""The loop of 20, with both clients of a trainer: tests/e2e/test_live_weights.py."""

NARROW = replace(ENGINE, max_batch_tokens=64, chunk_size=64)
"""Whose calls are spread over many steps."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def processes() -> AsyncIterator[WeightServer]:
    """A server whose two workers are processes."""
    settings = PoolSettings(max_queue_tokens=LIMITS.max_queue_tokens, workers=2, first_backoff=0.05)
    async with (
        run_server(
            lambda _index: ProcessExecutor(NARROW), settings, admin=AdminConfig(engine=NARROW)
        ) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        server = WeightServer(running.target, running.pool, running.stub, stub)
        await both_ready(server)
        yield server


async def restarted(server: WeightServer, index: int, starts: int) -> None:
    """Waits until a worker that was killed is known to be dead, and answers again."""
    async with asyncio.timeout(60):
        while server.pool.workers[index].starts == starts:
            await server.pool.wait_changed()
    await both_ready(server)


async def both_ready(server: WeightServer) -> None:
    async with asyncio.timeout(60):
        while not all(worker.is_ready for worker in server.pool.workers):
            await server.pool.wait_changed()


@pytest.fixture
def both_answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both workers are given parts while the test runs."""
    given: Counter[int] = Counter()
    take = Worker.take

    def counted(worker: Worker, part: Part) -> None:
        given[worker.index] += 1
        take(worker, part)

    monkeypatch.setattr(Worker, "take", counted)
    yield
    assert min(given[0], given[1]) > 0


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer()


@pytest.mark.usefixtures("both_answer")
async def test_a_training_loop(processes: WeightServer, trainer: Trainer) -> None:
    """Every answer has the log-probs of exactly the version that it names, and none fails."""
    traffic = Traffic(processes.scoring)
    async with traffic.running():
        for step in itertools.count():
            # However fast a trainer is beside its server, there is enough to look at.
            if step >= STEPS and traffic.fewest() >= 5:
                break
            version = await asyncio.to_thread(trainer.step)
            policy = (
                weights_pb2.RUNNING_SAMPLES_CONTINUE
                if step % 2
                else weights_pb2.RUNNING_SAMPLES_FINISH
            )
            statuses = await processes.push(
                trainer.states[version], version, running_samples=policy
            )
            assert statuses[-1].phase == COMMITTED
            assert statuses[-1].workers_staged == 2
    assert (await processes.weights()).version == trainer.version
    seen = traffic.check(trainer)
    assert min(seen["score"], seen["top_k"], seen["sample"]) >= 5
    assert len([name for name in seen if name.startswith("version ")]) >= STEPS // 2
    assert seen["samples of several versions"] > 0
    # Nothing of the versions before is kept.
    async with asyncio.timeout(10):
        while (await processes.weights()).held:
            await processes.score([5, 6], [7])  # and time passes


async def test_a_worker_killed_after_a_commit(processes: WeightServer, trainer: Trainer) -> None:
    """What it had begun goes on elsewhere with the weights it had; it comes back with the new.

    So does a sequence of which it had answered the first rows, and another worker the others.
    """
    traffic = Traffic(processes.scoring, sample_tokens=60)
    async with traffic.running():
        before, version = trainer.version, await asyncio.to_thread(trainer.step)
        held = await Held.begin(processes, trainer.states[version], version)

        async def kill() -> None:
            await held.commit()
            (worker,) = (w for w in processes.pool.workers if long_part(w))
            starts.append((worker.index, worker.starts))
            os.kill(worker._run.executor.pid, signal.SIGKILL)

        starts: list[tuple[int, int]] = []
        found, versions = await long_sequence(processes, kill)
        assert versions[-1] == version, "the last rows came after the commit"
        await held.committed()
        assert_plain(found, trainer, before)
        ((index, count),) = starts
        await restarted(processes, index, count)
        assert processes.pool.workers[0].weights == processes.pool.workers[1].weights
        # The one that came back takes part in the next update.
        version = await asyncio.to_thread(trainer.step)
        statuses = await processes.push(trainer.states[version], version)
        assert statuses[-1].workers_staged == 2
        assert (await processes.score([5, 6], [7])).weight_version == version
    assert traffic.check(trainer)["score"] > 0
    for worker in processes.pool.workers:
        assert worker.weights == {processes.pool.weights.current.number}


async def test_a_worker_killed_while_it_stages(processes: WeightServer, trainer: Trainer) -> None:
    """The other one goes on with the update, and is not waited for."""
    version = await asyncio.to_thread(trainer.step)
    first = processes.pool.workers[0]
    pid, starts = first._run.executor.pid, first.starts
    os.kill(pid, signal.SIGSTOP)
    statuses = []
    try:
        async for answer in processes.admin.PushWeights(messages(trainer.states[version], version)):
            statuses.append(answer.status)
            if answer.status.phase == STAGING:
                os.kill(pid, signal.SIGKILL)
        assert STAGING in {status.phase for status in statuses}
        assert (statuses[-1].phase, statuses[-1].workers_total) == (COMMITTED, 1)
        assert (await processes.score([5, 6], [7])).weight_version == version
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await restarted(processes, first.index, starts)


_HALF = """
import sys, time, grpc
from scoring_client.proto import admin_pb2 as a, admin_pb2_grpc as g, weights_pb2 as w
stub = g.AdminServiceStub(grpc.insecure_channel(sys.argv[1]))
tensors = stub.GetWeights(a.GetWeightsRequest(list_tensors=True)).tensors
def requests():
    yield a.PushWeightsRequest(begin=a.PushWeightsBegin(
        options=w.WeightUpdateOptions(version=10**6)))
    for t in tensors[:5]:
        size = 4
        for n in t.shape: size *= n
        if not t.tied_to:
            yield a.PushWeightsRequest(part=a.PushWeightsPart(chunks=[w.WeightChunk(
                name=t.name, dtype=t.dtype, shape=t.shape, data=bytes(size))]))
    print("half", flush=True)
    time.sleep(60)
for response in stub.PushWeights(requests()):
    pass
"""


async def test_a_trainer_killed_in_its_stream(processes: WeightServer, trainer: Trainer) -> None:
    """The update is aborted, the old weights go on, and the next trainer can begin at once."""
    before = await processes.weights()
    half = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", _HALF, processes.target],
        stdout=subprocess.PIPE,
    )
    assert half.stdout is not None
    traffic = Traffic(processes.scoring)
    async with traffic.running():
        assert await asyncio.to_thread(half.stdout.readline) == b"half\n"
        assert (await processes.weights()).HasField("update")
        # A second trainer meanwhile is told so.
        second = processes.admin.PushWeights(iter([begin(2 * 10**6)]))
        code, status = await failure(second)
        assert (code, reason(status)) == (grpc.StatusCode.ABORTED, "UPDATE_IN_PROGRESS")
        half.kill()
        half.wait()
        half.stdout.close()
        async with asyncio.timeout(20):
            while (await processes.weights()).HasField("update"):
                await processes.score([5, 6], [7])  # and time passes
    after = await processes.weights()
    assert (after.version, after.weights_digest) == (before.version, before.weights_digest)
    assert after.last_update.phase == weights_pb2.WEIGHT_UPDATE_PHASE_ABORTED
    traffic.check(trainer)
    version = await asyncio.to_thread(trainer.step)
    assert (await processes.push(trainer.states[version], version))[-1].phase == COMMITTED


async def test_two_trainers_from_one_version(processes: WeightServer, trainer: Trainer) -> None:
    """Of two that started from one version, the one that comes second is refused."""
    base = trainer.version
    version = await asyncio.to_thread(trainer.step)
    await processes.push(trainer.states[version], version, base_version=base)
    late = processes.admin.PushWeights(iter([begin(version + 1, base_version=base), commit()]))
    code, status = await failure(late)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(status) == "WEIGHT_VERSION_MISMATCH"


@pytest.mark.usefixtures("both_answer")
async def test_in_place_while_calls_come(processes: WeightServer, trainer: Trainer) -> None:
    """Calls wait for it, and none fails."""
    traffic = Traffic(processes.scoring)
    options = {"staging": weights_pb2.STAGING_MODE_IN_PLACE}
    async with traffic.running():
        for policy in (weights_pb2.RUNNING_SAMPLES_FINISH, weights_pb2.RUNNING_SAMPLES_CONTINUE):
            version = await asyncio.to_thread(trainer.step)
            statuses = await processes.push(
                trainer.states[version], version, running_samples=policy, **options
            )
            assert statuses[-1].phase == COMMITTED
            assert statuses[-1].staging == weights_pb2.STAGING_MODE_IN_PLACE
            phases = {time.phase for time in statuses[-1].phase_times}
            assert weights_pb2.WEIGHT_UPDATE_PHASE_APPLYING in phases
            assert (await processes.score([5, 6], [7])).weight_version == version
    assert traffic.check(trainer)["score"] > 0
