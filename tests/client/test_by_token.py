"""Scores laid out by token, candidates of different number, and draws in the place of tokens."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from scoring_client import AsyncScoringClient, ScoringClient
from scoring_client.by_token import TokenQuestion
from scoring_client.ragged import RaggedCandidates
from scoring_client.redraws import redraw_tokens
from tests.client import toy_model
from tests.client.toy_server import ToyServer

IDS = [5, 17, 9, 200, 31, 8]


def logprob(position: int, token: int) -> float:
    return float(toy_model.row(IDS[:position]).logprobs_V[token])


def test_ragged_candidates_and_back():
    ragged = RaggedCandidates([4, 7, -1, 9, 2], [0, 2, 0, 3])
    assert ragged.padded.tolist() == [[-1] * 3, [4, 7, -1], [-1] * 3, [-1, 9, 2]]
    assert ragged.padded.dtype == np.int32
    assert ragged.first_row == 1
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert ragged.flat(values).tolist() == [3, 4, 9, 10, 11]
    np.testing.assert_array_equal(ragged.flat(values[2:], 2), [np.nan, np.nan, 9, 10, 11])
    nothing = RaggedCandidates([], [0, 0])
    assert (nothing.padded.shape, nothing.first_row) == ((2, 1), None)
    with pytest.raises(ValueError, match="2 candidates in all rows"):
        RaggedCandidates([1, 2, 3], [1, 1])


@pytest.mark.parametrize("beyond", [2**32 + 7, 2**31, -(2**31) - 1])
def test_an_id_that_would_become_another(beyond: int):
    with pytest.raises(ValueError, match=f"an id is {beyond}, which is no int32"):
        RaggedCandidates([5, beyond], [1, 1])


def test_everything_by_token_in_one_call():
    candidates = RaggedCandidates([30, 31, 32], [0, 0, 2, 0, 0, 1])
    asked = TokenQuestion(token_ids=IDS, first=4, k=3, candidates=candidates)
    with ToyServer() as server, ScoringClient(server.target) as client:
        found = asked.ask(client)
    assert len(server.requests) == 1
    assert found.token_ids.tolist() == [-1] * 4 + IDS[4:]
    assert np.isnan(found.logprobs[:4]).all()
    expected = [logprob(position, IDS[position]) for position in (4, 5)]
    np.testing.assert_allclose(found.logprobs[4:], expected, atol=1e-6)
    assert found.logprob_list() == [None] * 4 + found.logprobs[4:].tolist()
    assert (found.top_token_ids[:4] == -1).all()
    for position in (4, 5):
        ids, logprobs = toy_model.row(IDS[:position]).top(3)
        assert found.top_token_ids[position].tolist() == ids.tolist()
        np.testing.assert_allclose(found.top_logprobs[position], logprobs, atol=1e-6)
    assert found.candidate_logprobs is not None
    wanted = [logprob(2, 30), logprob(2, 31), logprob(5, 32)]
    np.testing.assert_allclose(found.candidate_logprobs, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        # One row would be sent for all tokens: numbers that nobody asked for.
        ([0, 1], "those of 2 tokens, the text has 6"),
        ([0, 0, 0, 0, 0, 0, 1], "those of 7 tokens, the text has 6"),
        ([1, 0, 0, 0, 0, 0], "token 0, which nothing predicts"),
    ],
)
def test_candidates_of_other_tokens_are_refused(counts, complaint):
    with pytest.raises(ValueError, match=complaint):
        TokenQuestion(token_ids=IDS, candidates=RaggedCandidates([30], counts))


@pytest.mark.parametrize("k", [0, 3])
def test_an_event_loop_gets_the_same(k):
    asked = TokenQuestion(token_ids=IDS, first=2, k=k, temperature=0.5, missing=0.0)

    async def ask(target):
        async with AsyncScoringClient(target) as client:
            return await asked.ask_async(client)

    with ToyServer() as server, ScoringClient(server.target) as client:
        mine, found = asked.ask(client), asyncio.run(ask(server.target))
        one, other = server.requests
    assert (one.groups, one.processing) == (other.groups, other.processing)
    for name in ("token_ids", "logprobs", "top_token_ids", "top_logprobs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(mine, name))
    assert found.logprobs[:2].tolist() == [0.0, 0.0]
    rows = toy_model.row(IDS[:3], temperature=0.5).logprobs_V
    assert found.logprobs[3] == pytest.approx(float(rows[IDS[3]]), abs=1e-6)


def test_a_text_of_one_token_asks_nothing():
    asked = TokenQuestion(token_ids=IDS[:1], k=2)
    with ToyServer() as server, ScoringClient(server.target) as client:
        found = asked.ask(client)
        nothing = replace(asked, token_ids=[]).ask(client)
    assert not server.requests
    assert np.isnan(found.logprobs).all()
    assert found.top_token_ids.shape == (1, 2)
    assert nothing.logprobs.shape == (0,)


def test_nothing_predicts_token_0():
    with pytest.raises(ValueError, match="first must be at least 1, got 0"):
        TokenQuestion(token_ids=IDS, first=0)


def test_draws_in_the_place_of_tokens():
    with ToyServer() as server, ScoringClient(server.target) as client:
        ids, logprobs = redraw_tokens(client, IDS, 4, seed=3)
        for nothing in redraw_tokens(client, IDS[:1], 4):
            assert nothing.shape == (0, 4)
    assert ids.shape == logprobs.shape == (5, 4)
    for place in range(5):
        expected = [logprob(place + 1, token) for token in ids[place]]
        np.testing.assert_allclose(logprobs[place], expected, atol=1e-6)


class Counting(ScoringClient):
    """Remembers how many tokens the prompts of each call have."""

    def sample(self, prompts, **options):
        prompts = list(prompts)
        self.sizes = [*getattr(self, "sizes", []), sum(len(each.prompt) for each in prompts)]
        return super().sample(prompts, **options)


def test_a_long_text_is_not_held_once_for_each_of_its_tokens():
    ids = np.random.default_rng(0).integers(256, size=1600).tolist()
    with ToyServer(preferred_tokens=1 << 20) as server, Counting(server.target) as client:
        drawn, logprobs = redraw_tokens(client, ids, 1, seed=3)
    assert sum(client.sizes) == 1600 * 1599 // 2
    assert max(client.sizes) <= 1 << 20
    for place in (0, 1447, 1448, 1598):
        assert drawn[place, 0] == toy_model.draw(ids[: place + 1], 3, 0)
        expected = toy_model.row(ids[: place + 1]).logprobs_V[drawn[place, 0]]
        assert logprobs[place, 0] == pytest.approx(expected, abs=1e-6)
