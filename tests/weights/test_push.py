"""Weights through the contract: what answers after an update, and that nothing else changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from scoring_client.proto import (
    admin_pb2,
    context_pb2,
    sample_pb2,
    score_pb2,
    weights_pb2,
)
from tests.contract_digest import contract_digest
from tests.rpc.calls import collect, failure, group, reason
from tests.weights.conftest import WeightServer, begin_to_wait, the_rest, weight_server
from tests.weights.trainer import TOLERANCE, State, Trainer, begin, chunk, commit, messages, part

PROMPT, COMPLETION = list(range(40, 70)), list(range(300, 320))


async def test_there_and_back(served: WeightServer) -> None:
    """New weights give plain torch's numbers; the first ones again give their first bits."""
    trainer = Trainer()
    before = await served.weights()
    first = await served.score(PROMPT, COMPLETION)
    version = trainer.step()
    statuses = await served.push(trainer.states[version], version)
    assert statuses[-1].phase == weights_pb2.WEIGHT_UPDATE_PHASE_COMMITTED
    assert statuses[-1].staging == weights_pb2.STAGING_MODE_BESIDE
    assert statuses[-1].bytes_received == statuses[-1].bytes_total > 1_000_000
    after = await served.weights()
    assert (after.version, after.updates_committed) == (version, before.updates_committed + 1)
    assert after.weights_digest == statuses[-1].weights_digest != before.weights_digest
    assert after.numerics_id != before.numerics_id
    second = await served.score(PROMPT, COMPLETION)
    assert second.weight_version == version
    expected = trainer.logprobs(version, PROMPT, COMPLETION)
    assert np.abs(np.array(second.logprobs) - expected.numpy()).max() < TOLERANCE
    assert np.abs(np.array(second.logprobs) - np.array(first.logprobs)).max() > 100 * TOLERANCE

    await served.push(trainer.states[0], 0, allow_older_version=True)
    again = await served.weights()
    assert (again.version, again.weights_digest) == (0, before.weights_digest)
    assert again.numerics_id == before.numerics_id
    third = await served.score(PROMPT, COMPLETION)
    assert list(third.logprobs) == list(first.logprobs)


def digest_of(state: State) -> str:
    """The weights digest as the contract defines it, of the tiny model's tensors in float32."""
    own = {"model.embed_tokens.weight": "lm_head.weight"}
    return contract_digest(
        {
            own.get(name, name): ("float32", tensor.shape, tensor.numpy().tobytes())
            for name, tensor in state.items()
        }
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def one() -> AsyncIterator[WeightServer]:
    """One worker, whose weights change with every test."""
    async with weight_server() as server:
        yield server


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer()


async def right(server: WeightServer, trainer: Trainer) -> None:
    """The server answers with the trainer's newest version, bit for bit its tensors."""
    held = await server.weights()
    assert held.version == trainer.version
    assert held.weights_digest == digest_of(trainer.states[trainer.version])
    found = await server.score(PROMPT, COMPLETION)
    expected = trainer.logprobs(trainer.version, PROMPT, COMPLETION)
    assert np.abs(np.array(found.logprobs) - expected.numpy()).max() < TOLERANCE


async def test_the_tensors_are_listed(one: WeightServer, trainer: Trainer) -> None:
    """Names, types and shapes as in the model's state_dict; the head is tied to the embedding."""
    listed = {t.name: t for t in (await one.weights(list_tensors=True)).tensors}
    own = trainer.network.state_dict()
    assert list(listed) == sorted(own)
    assert {n: tuple(t.shape) for n, t in listed.items()} == {n: t.shape for n, t in own.items()}
    assert {t.dtype for t in listed.values()} == {weights_pb2.WEIGHT_DATA_TYPE_FLOAT32}
    tied = {name: t.tied_to for name, t in listed.items() if t.tied_to}
    assert tied == {"model.embed_tokens.weight": "lm_head.weight"}


async def test_a_subset(one: WeightServer, trainer: Trainer) -> None:
    """Tensors that are not given keep their values: those that were loaded, or pushed before."""
    for names in (["model.norm.weight"], ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]):
        before = trainer.states[trainer.version]
        version = trainer.step()
        new = trainer.states[version]
        own = {name: name.replace("lm_head", "model.embed_tokens") for name in names}
        trainer.states[version] = {**before, **{name: new[name] for name in own.values()}}
        trainer.network.load_state_dict(trainer.states[version], strict=False)
        sent = {name: new[mine] for name, mine in own.items()}
        statuses = await one.push(sent, version, partial=True)
        assert statuses[-1].bytes_received < statuses[-1].bytes_total
        await right(one, trainer)


