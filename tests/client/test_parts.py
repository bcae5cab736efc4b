"""A large call is divided into parts, which several servers answer, and the caller cannot tell."""

import asyncio
import threading
import time

import grpc
import pytest

from scoring_client import (
    AsyncScoringClient,
    CancelledCallError,
    Completion,
    DeadlineError,
    InvalidRequestError,
    MixedWeightsError,
    SamplePrompt,
    ScoringClient,
    UnavailableError,
)
from scoring_client.calls.assembly import join
from scoring_client.calls.division import PartSize, divide, group_unit, prompt_units
from scoring_client.calls.requests import group_messages
from scoring_client.proto import sample_pb2
from tests.client.conftest import OWN_CONNECTIONS
from tests.client.toy_server import Fault, ToyServer
from tests.client.truth import assert_sample, assert_scores

pytestmark = pytest.mark.usefixtures("quick_retry")

# 18 groups of 12 to 20 tokens.
GROUPS = [
    ([g, g + 1], [[g % 7 + i for i in range(3 + g % 3)], [g] * (4 + g % 2), [5, g, 6]])
    for g in range(18)
]
TOKENS = sum(len(p) + sum(map(len, cs)) for p, cs in GROUPS)
SMALL = {"tokens_per_part": 40}


def assert_all(results):
    for group, (prompt, completions) in zip(results, GROUPS, strict=True):
        for scores, tokens in zip(group, completions, strict=True):
            assert_scores(scores, prompt, tokens)


def sent_groups(server):
    return [
        (list(g.prompt.token_ids), [list(c.token_ids) for c in g.completions])
        for request in server.requests
        for g in request.groups
    ]


# Division


def units_of(groups):
    return [group_unit(index, message) for index, message in enumerate(group_messages(groups)[0])]


@pytest.mark.parametrize("tokens", [1, 13, 40, 60, 100, TOKENS - 1, TOKENS, 10**9])
def test_parts_hold_every_group_once_and_whole(tokens):
    parts = divide(units_of(GROUPS), PartSize(tokens))
    keys = [key for part in parts for key in part]
    assert keys == [(g, c) for g in range(18) for c in range(3)]
    costs = {index: len(p) + sum(map(len, cs)) for index, (p, cs) in enumerate(GROUPS)}
    for part in parts:
        groups = {group for group, _ in part}
        assert len(part) == 3 * len(groups), "a group was divided"
        assert len(groups) == 1 or sum(costs[g] for g in groups) <= tokens
    if tokens >= TOKENS:
        assert len(parts) == 1


def test_parts_are_about_equal():
    groups = [([1] * 10, [[2] * 90])] * 22
    sizes = [len(part) for part in divide(units_of(groups), PartSize(1000))]
    assert sizes == [7, 8, 7], "full ones would have been 10, 10 and 2"


def test_requests_stay_below_the_servers_limit():
    groups = [([1] * 10, [[2] * 990])] * 30
    units = units_of(groups)
    parts = divide(units, PartSize(10**9, request_bytes=8_000))
    assert len(parts) > 1
    for part in parts:
        assert sum(units[group].request_bytes for group, _ in part) <= 7_200


def test_the_samples_of_a_prompt_are_divided_when_they_are_too_many():
    prompt = sample_pb2.SamplePrompt(token_ids=[1] * 100)
    keys = [(4, index) for index in range(7, 17)]
    units = prompt_units(prompt, keys, 50, PartSize(300))
    assert [unit.keys for unit in units] == [tuple(keys[i : i + 4]) for i in (0, 4, 8)]
    assert [unit.tokens for unit in units] == [300, 300, 200]
    assert len(prompt_units(prompt, keys, 50, PartSize(600))) == 1


# Calls


