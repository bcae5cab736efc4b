"""What evaluations ask: pairs, prompts and token ids of many texts, in calls of a good size."""

import numpy as np
import pytest

from scoring_client import SamplePrompt, ScoringClient
from scoring_client.batches import batches
from scoring_client.evaluation import sample_prompts, score_pairs
from scoring_client.text_ids import TextIds
from tests.client import toy_model
from tests.client.toy_server import PREFERRED_TOKENS, ToyServer


def loglikelihood(context: list[int], continuation: list[int]) -> float:
    ids = [*context, *continuation]
    rows = range(len(context), len(ids))
    return float(sum(toy_model.row(ids[:row]).logprobs_V[ids[row]] for row in rows))


def test_batches_are_in_order_and_fit():
    sized = [(name, size) for name, size in zip("abcdef", (3, 3, 9, 1, 1, 5), strict=True)]
    found = list(batches(sized, 6))
    assert found == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert list(batches([], 6)) == []


def test_pairs_keep_their_order_and_share_their_contexts():
    pairs = [([1, 2], [3]), ([4], [5, 6]), ([1, 2], [7, 8]), ([9] * 12, [1]), ([4], [5])]
    with ToyServer() as server, ScoringClient(server.target) as client:
        found = score_pairs(client, pairs, rank=True)
    for (context, continuation), scores in zip(pairs, found, strict=True):
        assert scores.token_ids.tolist() == continuation
        total = scores.logprobs.sum(dtype=float)
        assert total == pytest.approx(loglikelihood(context, continuation), abs=1e-5)
        assert scores.ranks is not None
    groups = [len(request.groups) for request in server.requests]
    assert groups == [2, 1]
    assert sum(len(g.completions) for r in server.requests for g in r.groups) == len(pairs)


@pytest.mark.parametrize(
    ("max_length", "context", "continuation"),
    [
        (5, [1, 2, 3], [4, 5]),
        (4, [2, 3], [4, 5]),
        (2, [4], [5]),
        (1, [5], []),
    ],
)
def test_pairs_that_are_too_long_lose_their_left(max_length, context, continuation):
    with ToyServer() as server, ScoringClient(server.target) as client:
        if continuation:
            score_pairs(client, [([1, 2, 3], [4, 5])], max_length=max_length)
            (group,) = server.requests[0].groups
            assert list(group.prompt.token_ids) == context
            assert list(group.completions[0].token_ids) == continuation
        else:
            with pytest.raises(ValueError, match="max_length"):
                score_pairs(client, [([1, 2, 3], [4, 5])], max_length=max_length)


def test_prompts_are_continued_in_order():
    prompts = [SamplePrompt([n] * n, max_tokens=3, seed=n) for n in range(1, 9)]
    with ToyServer() as server, ScoringClient(server.target) as client:
        found = sample_prompts(client, prompts, max_tokens=None)
        alone = [client.sample([prompt], max_tokens=None)[0] for prompt in prompts]
    assert [s.token_ids.tolist() for (s,) in found] == [s.token_ids.tolist() for (s,) in alone]
    calls = server.requests[: -len(prompts)]
    assert 1 < len(calls) < len(prompts)
    for call in calls:
        assert sum(len(p.token_ids) + 3 for p in call.prompts) <= PREFERRED_TOKENS


def test_token_ids_are_asked_once():
    texts = [("import", True), ("import", False), ("numpy", True), ("", True), ("a" * 40, False)]
    with ToyServer() as server, ScoringClient(server.target) as client:
        ids = TextIds(client)
        ids.learn([*texts, *texts])
        asked = len(server.requests)
        assert asked == 2, "one call with special tokens, one without"
        for text, special in texts:
            expected = toy_model.encode(text, add_special_tokens=special) if text else []
            assert ids(text, special_tokens=special) == expected
        assert len(server.requests) == asked
        assert ids("new") == toy_model.encode("new", add_special_tokens=True)
        assert len(server.requests) == asked + 1
    assert all(isinstance(token, int) and not isinstance(token, np.integer) for token in ids("new"))