async def test_in_any_order_and_in_odd_pieces(one: WeightServer, trainer: Trainer) -> None:
    """Tensors side by side, in pieces that end within elements."""
    version = trainer.step()
    state = trainer.states[version]
    requests = list(messages(state, version, size=70_001))
    first, parts, last = requests[0], requests[1:-1], requests[-1]
    # Backwards by tensors, and the pieces of two of them by turns.
    by_name: dict[str, list[Any]] = {}
    for message in parts:
        by_name.setdefault(message.part.chunks[0].name, []).append(message)
    names = sorted(by_name, reverse=True)
    mixed: list[Any] = []
    for left, right_ in zip(names[::2], [*names[1::2], None], strict=False):
        pair = [by_name[left], by_name.get(right_ or "", [])]
        while any(pair):
            mixed += [queue.pop(0) for queue in pair if queue]
    call = one.admin.PushWeights(iter([first, *mixed, last]))
    assert (await collect(call))[-1].status.weights_digest == digest_of(state)
    await right(one, trainer)


async def test_other_element_types(one: WeightServer, trainer: Trainer) -> None:
    """With convert_dtypes tensors may come in other floating-point types."""
    version = trainer.step()
    state = {name: tensor.bfloat16() for name, tensor in trainer.states[version].items()}
    state["model.norm.weight"] = state["model.norm.weight"].half()
    trainer.states[version] = {name: tensor.float() for name, tensor in state.items()}
    trainer.network.load_state_dict(trainer.states[version], strict=False)
    await one.push(state, version, convert_dtypes=True)
    await right(one, trainer)


async def test_digests_that_were_expected(one: WeightServer, trainer: Trainer) -> None:
    """At the begin and at the commit."""
    version = trainer.step()
    state = trainer.states[version]
    digest = digest_of(state)
    requests = [*list(messages(state, version, weights_digest=digest.upper()))[:-1], commit(digest)]
    await collect(one.admin.PushWeights(iter(requests)))
    await right(one, trainer)


async def test_a_call_waits_for_its_version(one: WeightServer, trainer: Trainer) -> None:
    """`min_weight_version` is answered as soon as the commit is done, and other calls before it."""
    version = trainer.step()
    expect = context_pb2.Expect(min_weight_version=version)
    waiting = await begin_to_wait(one, PROMPT, COMPLETION, expect)
    await one.push(trainer.states[version], version)
    results = [result async for message in waiting for result in message.results]
    assert [result.weight_version for result in results] == [version]
    older = score_pb2.ScoreRequest(
        groups=[group(PROMPT, COMPLETION)], expect=context_pb2.Expect(weight_version=version - 1)
    )
    _, status = await failure(one.scoring.Score(older))
    assert reason(status) == "WEIGHT_VERSION_MISMATCH"


def long_sample(tokens: int, **fields: Any) -> sample_pb2.SampleRequest:
    sampling = sample_pb2.SamplingParams(max_tokens=tokens, ignore_eos=True)
    prompts = [sample_pb2.SamplePrompt(token_ids=PROMPT, seed=3)]
    return sample_pb2.SampleRequest(prompts=prompts, n=2, sampling=sampling, **fields)


async def drawn_while_weights_change(
    one: WeightServer, trainer: Trainer, policy: int, **options: Any
) -> tuple[list[Any], int, int]:
    """(results of samples, the version they began with, the one that came meanwhile)."""
    before = trainer.version
    call = one.scoring.Sample(long_sample(300))
    results: list[Any] = []
    version = trainer.step()
    push: asyncio.Task[Any] | None = None
    async for message in call:
        results += message.results
        if push is None and message.results:
            push = asyncio.create_task(
                one.push(trainer.states[version], version, running_samples=policy, **options)
            )
    assert push is not None
    await push
    return results, before, version


