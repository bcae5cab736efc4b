"""What evaluations ask: pairs, whole texts and token ids of many texts, in calls of a good size."""

import numpy as np
import pytest
import torch

from scoring_client import InvalidRequestError, ScoringClient
from scoring_client.calls.batches import batches
from scoring_client.evaluation import likelihoods, text_likelihoods
from scoring_client.pairs import fitting, score_pairs, topk_pairs, windows
from scoring_client.text_ids import TextIds
from tests.client import toy_model
from tests.client.toy_server import ToyServer


def loglikelihood(context: list[int], continuation: list[int]) -> float:
    ids = [*context, *continuation]
    rows = range(len(context), len(ids))
    return float(sum(toy_model.row(ids[:row]).logprobs_V[ids[row]] for row in rows))


def test_batches_are_in_order_and_fit():
    sized = [(name, size) for name, size in zip("abcdef", (3, 3, 9, 1, 1, 5), strict=True)]
    found = list(batches(sized, 6))
    assert found == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert list(batches([], 6)) == []


PAIRS = [([1, 2], [3]), ([4], [5, 6]), ([1, 2], [7, 8]), ([9] * 12, [1]), ([4], [5])]


def test_pairs_keep_their_order_and_share_their_contexts():
    with ToyServer() as server, ScoringClient(server.target) as client:
        found = score_pairs(client, PAIRS, rank=True)
        listed = topk_pairs(client, PAIRS, 3)
        assert score_pairs(client, []) == topk_pairs(client, [], 3) == []
    for (context, continuation), scores, top in zip(PAIRS, found, listed, strict=True):
        assert scores.token_ids.tolist() == top.token_ids.tolist() == continuation
        total = scores.logprobs.sum(dtype=float)
        assert total == pytest.approx(loglikelihood(context, continuation), abs=1e-5)
        assert scores.ranks is not None
        ids, _ = toy_model.row(context).top(3)
        assert top.top_token_ids[0].tolist() == ids.tolist()
    for request in server.requests:
        contexts = [list(group.prompt.token_ids) for group in request.groups]
        assert contexts == [[1, 2], [4], [9] * 12], "one call, each context once"


def test_a_context_of_very_many_continuations_stands_in_several_groups(monkeypatch):
    """Groups are never divided, calls are."""
    monkeypatch.setattr("scoring_client.pairs.NEVER_DIVIDED_BELOW", 40)
    pairs = [([4], [n] * 10) for n in range(6)]
    with ToyServer() as server, ScoringClient(server.target, tokens_per_part=10**6) as client:
        found = score_pairs(client, pairs)
    assert [scores.token_ids.tolist() for scores in found] == [rest for _, rest in pairs]
    (request,) = server.requests
    assert [len(group.completions) for group in request.groups] == [4, 2]


def test_an_empty_continuation_has_no_rows():
    with ToyServer() as server, ScoringClient(server.target) as client:
        top, other, short = topk_pairs(client, [([1, 2], []), ([1, 2], [7]), ([1], [])], 3)
    for empty in (top, short):
        assert (empty.logprobs.shape, empty.token_ids.shape) == ((0,), (0,))
        assert empty.top_logprobs.shape == empty.top_token_ids.shape == (0, 3)
    assert other.token_ids.tolist() == [7]
    (request,) = server.requests
    sent = [(list(g.prompt.token_ids), list(g.completions[0].token_ids)) for g in request.groups]
    assert sent[0] == ([1], [2]), "no longer than the context, which may be as long as can be"


MISTAKES = [([1, 2], [3]), ([4], [5]), ([1, 2], [6, 999]), ([], [7]), ([8, 999], [])]


def test_what_is_wrong_with_a_pair_is_told_of_that_pair():
    wrong = {
        "pairs[2].continuation.token_ids[1]",
        "pairs[3].context",
        "pairs[4].context",
    }
    with ToyServer() as server, ScoringClient(server.target) as client:
        with pytest.raises(InvalidRequestError, match="3 of 5 items failed") as raised:
            score_pairs(client, MISTAKES)
        kept = score_pairs(client, MISTAKES, on_error="return")
    assert {violation.field for violation in raised.value.violations} == wrong
    assert "groups[" not in str(raised.value)
    paths = {item.path.partition(".")[0] for item in raised.value.item_errors}
    assert paths == {"pairs[2]", "pairs[3]", "pairs[4]"}
    assert [scores.error is None for scores in kept] == [True, True, False, False, False]
    assert kept[2].error is not None
    assert kept[2].error.violations[0].field == "pairs[2].continuation.token_ids[1]"
    assert [(scores.group_index, scores.completion_index) for scores in kept] == [
        (place, 0) for place in range(5)
    ]


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        (("a", [1]), r"pairs\[1\].context: expected token ids, got text; text_ids.TextIds"),
        (([1], 3), r"pairs\[1\].continuation: expected .*a single id"),
        ([1, 2, 3], r"pairs\[1\]: expected \(context, continuation\), got \[1, 2, 3\]"),
    ],
)
def test_what_is_no_pair_is_refused_before_it_is_sent(pair, complaint):
    refused = pytest.raises(InvalidRequestError, match=complaint)
    with ScoringClient("localhost:1") as client, refused:
        score_pairs(client, [([1], [2]), pair])