def test_a_call_is_spread_over_servers(ask):
    with ToyServer() as one, ToyServer() as two, ToyServer() as three:
        servers = (one, two, three)
        target = "ipv4:" + ",".join(server.target for server in servers)
        # Round robin is over those that are connected: one alone, if the others are too late.
        for _ in range(10):
            for server in servers:
                server.requests.clear()
            results = ask(target, "score", GROUPS, client=SMALL)
            if sum(bool(server.requests) for server in servers) > 1:
                break
    assert_all(results)
    assert results.usage.completion_tokens == 10 * sum(len(s.requests) for s in servers)
    received = sorted(group for server in servers for group in sent_groups(server))
    assert received == sorted(GROUPS), "each group was sent once, to one server"
    assert sum(bool(server.requests) for server in servers) > 1
    ids = {request.context.request_id for server in servers for request in server.requests}
    assert len(ids) == 1


def test_topk_and_slices_and_progress_are_the_callers(ask):
    reports = []
    with ToyServer(max_slice=2) as server:
        assert_all(ask(server.target, "topk_logprobs", GROUPS, 3, client=SMALL))
        parts = ask(server.target, "score_slices", GROUPS, client=SMALL, on_progress=reports.append)
    by_item = {}
    for part in parts:
        by_item.setdefault((part.group_index, part.completion_index), []).append(part)
    assert len(by_item) == 54
    for (g, c), item in by_item.items():
        assert_scores(join(item), GROUPS[g][0], GROUPS[g][1][c])
    assert [r.items_done for r in reports] == sorted(r.items_done for r in reports)
    assert (reports[-1].items_done, reports[-1].items_total) == (54, 54)


def test_the_servers_preference_divides_large_calls_alone(ask):
    large = [([1, 2], [[3] * 500, [4] * 500])] * 6
    with ToyServer(preferred_tokens=2500, max_slice=500) as server:
        results = ask(server.target, "score", large)
        assert [len(request.groups) for request in server.requests] == [2, 2, 2]
        ask(server.target, "score", GROUPS)
        ask(server.target, "score", large[:1])
        assert len(server.requests) == 5
    for group in results:
        assert [scores.logprobs.shape for scores in group] == [(500,), (500,)]


def test_a_server_that_does_not_say_what_it_prefers_gets_the_call_whole(ask):
    large = [([1, 2], [[3] * 500, [4] * 500])] * 6
    refused = Fault(grpc.StatusCode.PERMISSION_DENIED, "no", "PERMISSION_DENIED")
    with ToyServer(preferred_tokens=2500, max_slice=500, unary_faults=[refused]) as server:
        ask(server.target, "score", large)
        assert len(server.requests) == 1
    with ToyServer(preferred_tokens=0, max_slice=500) as server:
        ask(server.target, "score", large)
        assert len(server.requests) == 1


# What is asked of a completion's first row alone costs the toy nothing.
LONG = [([1, 2], [Completion([3] * 25_000, rows=[(0, 1)])])] * 6
STARTING = Fault(reason="LOADING", message="the model is loading")


def parts_of(server):
    sizes = sorted(len(request.groups) for request in server.requests)
    server.requests.clear()
    return sizes


def test_a_call_that_meets_a_server_before_it_is_ready_is_divided_all_the_same(ask):
    # gRPC itself sends a short call four times; each of the parts is refused once as well.
    refusals = {"unary_faults": [STARTING] * 4, "faults": [STARTING] * 3}
    with ToyServer(preferred_tokens=10**9, **refusals) as server:
        results = ask(server.target, "score", LONG)
        assert parts_of(server) == [2, 2, 2, 2, 2, 2]
    for (scores,) in results:
        assert_scores(scores, [1, 2], [3] * 25_000, rows=[0])


def test_limits_that_changed_are_asked_for_again(monkeypatch):
    sizes = "scoring_client.calls.preferred_sizes._FRESH_SECONDS"
    with (
        ToyServer(preferred_tokens=60_000) as server,
        ScoringClient(server.target, **OWN_CONNECTIONS) as client,
    ):
        client.score(LONG)
        assert parts_of(server) == [2, 2, 2]
        server.preferred_tokens = 30_000
        client.score(LONG)
        assert parts_of(server) == [2, 2, 2], "asked for each call"
        monkeypatch.setattr(sizes, 0.0)
        client.score(LONG)
        assert parts_of(server) == [1] * 6
        server.unary_faults += [STARTING] * 4
        client.score(LONG)
        assert parts_of(server) == [1] * 6, "what was said last holds"


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_parts_than_allowed_are_in_flight(ask, most):
    hold = threading.Event()
    with ToyServer(hold=hold) as server:
        timer = threading.Timer(0.5, hold.set)
        timer.start()
        seen = []
        results = ask(
            server.target,
            "score",
            GROUPS,
            client=SMALL | {"max_parts_in_flight": most},
            on_progress=lambda progress: seen.append((progress.items_done, len(server.requests))),
        )
        timer.join()
    assert_all(results)
    # Until the first item, those in flight are all there are.
    assert max(requests for done, requests in seen if done == 0) == most
    assert len(server.requests) >= 7


