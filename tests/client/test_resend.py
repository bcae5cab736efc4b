"""A stream that breaks is resumed with what was unfinished, and the caller cannot tell."""

import asyncio
import threading
import time
from functools import partial

import grpc
import numpy as np
import pytest

from scoring_client import (
    AsyncScoringClient,
    CancelledCallError,
    Completion,
    InvalidRequestError,
    OverloadedError,
    PromptGroup,
    ResultChangedError,
    SamplePrompt,
    ScoringClient,
    ServerError,
    UnavailableError,
    Usage,
)
from scoring_client.calls.assembly import join
from tests.client import toy_model
from tests.client.cutting_proxy import CuttingProxy, end_of_data, reset, trailers_without_status
from tests.client.toy_server import Fault, ToyServer
from tests.client.truth import assert_sample, assert_scores

pytestmark = pytest.mark.usefixtures("quick_retry")

GROUPS = [
    ([1, 2, 3], [[4, 5, 6, 7], [8, 9]]),
    ([10], [[11] * 9, [12, 13], [14, 15, 16]]),
    ([20, 21], [[22]]),
]
# With slices of one row each.
RESULTS = sum(len(tokens) for _, completions in GROUPS for tokens in completions)


def assert_all(results, version=0):
    for group, (prompt, completions) in zip(results, GROUPS, strict=True):
        for scores, tokens in zip(group, completions, strict=True):
            assert_scores(scores, prompt, tokens, version=version)


@pytest.mark.parametrize("broken_after", [0, 1, 5, 11, RESULTS - 1])
def test_scores_survive_a_break(ask, broken_after):
    fault = Fault(after_results=broken_after)
    with ToyServer(faults=[fault], max_slice=1, slice_seed=3) as server:
        assert_all(ask(server.target, "score", GROUPS))
        assert len(server.requests) == 2


CUTS = {
    "no error": partial(reset, error=0),
    "internal error": partial(reset, error=2),
    "refused": partial(reset, error=7),
    "no trailers": end_of_data,
    "no status": trailers_without_status,
}


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_stream_that_a_proxy_ended_is_resumed(ask, cut, after):
    """Over real frames of HTTP/2: gRPC says INTERNAL or UNKNOWN of most of them."""
    with (
        ToyServer(max_slice=1, slice_seed=3, step_delay=0.002) as server,
        CuttingProxy([cut(after)]) as proxy,
    ):
        assert_all(ask(proxy.target(server.target), "score", GROUPS))
        assert len(server.requests) == 2


def test_topk_survives_three_breaks(ask):
    faults = [Fault(after_results=n) for n in (4, 0, 2)]
    with ToyServer(faults=faults, max_slice=2, slice_seed=5) as server:
        assert_all(ask(server.target, "topk_logprobs", GROUPS, 5))
        assert len(server.requests) == 4


def test_a_break_before_the_summary_alone_costs_nothing(ask):
    with ToyServer(faults=[Fault(after_results=RESULTS)], max_slice=1) as server:
        assert_all(ask(server.target, "score", GROUPS, client={"max_attempts": 1}))
        assert len(server.requests) == 1


def test_only_unfinished_completions_are_sent_again(ask):
    done_before_break = []

    def note(progress):
        if len(server.requests) == 1:
            done_before_break.append(progress.items_done)

    with ToyServer(faults=[Fault(after_results=12)], max_slice=1, slice_seed=3) as server:
        received = ask(server.target, "score_iter", GROUPS, on_progress=note)
        first, second = server.requests
    assert done_before_break[-1] > 0, "the break came too early to test anything"
    count_first = sum(len(group.completions) for group in first.groups)
    count_second = sum(len(group.completions) for group in second.groups)
    assert count_first == 6
    assert count_second == 6 - done_before_break[-1]
    sent_again = [list(c.token_ids) for group in second.groups for c in group.completions]
    assert all(sent_again)
    assert len(received) == 6
    assert first.context.request_id == second.context.request_id


def test_iterators_yield_each_completion_once(ask):
    faults = [Fault(after_results=n) for n in (5, 7, 3)]
    with ToyServer(faults=faults, max_slice=1, slice_seed=9) as server:
        parts = ask(server.target, "score_iter", GROUPS)
    assert sorted((p.group_index, p.completion_index) for p in parts) == [
        (g, c) for g, (_, completions) in enumerate(GROUPS) for c in range(len(completions))
    ]
    for part in parts:
        prompt, completions = GROUPS[part.group_index]
        assert_scores(part, prompt, completions[part.completion_index])


