"""An answer that breaks the contract is an error, never a short or shifted array."""

import pytest

from scoring_client import CancelledCallError, ProtocolError, ScoringError
from tests.client.toy_server import ToyServer

GROUPS = [([1, 2], [[3, 4, 5, 6, 7]]), ([8], [[9, 10, 11]])]


def nth_result(messages, n):
    """Return the index of the message with the n-th result."""
    return [i for i, m in enumerate(messages) if m.results][n]


def scores_of(message):
    (result,) = message.results
    return result.score if hasattr(result, "score") else result


def edit(change):
    """Make a tamper of a function that changes the list of messages in place."""

    def tamper(stream):
        messages = list(stream)
        change(messages)
        return messages

    return tamper


def drop_a_slice(messages):
    del messages[nth_result(messages, 1)]


def repeat_a_slice(messages):
    index = nth_result(messages, 0)
    messages.insert(index, messages[index])


def swap_slices(messages):
    # Of the first group, whose slices come first without mixing.
    a, b, *_ = (i for i, m in enumerate(messages) if m.results and scores_of(m).group_index == 0)
    messages[a], messages[b] = messages[b], messages[a]


def forget_last(messages):
    for message in messages:
        if message.results:
            scores_of(message).last = False


def end_early(messages):
    scores_of(messages[nth_result(messages, 0)]).last = True


def truncate(messages):
    first, *rest = (
        i for i, m in enumerate(messages) if m.results and scores_of(m).group_index == 0
    )
    scores_of(messages[first]).last = True
    for index in reversed(rest):
        del messages[index]


def drop_an_item(messages):
    messages[:] = [m for m in messages if not m.results or scores_of(m).group_index != 1]


def drop_the_summary(messages):
    messages.pop()


def speak_after_the_summary(messages):
    messages.append(messages[0])


def drop_the_beginning(messages):
    messages.pop(0)


def unknown_group(messages):
    scores_of(messages[nth_result(messages, 0)]).group_index = 2


def unknown_completion(messages):
    scores_of(messages[nth_result(messages, 0)]).completion_index = 1


def negative_group(messages):
    scores_of(messages[nth_result(messages, 0)]).group_index = -1


def no_group(messages):
    scores_of(messages[nth_result(messages, 0)]).ClearField("group_index")


def no_completion(messages):
    scores_of(messages[nth_result(messages, 0)]).ClearField("completion_index")


def no_start(messages):
    scores_of(messages[nth_result(messages, 0)]).ClearField("start")


def no_processing(messages):
    scores_of(messages[nth_result(messages, 0)]).ClearField("processing_index")


def unknown_processing(messages):
    scores_of(messages[nth_result(messages, 0)]).processing_index = 1


def fewer_logprobs(messages):
    scores_of(messages[nth_result(messages, 0)]).logprobs.pop()


def fewer_entropies(messages):
    scores_of(messages[nth_result(messages, 0)]).entropies.pop()


def no_ranks(messages):
    del scores_of(messages[nth_result(messages, 0)]).ranks[:]


def other_weights(messages):
    a, *_ = (i for i, m in enumerate(messages) if m.results and scores_of(m).group_index == 0)
    scores_of(messages[a]).weight_version = 7


def shifted(messages):
    for message in messages:
        if message.results:
            scores_of(message).start += 1


BREAKS = [
    (drop_a_slice, "came where|ended before|items unfinished"),
    (repeat_a_slice, "came where"),
    (swap_slices, "came where|ended before"),
    (forget_last, "2 of 2 items unfinished"),
    (end_early, "ended before rows|had ended"),
    (truncate, r"groups\[0\].completions\[0\]: the item ended before rows"),
    (drop_an_item, r"1 of 2 items unfinished, the first of them groups\[1\].completions\[0\]"),
    (drop_the_summary, "without a summary"),
    (speak_after_the_summary, "after the summary"),
    (drop_the_beginning, "processing_index 0 of 0|before the provenance"),
    (unknown_group, "group 2 of 2"),
    (unknown_completion, "completion 1 of 1"),
    (negative_group, "group -1 of 2"),
    (no_group, "does not say its group"),
    (no_completion, "does not say its completion"),
    (no_start, "does not say where it starts"),
    (no_processing, "processing_index"),
    (unknown_processing, "processing_index 1 of 1"),
    (fewer_logprobs, "rows has|entries, due were"),
    (fewer_entropies, "entropies has"),
    (no_ranks, "ranks has 0 entries"),
    (other_weights, "weight versions 7 and 0|weight versions 0 and 7"),
    (shifted, "came where"),
]