@pytest.mark.parametrize("most", [1, 8])
def test_a_part_that_breaks_is_sent_again_without_what_was_finished(ask, most):
    faults = [Fault(after_results=n) for n in (16, 7, 0, 15, 4)]
    client = SMALL | {"max_parts_in_flight": most}
    with ToyServer(faults=faults, max_slice=1, slice_seed=1) as server:
        parts = ask(server.target, "score_iter", GROUPS, client=client)
        sizes = [sum(len(group.completions) for group in r.groups) for r in server.requests]
    keys = [(part.group_index, part.completion_index) for part in parts]
    assert sorted(keys) == [(g, c) for g in range(18) for c in range(3)]
    for part in parts:
        prompt, completions = GROUPS[part.group_index]
        assert_scores(part, prompt, completions[part.completion_index])
    if most == 1:
        # One after another: the first part broke after 16 of its rows, and was sent again.
        assert 0 < sizes[1] < sizes[0]


def test_a_part_that_is_refused_waits_as_long_as_the_server_says(ask):
    full = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_delay=0.3)
    with ToyServer(faults=[None, full]) as server:
        begun = time.monotonic()
        assert_all(ask(server.target, "score", GROUPS, client=SMALL))
        assert time.monotonic() - begun >= 0.3


def test_a_fault_of_one_part_ends_the_call_in_the_callers_words(ask):
    wrong = Fault(
        grpc.StatusCode.INVALID_ARGUMENT,
        "groups[0].prompt: bad",
        "INVALID_FIELD",
        field="groups[0].prompt",
    )
    with ToyServer(faults=[None, None, wrong]) as server:
        with pytest.raises(InvalidRequestError) as caught:
            ask(server.target, "score", GROUPS, client=SMALL | {"max_parts_in_flight": 1})
        assert len(server.requests) == 3
        third = sent_groups(server)[-len(server.requests[2].groups)]
    assert caught.value.violations[0].field == f"groups[{GROUPS.index(third)}].prompt"


def test_items_that_fail_have_the_callers_indices(ask):
    groups = [*GROUPS[:9], ([1], [[300], [2, 3]]), *GROUPS[9:]]
    with ToyServer() as server:
        results = ask(server.target, "score", groups, client=SMALL, on_error="return")
        with pytest.raises(InvalidRequestError, match=r"1 of 56 items .*groups\[9\]"):
            ask(server.target, "score", groups, client=SMALL)
    assert results[9][0].error.violations[0].field == "groups[9].completions[0].token_ids[0]"
    assert_scores(results[9][1], [1], [2, 3])
    assert sum(s.error is not None for s in results.completions()) == 1


def test_the_timeout_is_the_calls(ask):
    with (
        ToyServer(hold=threading.Event()) as server,
        pytest.raises(DeadlineError, match="54 of 54 items unfinished"),
    ):
        ask(server.target, "score", GROUPS, client=SMALL, timeout=0.5)


def test_a_server_that_stays_away_is_given_up(ask):
    with ToyServer(faults=[Fault()] * 50) as server, pytest.raises(UnavailableError):
        ask(server.target, "score", GROUPS, client=SMALL | {"max_attempts": 2})


def test_a_server_that_drains_is_met_as_often_as_it_takes(ask):
    """Round robin may find it again and again; the others have room."""
    draining = [Fault(reason="DRAINING", message="the server is shutting down")] * 12
    with ToyServer(faults=draining) as one, ToyServer() as two:
        target = f"ipv4:{one.target},{two.target}"
        client = SMALL | {"max_attempts": 2, "max_parts_in_flight": 2}
        assert_all(ask(target, "score", GROUPS * 2, client=client)[:18])
        assert one.requests
        assert two.requests


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.endswith("(_read)")}