@pytest.mark.parametrize("seed", range(4))
def test_slices_are_not_yielded_twice(ask, seed):
    faults = [Fault(after_results=n) for n in (3, 6, 2, 5)]
    with ToyServer(faults=faults, max_slice=3, slice_seed=seed) as server:
        parts = ask(server.target, "score_slices", GROUPS)
        assert len(server.requests) >= 4
    by_item = {}
    for part in parts:
        by_item.setdefault((part.group_index, part.completion_index), []).append(part)
    assert len(by_item) == 6
    for (g, c), item in by_item.items():
        prompt, completions = GROUPS[g]
        assert_scores(join(item), prompt, completions[c])


def test_scores_of_new_weights_replace_those_of_old_ones_whole(ask):
    # Broken in the middle of every completion: no row of version 0 may remain.
    fault = Fault(after_results=2, version_after=4)
    groups = [([1, 2], [list(range(30))]), ([3], [list(range(40, 60))])]
    with ToyServer(faults=[fault], max_slice=2) as server:
        results = ask(server.target, "score", groups)
    for group, (prompt, (tokens,)) in zip(results, groups, strict=True):
        assert_scores(group[0], prompt, tokens, version=4)


def test_finished_items_keep_the_weights_they_were_scored_with(ask):
    fault = Fault(after_results=12, version_after=4)
    with ToyServer(faults=[fault], max_slice=1, slice_seed=3) as server:
        results = ask(server.target, "score", GROUPS)
    versions = set()
    for group, (prompt, completions) in zip(results, GROUPS, strict=True):
        for scores, tokens in zip(group, completions, strict=True):
            versions.add(scores.weight_version)
            assert scores.provenance.weight_version == scores.weight_version
            assert_scores(scores, prompt, tokens, version=scores.weight_version)
    assert versions == {0, 4}


def test_slices_of_new_weights_are_not_appended_to_old_ones(ask):
    fault = Fault(after_results=3, version_after=4)
    groups = [([1, 2], [list(range(30))]), ([3], [[1]])]
    with ToyServer(faults=[fault], max_slice=2, slice_seed=1) as server:
        parts = ask(server.target, "score_slices", groups, on_error="return")
    failed = [part for part in parts if part.error is not None]
    assert [(part.group_index, type(part.error)) for part in failed] == [(0, ResultChangedError)]
    with (
        ToyServer(faults=[fault], max_slice=2, slice_seed=1) as server,
        pytest.raises(ResultChangedError, match=r"groups\[0\].completions\[0\]"),
    ):
        ask(server.target, "score_slices", groups)


# Samples


@pytest.mark.parametrize("seed", [None, 0, 2**64 - 1])
@pytest.mark.parametrize("broken_after", [0, 1, 7, 20])
def test_samples_survive_a_break(ask, broken_after, seed):
    prompts = [[1, 2, 3], [4], [5, 6]]
    with ToyServer(faults=[Fault(after_results=broken_after)], max_slice=2) as server:
        results = ask(server.target, "sample", prompts, n=3, max_tokens=6, seed=seed)
    for prompt, samples in zip(prompts, results, strict=True):
        assert [sample.sample_index for sample in samples] == [0, 1, 2]
        assert len({sample.seed for sample in samples}) == 1
        assert seed is None or samples[0].seed == seed
        for sample in samples:
            assert_sample(sample, prompt, 6)
    if seed is None:
        assert len({samples[0].seed for samples in results}) == len(prompts)


def test_unfinished_samples_are_drawn_again_under_their_seed_and_index(ask):
    prompt = SamplePrompt([1, 2, 3], n=5, first_sample_index=7, max_tokens=4)
    with ToyServer(faults=[Fault(after_results=9)], max_slice=1, slice_seed=2) as server:
        (samples,) = ask(server.target, "sample", [prompt], max_tokens=None)
        first, second = server.requests
    assert [sample.sample_index for sample in samples] == [7, 8, 9, 10, 11]
    assert not first.prompts[0].HasField("seed")
    assert {prompt.seed for prompt in second.prompts} == {samples[0].seed}
    again = [p.first_sample_index + i for p in second.prompts for i in range(p.n)]
    assert 0 < len(again) < 5
    for sample in samples:
        assert_sample(sample, [1, 2, 3], 4)


