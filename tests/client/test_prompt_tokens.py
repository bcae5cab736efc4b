"""Every result knows its prompt's tokens, whether the prompt came as text or as ids."""

import pytest

from tests.client import toy_model
from tests.client.toy_server import ToyServer

IDS, TEXT = [5, 6, 7], "ab"
OF_TEXT = [toy_model.BOS, 97, 98]
CALLS = {
    "score": ([(IDS, [[1, 2], [3]]), (TEXT, [[4]])], []),
    "topk_logprobs": ([(IDS, [[1, 2], [3]]), (TEXT, [[4]])], [3]),
    "sample": ([IDS, TEXT], []),
}
SAMPLING = {"max_tokens": 4, "n": 2}


@pytest.fixture(scope="module")
def server():
    with ToyServer(max_slice=1) as running:
        yield running


@pytest.mark.parametrize("client", [{}, {"tokens_per_part": 1}], ids=["whole", "in parts"])
@pytest.mark.parametrize("method", CALLS)
def test_tokens_of_prompts(ask, server, method, client):
    content, more = CALLS[method]
    options = SAMPLING if method == "sample" else {}
    results = ask(server.target, method, content, *more, client=client, **options)
    for items, expected in zip(results, (IDS, OF_TEXT), strict=True):
        for item in items:
            assert item.prompt_token_ids.tolist() == expected
            assert item.prompt_length == len(expected)
    first, second = results[0]
    first.prompt_token_ids[0] = 99  # the caller's own
    assert second.prompt_token_ids[0] == IDS[0]


@pytest.mark.parametrize("method", CALLS)
def test_they_come_in_the_last_slice(ask, server, method):
    content, more = CALLS[method]
    options = SAMPLING if method == "sample" else {}
    parts = ask(server.target, f"{method}_slices", content, *more, **options)
    assert {part.last for part in parts} == {False, True}
    for part in parts:
        assert (part.prompt_token_ids is not None) is part.last


@pytest.mark.parametrize("method", CALLS)
def test_a_failed_item_has_those_that_were_sent(ask, server, method):
    bad = {"score": ([([5, 6], [[999]])], []), "sample": ([[5, 6, 999]], [])}
    content, more = bad.get(method, (bad["score"][0], [3]))
    options = SAMPLING if method == "sample" else {}
    results = ask(server.target, method, content, *more, on_error="return", **options)
    failed = results[0][0]
    assert failed.error is not None
    assert failed.prompt_token_ids.tolist() == [5, 6, 999][: failed.prompt_length]
    assert failed.prompt_length == (3 if method == "sample" else 2)