def test_pairs_of_arrays_and_tensors_share_their_contexts():
    pairs = [(kind([1, 2]), kind([3])) for kind in (list, tuple, np.array, torch.tensor)]
    with ToyServer() as server, ScoringClient(server.target) as client:
        assert len({float(scores.logprobs[0]) for scores in score_pairs(client, pairs)}) == 1
    assert [len(group.completions) for group in server.requests[0].groups] == [4]


@pytest.mark.parametrize("ask", [score_pairs, lambda *args, **kw: topk_pairs(*args, 3, **kw)])
def test_what_follows_an_empty_continuation_is_not_asked_in_vain(ask):
    refused = pytest.raises(InvalidRequestError, match=r"pairs\[1\].*context's last token")
    with ToyServer() as server, ScoringClient(server.target) as client, refused:
        ask(client, [([1, 2], [3]), ([1, 2], [])], next_token=True)
    assert not server.requests


@pytest.mark.parametrize(
    ("max_length", "context", "continuation"),
    [(5, [1, 2, 3], [4, 5]), (4, [2, 3], [4, 5]), (3, [3], [4, 5]), (2, [4], [5])],
)
def test_pairs_that_are_too_long_lose_their_left(max_length, context, continuation):
    assert fitting(([1, 2, 3], [4, 5]), max_length) == (context, continuation)


def test_a_long_text_comes_in_windows():
    """lm-eval's own example: ten tokens, four at a time, beside what stands before them."""
    assert windows(range(10), -1, 5) == [
        ([-1], range(4)),
        (range(3, 4), range(4, 8)),
        (range(5, 8), range(8, 10)),
    ]
    assert windows([7, 8], -1, 5) == [([-1], [7, 8])]
    assert windows([], -1, 5) == []


def test_likelihoods_of_pairs_and_of_whole_texts():
    best = int(toy_model.row([1, 2]).top(1)[0][0])
    texts = [[11, 12, 13, 14, 15, 16, 17], [], [21, 22]]
    with ToyServer() as server, ScoringClient(server.target) as client:
        right, wrong = likelihoods(client, [([1, 2], [best]), ([1, 2], [best + 1])], 8)
        long, empty, short = text_likelihoods(client, texts, 3, 4)
    assert right == (pytest.approx(loglikelihood([1, 2], [best]), abs=1e-5), True)
    assert wrong == (pytest.approx(loglikelihood([1, 2], [best + 1]), abs=1e-5), False)
    parts = [([3], texts[0][:3]), ([13], texts[0][3:6]), ([14, 15, 16], [17])]
    assert long == pytest.approx(sum(loglikelihood(*part) for part in parts), abs=1e-5)
    assert (empty, type(empty)) == (0.0, float)
    assert short == pytest.approx(loglikelihood([3], [21, 22]), abs=1e-5)


def test_a_length_that_leaves_nothing_to_score_is_refused():
    for ask in (lambda: fitting(([1], [2]), 1), lambda: windows([1, 2], 0, 1)):
        with pytest.raises(ValueError, match="max_length must be at least 2"):
            ask()


def test_token_ids_are_asked_once():
    texts = [("import", True), ("import", False), ("numpy", True), ("", True), ("a" * 40, False)]
    with ToyServer() as server, ScoringClient(server.target) as client:
        ids = TextIds(client)
        ids.learn([*texts, *texts])
        asked = len(server.requests)
        assert asked == 2, "one call with special tokens, one without"
        for text, special in texts:
            expected = toy_model.encode(text, add_special_tokens=special) if text else []
            assert ids.many([text], special_tokens=special) == [expected]
        assert len(server.requests) == asked
        (new,) = ids.many(["new"])
        assert new == toy_model.encode("new", add_special_tokens=True)
        assert len(server.requests) == asked + 1
    assert all(isinstance(token, int) and not isinstance(token, np.integer) for token in new)


def test_texts_are_divided_after_they_were_tokenised():
    """White space belongs to the continuation; a text without context begins with a given token."""
    bos = toy_model.BOS
    with ToyServer() as server, ScoringClient(server.target) as client:
        pairs = TextIds(client).pairs([("ab ", "c"), ("", "cd"), (" ", "e"), ("a", "b")], 7)
        asked = len(server.requests)
        assert TextIds(client).pairs([("", "cd")], ord("c")) == [([ord("c")], [ord("d")])]
    assert pairs == [
        ([bos, *b"ab"], [*b" c"]),
        ([7], [*b"cd"]),
        ([7], [*b" e"]),
        ([bos, *b"a"], [*b"b"]),
    ]
    assert asked == 2, "with special tokens and without"