@pytest.mark.parametrize("slice_seed", range(4))
def test_sampled_slices_are_not_yielded_twice(ask, slice_seed):
    prompts = [[1, 2, 3], [4]]
    faults = [Fault(after_results=n) for n in (3, 4, 2)]
    with ToyServer(faults=faults, max_slice=3, slice_seed=slice_seed) as server:
        parts = ask(server.target, "sample_slices", prompts, n=2, max_tokens=12, return_text=True)
    by_item = {}
    for part in parts:
        by_item.setdefault((part.prompt_index, part.sample_index), []).append(part)
    assert len(by_item) == 4
    for (p, _), item in by_item.items():
        starts = [0]
        for part in item:
            assert part.start == starts[-1]
            starts.append(part.start + len(part.token_ids))
        whole = join(item)
        assert_sample(whole, prompts[p], 12)
        assert whole.text == "".join(chr(t) for t in whole.token_ids if t < toy_model.BOS)


def test_a_sample_drawn_again_under_new_weights_fails_when_it_differs(ask):
    fault = Fault(after_results=4, version_after=9)
    with (
        ToyServer(faults=[fault], max_slice=1) as server,
        pytest.raises(ResultChangedError, match=r"prompts\[0\] sample 0"),
    ):
        ask(server.target, "sample_slices", [[1, 2, 3]], max_tokens=12)


def test_a_whole_sample_is_drawn_anew_under_new_weights(ask):
    fault = Fault(after_results=4, version_after=9)
    with ToyServer(faults=[fault], max_slice=1) as server:
        ((sample,),) = ask(server.target, "sample", [[1, 2, 3]], max_tokens=12)
    assert_sample(sample, [1, 2, 3], 12, version=9)
    assert [span.weight_version for span in sample.weight_spans] == [9]


# Paths


def test_paths_are_those_of_the_callers_request(ask):
    # Two completions end before the break; afterwards the bad one has other indices.
    groups = [([1], [[2]]), ([3], [[4], [5] * 30, [6, 7, 300]])]
    with ToyServer(faults=[Fault(after_results=3)], max_slice=9, slice_seed=4) as server:
        results = ask(server.target, "score", groups, on_error="return")
        second = server.requests[1]
    assert sum(len(group.completions) for group in second.groups) < 4
    error = results[1][2].error
    assert isinstance(error, InvalidRequestError)
    assert error.violations[0].field == "groups[1].completions[2].token_ids[2]"
    assert str(error) == "groups[1].completions[2].token_ids[2]: 300 ≥ vocabulary 258"
    assert_scores(results[1][1], [3], [5] * 30)


def test_paths_of_a_call_that_fails_are_those_of_the_callers_request(ask):
    groups = [([1], [[2]]), ([3], [[4] * 20])]
    last = Fault(
        grpc.StatusCode.INVALID_ARGUMENT,
        "groups[0].completions[0].rows: bad",
        "INVALID_FIELD",
        field="groups[0].completions[0].rows",
    )
    # The first group ends, so that the second is number 0 when it is sent again.
    with (
        ToyServer(faults=[Fault(after_results=2), last], max_slice=1, slice_seed=1) as server,
        pytest.raises(InvalidRequestError) as raised,
    ):
        ask(server.target, "score", groups)
    assert len(server.requests[1].groups) == 1
    assert raised.value.violations[0].field == "groups[1].completions[0].rows"
    assert raised.value.message == "groups[1].completions[0].rows: bad"


# What is tried again, and how often


@pytest.mark.parametrize("max_attempts", [1, 2, 4])
def test_attempts_are_limited(ask, max_attempts):
    with ToyServer(faults=[Fault()] * 9) as server:
        with pytest.raises(UnavailableError, match="the worker died") as raised:
            ask(server.target, "score", GROUPS, client={"max_attempts": max_attempts})
        assert len(server.requests) == max_attempts
    assert raised.value.reason == "WORKER_DIED"
    assert "6 of 6 items unfinished" in str(raised.value)


def test_the_count_begins_anew_when_an_item_was_finished(ask):
    groups = [([1], [[token]]) for token in range(8)]
    with ToyServer(faults=[Fault(after_results=1)] * 7) as server:
        results = ask(server.target, "score", groups, client={"max_attempts": 2})
        assert len(server.requests) == 8
    for token, (scores,) in enumerate(results):
        assert_scores(scores, [1], [token])