@pytest.mark.parametrize(("change", "complaint"), BREAKS, ids=[b[0].__name__ for b in BREAKS])
@pytest.mark.parametrize("method", ["score", "score_slices", "topk_logprobs"])
def test_broken_scores(ask, method, change, complaint):
    arguments = [GROUPS, 3] if method == "topk_logprobs" else [GROUPS]
    with ToyServer(tamper=edit(change), max_slice=3, slice_seed=2) as server:
        with pytest.raises(ProtocolError, match=complaint) as raised:
            ask(server.target, method, *arguments, entropy=True, rank=True)
        assert len(server.requests) == 1, "a broken contract is not tried again"
    assert raised.value.request_id == server.requests[0].context.request_id
    assert raised.value.code is None


def test_the_unbroken_answer_is_accepted(ask):
    # The slicing that the breaks above start from.
    with ToyServer(tamper=edit(lambda messages: None), max_slice=3, slice_seed=2) as server:
        results = ask(server.target, "score", GROUPS, entropy=True, rank=True)
    assert [len(scores.logprobs) for scores in results.completions()] == [5, 3]


def test_an_empty_stream(ask):
    with (
        ToyServer(tamper=lambda stream: []) as server,
        pytest.raises(ProtocolError, match="without a summary"),
    ):
        ask(server.target, "score", GROUPS)


def test_next_token_row_missing(ask):
    def change(messages):
        for message in messages:
            if message.results and scores_of(message).last:
                scores_of(message).row_count -= 1
                scores_of(message).entropies.pop()

    with ToyServer(tamper=edit(change)) as server, pytest.raises(ProtocolError, match="rows has"):
        ask(server.target, "score", GROUPS, next_token=True, entropy=True)


def test_next_token_row_elsewhere(ask):
    # The next-token row of the first completion is row 5.
    def change(messages):
        for message in messages:
            if message.results and scores_of(message).start == 5:
                scores_of(message).start = 3

    with (
        ToyServer(tamper=edit(change), max_slice=1) as server,
        pytest.raises(ProtocolError, match="row 3 came as the next-token row of 5 tokens"),
    ):
        ask(server.target, "score", GROUPS, next_token=True)


def test_topk_of_another_k(ask):
    def change(messages):
        for message in messages:
            for result in message.results:
                result.top_token_ids.shape[1] += 1

    with (
        ToyServer(tamper=edit(change)) as server,
        pytest.raises(ProtocolError, match=r"top_token_ids has shape \[\d, 4\], due was \[\d, 3"),
    ):
        ask(server.target, "topk_logprobs", GROUPS, 3)


def test_topk_without_logprobs(ask):
    def change(messages):
        for message in messages:
            for result in message.results:
                result.ClearField("top_logprobs")

    with (
        ToyServer(tamper=edit(change)) as server,
        pytest.raises(ProtocolError, match="top_logprobs has shape"),
    ):
        ask(server.target, "topk_logprobs", GROUPS, 3)


def sample_gap(messages):
    del messages[nth_result(messages, 0)]


def sample_repeated(messages):
    messages.insert(nth_result(messages, 0), messages[nth_result(messages, 0)])


def sample_unknown(messages):
    messages[nth_result(messages, 0)].results[0].sample_index = 5


def sample_without_seed(messages):
    messages[nth_result(messages, 0)].results[0].ClearField("seed")


def sample_without_reason(messages):
    for message in messages:
        for result in message.results:
            result.ClearField("finish_reason")


def sample_without_processed(messages):
    del messages[nth_result(messages, 0)].results[0].processed_logprobs[:]


SAMPLE_BREAKS = [
    (sample_gap, "where 0 was due|1 of 1 items"),
    (sample_repeated, "a slice starts at 0 where"),
    (sample_unknown, "which had ended"),
    (sample_without_seed, "does not say its seed"),
    (sample_without_reason, "without a finish_reason"),
    (sample_without_processed, "processed_logprobs has 0 entries"),
]


@pytest.mark.parametrize(("change", "complaint"), SAMPLE_BREAKS)
@pytest.mark.parametrize("method", ["sample", "sample_slices"])
def test_broken_samples(ask, method, change, complaint):
    with (
        ToyServer(tamper=edit(change), max_slice=2) as server,
        pytest.raises(ProtocolError, match=complaint),
    ):
        ask(server.target, method, [[1, 2, 3]], max_tokens=6)


def test_every_protocol_error_is_a_scoring_error():
    assert issubclass(ProtocolError, ScoringError)
    assert not issubclass(ProtocolError, CancelledCallError)