async def test_samples_finish_on_the_old_weights(one: WeightServer, trainer: Trainer) -> None:
    results, before, _ = await drawn_while_weights_change(
        one, trainer, weights_pb2.RUNNING_SAMPLES_FINISH
    )
    spans = [[(s.first_token, s.weight_version) for s in r.weight_spans] for r in results if r.last]
    assert spans == [[(0, before)]] * 2
    await right(one, trainer)


@pytest.mark.parametrize("staging", ["BESIDE", "IN_PLACE"])
async def test_samples_go_on_with_the_new_ones(
    one: WeightServer, trainer: Trainer, staging: str
) -> None:
    """Each token's log-prob is exactly that of the version that its span names."""
    results, before, version = await drawn_while_weights_change(
        one,
        trainer,
        weights_pb2.RUNNING_SAMPLES_CONTINUE,
        staging=weights_pb2.StagingMode.Value(f"STAGING_MODE_{staging}"),
    )
    for index in (0, 1):
        own = [r for r in results if r.sample_index == index]
        tokens = [i for r in own for i in r.token_ids]
        logprobs = np.array([x for r in own for x in r.logprobs])
        assert len(tokens) == 300
        (first, second) = own[-1].weight_spans
        assert (first.first_token, first.weight_version) == (0, before)
        assert second.weight_version == version
        assert 0 < second.first_token < 300
        seam = second.first_token
        for named, rows in ((before, slice(0, seam)), (version, slice(seam, 300))):
            expected = trainer.logprobs(named, PROMPT, tokens).numpy()
            assert np.abs(logprobs[rows] - expected[rows]).max() < TOLERANCE


async def test_samples_are_aborted(one: WeightServer, trainer: Trainer) -> None:
    """Each ends with a status; what was sent of it before stays."""
    results, before, _ = await drawn_while_weights_change(
        one, trainer, weights_pb2.RUNNING_SAMPLES_ABORT
    )
    last = [result for result in results if result.last]
    assert {result.sample_index for result in last} == {0, 1}
    assert {reason(result.status) for result in last} == {"WEIGHTS_REPLACED"}
    assert {result.status.code for result in last} == {grpc.StatusCode.ABORTED.value[0]}
    own = [result for result in results if result.sample_index == 0 and not result.last]
    tokens = [i for result in own for i in result.token_ids]
    expected = trainer.logprobs(before, PROMPT, tokens).numpy()
    assert np.abs(np.array([x for r in own for x in r.logprobs]) - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    ("policy", "staging"),
    [("CONTINUE", "BESIDE"), ("CONTINUE", "IN_PLACE"), ("ABORT", "IN_PLACE")],
)
async def test_a_call_keeps_the_version_it_insists_on(
    one: WeightServer, trainer: Trainer, policy: str, staging: str
) -> None:
    """Even where samples were to go on with new weights, or to be aborted."""
    before = trainer.version
    expect = context_pb2.Expect(weight_version=before)
    call = one.scoring.Sample(long_sample(200, expect=expect))
    version = trainer.step()
    options = {
        "running_samples": weights_pb2.RunningSamples.Value(f"RUNNING_SAMPLES_{policy}"),
        "staging": weights_pb2.StagingMode.Value(f"STAGING_MODE_{staging}"),
    }
    spans = []
    push: asyncio.Task[Any] | None = None
    async for message in call:
        if message.results and push is None:
            push = asyncio.create_task(one.push(trainer.states[version], version, **options))
        spans += [s.weight_version for r in message.results for s in r.weight_spans]
    assert push is not None
    assert (await push)[-1].staging == options["staging"]
    assert spans == [before, before]
    await right(one, trainer)