@pytest.mark.parametrize("preferred_tokens", [1000, 4])
def test_a_client_that_is_closed_between_attempts_cancels_the_call(ask, preferred_tokens, runner):
    """Of one part and of several."""
    full = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_delay=0.3)
    with ToyServer(faults=[full] * 9, preferred_tokens=preferred_tokens) as server:
        if ask.kind == "sync":
            client = ScoringClient(server.target)
            threading.Timer(0.15, client.close).start()
            with pytest.raises(CancelledCallError, match="client was closed"):
                client.score(GROUPS)
            return

        async def closed_meanwhile():
            client = AsyncScoringClient(server.target)
            asyncio.get_running_loop().call_later(
                0.15, lambda: closing.append(asyncio.create_task(client.close()))
            )
            await client.score(GROUPS)

        closing = []
        with pytest.raises(CancelledCallError, match="client was closed"):
            runner.run(closed_meanwhile())


def test_slices_of_topk_are_the_same_rows(ask):
    with ToyServer(faults=[Fault(after_results=4)], max_slice=2, slice_seed=5) as server:
        slices = ask(server.target, "topk_logprobs_slices", GROUPS, 5)
        whole = ask(server.target, "topk_logprobs", GROUPS, 5)
    for g, (_, completions) in enumerate(GROUPS):
        for c, tokens in enumerate(completions):
            parts = [s for s in slices if (s.group_index, s.completion_index) == (g, c)]
            for name in ("logprobs", "top_token_ids", "top_logprobs", "log_tail_masses"):
                joined = np.concatenate([getattr(part, name) for part in parts])
                assert len(joined) == len(tokens)
                np.testing.assert_array_equal(joined, getattr(whole[g][c], name))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.CANCELLED, CancelledCallError),
    ],
)
def test_other_errors_are_not_tried_again(ask, code, error):
    with ToyServer(faults=[Fault(code, "no", "", after_results=3)] * 3) as server:
        with pytest.raises(error) as raised:
            ask(server.target, "score", GROUPS)
        assert len(server.requests) == 1
    assert raised.value.code is code


def test_an_overloaded_server_is_asked_again_after_the_delay_it_names(ask):
    fault = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_delay=0.4)
    with ToyServer(faults=[fault, fault]) as server:
        begin = time.monotonic()
        assert_all(ask(server.target, "score", GROUPS))
        took = time.monotonic() - begin
        assert len(server.requests) == 3
    assert took >= 0.8


def test_a_delay_beyond_the_timeout_is_not_waited_for(ask):
    fault = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_delay=30)
    with ToyServer(faults=[fault]) as server:
        begin = time.monotonic()
        with pytest.raises(OverloadedError) as raised:
            ask(server.target, "score", GROUPS, timeout=5)
        assert time.monotonic() - begin < 3
    assert raised.value.retry_delay == 30
    assert raised.value.reason == "QUEUE_FULL"


def test_usage_adds_up_over_attempts_that_ended_well(ask):
    with ToyServer(faults=[Fault(after_results=4)], max_slice=1) as server:
        results = ask(server.target, "score", GROUPS)
    # The attempt that broke sent no summary.
    assert results.usage.completion_tokens == 10
    one = Usage(prompt_tokens=1, reply_bytes=2, queue_seconds=0.5)
    assert one + Usage(prompt_tokens=10, sampled_tokens=3, queue_seconds=0.25) == Usage(
        prompt_tokens=11, sampled_tokens=3, reply_bytes=2, queue_seconds=0.75
    )


def test_rows_and_candidates_go_with_a_completion_that_is_sent_again(ask):
    long, masked = (
        [7] * 20,
        Completion([1, 2, 3, 4], rows=[False, True, False, True], candidates=[9]),
    )
    groups = [PromptGroup([1], [[2], long, masked], temperature=2.0)]
    with ToyServer(faults=[Fault(after_results=6)], max_slice=1, slice_seed=8) as server:
        results = ask(server.target, "score", groups)
        second = server.requests[1]
    assert len(second.groups[0].completions) < 3
    assert_scores(results[0][1], [1], long, temperature=2.0)
    assert_scores(results[0][2], [1], [1, 2, 3, 4], rows=[1, 3], temperature=2.0)
    for index, row in enumerate((1, 3)):
        truth = toy_model.row([1, *[1, 2, 3, 4][:row]], temperature=2.0).logprobs_V[9]
        assert results[0][2].candidate_logprobs[index, 0] == truth
