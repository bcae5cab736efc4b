"""What a client asks of every call reaches the server, through each adapter too."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tinker import types

from scoring_client import (
    AsyncScoringClient,
    Expect,
    InvalidRequestError,
    PreconditionFailedError,
    RequestContext,
    ScoringClient,
)
from scoring_client.adapters.prime_rl import TeacherPool
from scoring_client.adapters.tinker import SamplingClient
from scoring_client.adapters.trl import TeacherClient
from scoring_client.adapters.verl import TeacherManager
from tests.e2e.served import Served, serving

IDS = [5, 6, 7, 8]
PROMPT = types.ModelInput.from_ints(IDS)
GROUPS = [([5, 6], [[7, 8]])]
OTHER_WEIGHTS = Expect(weight_version=99)
"""The server has version 0."""

BLOCKING: dict[str, Callable[[ScoringClient], Any]] = {
    "score": lambda client: client.score(GROUPS),
    "score_iter": lambda client: list(client.score_iter(GROUPS)),
    "score_slices": lambda client: list(client.score_slices(GROUPS)),
    "topk": lambda client: client.topk_logprobs(GROUPS, 2),
    "sample": lambda client: client.sample([IDS], max_tokens=2),
    "trl": lambda client: TeacherClient(client).get_sequence_logprobs([IDS], [2], top_logprobs=2),
    "tinker": lambda client: SamplingClient(client).compute_logprobs(PROMPT).result(),
    "tinker_sample": lambda client: (
        SamplingClient(client).sample(PROMPT, 1, types.SamplingParams(max_tokens=2)).result()
    ),
}
ASYNC: dict[str, Callable[[AsyncScoringClient], Any]] = {
    "score": lambda client: client.score(GROUPS),
    "topk": lambda client: client.topk_logprobs(GROUPS, 2),
    "sample": lambda client: client.sample([IDS], max_tokens=2),
    "verl": lambda client: TeacherManager(client).compute_teacher_logprobs_single(IDS),
    "prime_rl": lambda client: TeacherPool(client).score(IDS),
}


@pytest.fixture(scope="module")
def counting() -> Iterator[Served]:
    """A server that counts usage by the tag `run`."""
    with serving("--metrics-port", "0", "--usage-tag", "run") as running:
        assert running.ready
        yield running


def ask_async(target: str, ask: Callable[[AsyncScoringClient], Any], **arguments: Any) -> Any:
    async def main() -> Any:
        async with AsyncScoringClient(target, **arguments) as client:
            return await ask(client)

    return asyncio.run(main())


@pytest.mark.parametrize("name", BLOCKING)
def test_an_unmet_expectation_fails_each_call(counting: Served, name: str) -> None:
    unmet = pytest.raises(PreconditionFailedError, match="weight_version is 99")
    with ScoringClient(counting.ready, expect=OTHER_WEIGHTS) as client, unmet:
        BLOCKING[name](client)
    with ScoringClient(counting.ready, expect=Expect(weight_version=0)) as client:
        assert BLOCKING[name](client)


@pytest.mark.parametrize("name", ASYNC)
def test_an_unmet_expectation_fails_each_call_of_a_loop(counting: Served, name: str) -> None:
    with pytest.raises(PreconditionFailedError, match="weight_version is 99"):
        ask_async(counting.ready, ASYNC[name], expect=OTHER_WEIGHTS)
    assert ask_async(counting.ready, ASYNC[name], expect=Expect(weight_version=0)) is not None


def test_the_context_is_that_of_each_call(counting: Served) -> None:
    def counted(run: str) -> float:
        return counting.metric("scoring_scored_tokens_total", tag=run)

    context = RequestContext(tags={"run": "default", "job": "7"}, request_id="step-7")
    with ScoringClient(counting.ready, context=context) as client:
        found = client.score(GROUPS)
        assert found.provenance.request_id == "step-7"
        assert counted("default") == 2
        # A context of the call's own is the whole of it.
        found = client.score(GROUPS, context=RequestContext(tags={"run": "call"}))
        assert found.provenance.request_id != "step-7"
        assert (counted("default"), counted("call")) == (2, 2)
        untagged = counted("")
        client.score(GROUPS, context=None)
        assert (counted("default"), counted("")) == (2, untagged + 2)
    ask_async(counting.ready, ASYNC["score"], context=context)
    assert counted("default") == 4


@pytest.mark.parametrize("own", [Expect(weight_version=0), None])
def test_a_calls_own_expectation_takes_the_place_of_the_clients(
    counting: Served, own: Expect | None
) -> None:
    with ScoringClient(counting.ready, expect=OTHER_WEIGHTS) as client:
        assert client.score(GROUPS, expect=own)
    ask_async(counting.ready, lambda c: c.score(GROUPS, expect=own), expect=OTHER_WEIGHTS)


def test_a_pickled_client_has_them_too(counting: Served) -> None:
    made = ScoringClient(counting.ready, expect=OTHER_WEIGHTS, context=RequestContext(priority=3))
    unmet = pytest.raises(PreconditionFailedError, match="weight_version is 99")
    with made, pickle.loads(pickle.dumps(made)) as client, unmet:
        client.score(GROUPS)


@pytest.mark.parametrize("make", [ScoringClient, AsyncScoringClient])
def test_what_makes_no_sense_is_refused_at_once(make: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequestError, match="expected an Expect, got 7"):
        make("localhost:1", expect=7)
    with pytest.raises(InvalidRequestError, match="expected a RequestContext, got 'me'"):
        make("localhost:1", context="me")