async def test_the_cache_is_flushed(one: WeightServer) -> None:
    """What nobody uses is forgotten; a prompt is then computed again, with the same bits."""
    first = await one.score(list(range(100, 300)), COMPLETION)
    flushed = await one.admin.FlushCache(admin_pb2.FlushCacheRequest())
    assert flushed.pages_freed >= 200 // 16
    assert flushed.workers == 1
    empty = await one.admin.FlushCache(admin_pb2.FlushCacheRequest())
    assert empty.pages_freed == 0
    again = await one.score(list(range(100, 300)), COMPLETION)
    assert list(again.logprobs) == list(first.logprobs)


def shown_ready(server: WeightServer) -> float | None:
    """What alerts see of whether calls are taken."""
    assert server.metrics is not None
    return server.metrics.registry.get_sample_value("scoring_ready", {"model_name": "tiny"})


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain learns what happens because it is told."""
    monkeypatch.setattr("scoring_service.rpc.admin.servicer.STATUS_SECONDS", 1e6)


@pytest.mark.usefixtures("no_looks")
async def test_drained_and_resumed(one: WeightServer) -> None:
    """Calls that were admitted end, new ones are refused, and an admin may still act."""
    call = one.scoring.Sample(long_sample(80))
    opening = await call.read()
    assert opening.provenance.model == "tiny"
    drain = one.admin.Drain(admin_pb2.DrainRequest())
    answer = await drain.read()
    assert (answer.calls_left, answer.drained) == (1, False)
    refused = score_pb2.ScoreRequest(groups=[group(PROMPT, COMPLETION)])
    code, status = await failure(one.scoring.Score(refused))
    assert (code, reason(status)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert shown_ready(one) == 0
    results = [r async for message in the_rest(call) for r in message.results]
    assert sum(len(result.token_ids) for result in results) == 160
    assert [response.drained async for response in the_rest(drain)][-1]
    assert (await one.weights()).model == "tiny"
    await one.admin.Resume(admin_pb2.ResumeRequest())
    assert (await one.score(PROMPT, COMPLETION)).last
    assert shown_ready(one) == 1


@pytest.mark.usefixtures("no_looks")
async def test_a_drain_ends_when_another_admin_resumes(one: WeightServer) -> None:
    """Calls are taken, so it is neither over nor will it ever be."""
    call = one.scoring.Sample(long_sample(3000))
    await call.read()
    drain = one.admin.Drain(admin_pb2.DrainRequest())
    answer = await drain.read()
    assert (answer.calls_left, answer.drained) == (1, False)
    await one.admin.Resume(admin_pb2.ResumeRequest())
    code, status = await failure(the_rest(drain))
    assert (code, reason(status)) == (grpc.StatusCode.ABORTED, "CALLS_STILL_RUNNING")
    assert "Resume" in status.message
    assert (await one.score(PROMPT, COMPLETION)).last
    call.cancel()


async def test_many_tensors_in_a_message(one: WeightServer, trainer: Trainer) -> None:
    """A message may hold many tensors."""
    version = trainer.step()
    state = trainer.states[version]
    whole = [chunk(name, tensor) for name, tensor in state.items()]
    requests = [begin(version), part(*whole[:5]), part(*whole[5:]), commit()]
    await collect(one.admin.PushWeights(iter(requests)))
    await right(one, trainer)


async def test_metrics(one: WeightServer, trainer: Trainer) -> None:
    """The version, and updates by how they ended."""
    assert one.metrics is not None
    value = one.metrics.registry.get_sample_value
    before = value("scoring_weight_updates_total", {"outcome": "committed"}) or 0
    failed = value("scoring_weight_updates_total", {"outcome": "failed"}) or 0
    version = trainer.step()
    await one.push(trainer.states[version], version)
    await failure(one.admin.PushWeights(iter([begin(version + 1), begin(version + 1)])))
    assert value("scoring_weight_updates_total", {"outcome": "committed"}) == before + 1
    assert value("scoring_weight_updates_total", {"outcome": "failed"}) == failed + 1
    assert value("scoring_weight_update_seconds_count", {"phase": "staging"}) >= before + 1
    assert value("scoring_weight_version", {"model_name": "tiny"}) == version