def test_leaving_the_loop_cancels_every_part():
    others = readers()  # which other files' tests may have left
    with ToyServer(step_delay=0.02) as server, ScoringClient(server.target, **SMALL) as client:
        for _ in client.score_iter(GROUPS):
            break
        begun = len(server.requests)
        assert server.cancelled.wait(5)
        time.sleep(0.3)
        assert len(server.requests) == begun, "parts were begun after the loop was left"
        assert readers() <= others


def test_closing_the_client_ends_a_divided_call():
    """Whoever waits for an answer is not left waiting."""
    with ToyServer(hold=threading.Event()) as server:
        client = ScoringClient(server.target, **SMALL)
        threading.Timer(0.3, client.close).start()
        with pytest.raises(CancelledCallError):
            client.score(GROUPS)


def test_closing_the_asynchronous_client_ends_a_divided_call(runner):
    async def main():
        client = AsyncScoringClient(server.target, **SMALL)
        running = asyncio.ensure_future(client.score(GROUPS))
        await asyncio.sleep(0.3)
        await client.close()
        with pytest.raises(CancelledCallError):
            await asyncio.wait_for(running, 10)

    with ToyServer(hold=threading.Event()) as server:
        runner.run(main())


# Samples


@pytest.mark.parametrize("seed", [None, 11])
def test_samples_of_divided_prompts_are_those_of_one_seed(ask, seed):
    prompts = [[1, 2, 3], [4], SamplePrompt([5, 6], n=9, first_sample_index=3)]
    faults = [None, Fault(after_results=3), Fault(after_results=1)]
    with ToyServer(faults=faults, max_slice=2) as server:
        results = ask(server.target, "sample", prompts, n=6, max_tokens=6, seed=seed, client=SMALL)
        assert len(server.requests) == 4 + 2
    assert [s.sample_index for s in results[2]] == list(range(3, 12))
    for prompt, samples in zip([[1, 2, 3], [4], [5, 6]], results, strict=True):
        (its_seed,) = {sample.seed for sample in samples}
        assert seed in (None, its_seed)
        for sample in samples:
            assert_sample(sample, prompt, 6)
    if seed is None:
        assert len({samples[0].seed for samples in results}) == 3


# Weights


def ask_two(ask, one, two):
    target = f"ipv4:{one.target},{two.target}"
    with ScoringClient(target) as client:
        client.wait_ready(5)
    return ask(target, "score", GROUPS * 3, client=SMALL | {"max_parts_in_flight": 4})


def test_servers_of_other_weights_under_one_version_are_noticed(ask):
    with (
        ToyServer(digest="aa" * 32) as one,
        ToyServer(digest="bb" * 32) as two,
        pytest.raises(MixedWeightsError, match=r"aaaaaaaaaaaa….*bbbbbbbbbbbb…|bbbb.*aaaa"),
    ):
        ask_two(ask, one, two)


def test_servers_of_another_version_are_reported(ask):
    with ToyServer(digest="aa" * 32) as one, ToyServer(digest="bb" * 32, version=3) as two:
        results = ask_two(ask, one, two)
    assert {p.weight_version: p.weights_digest[:2] for p in results.provenances} == {
        0: "aa",
        3: "bb",
    }
    for group, (prompt, completions) in zip(results, GROUPS * 3, strict=True):
        for scores, tokens in zip(group, completions, strict=True):
            assert scores.weight_version == scores.provenance.weight_version
            assert_scores(scores, prompt, tokens, version=scores.weight_version)


@pytest.mark.parametrize("name", ["tokens_per_part", "max_parts_in_flight", "max_attempts"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_what_makes_no_sense_is_refused(ask, name, value):
    with pytest.raises(
        ValueError, match=f"{name} must be an integer and at least 1, got {value!r}"
    ):
        ask("localhost:1", "score", GROUPS, client={name: value})
