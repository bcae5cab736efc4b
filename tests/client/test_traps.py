"""What clients and trainers got wrong. Each wrong variant shipped somewhere, or was planned; here
it must be caught by the very check that this package passes."""

import json

import numpy as np
import pytest

from scoring_client import Completion, PromptGroup, UnavailableError
from tests.client import toy_model
from tests.client.toy_server import Fault, ToyServer
from tests.client.truth import assert_scores

PROMPT, TOKENS = [1, 2, 3], list(range(10, 22))


def caught(check, wrong):
    with pytest.raises((AssertionError, UnavailableError)):
        check(wrong)


def test_the_realised_log_prob_is_rebuilt_from_the_list(ask):
    """A token that is not among the K has a log-prob of its own, not a floor."""
    with ToyServer() as server:
        ((scores,),) = ask(server.target, "topk_logprobs", [(PROMPT, [TOKENS])], 2)
    expected = [
        toy_model.row(PROMPT + TOKENS[:i]).logprobs_V[token] for i, token in enumerate(TOKENS)
    ]
    assert not set(TOKENS) <= set(scores.top_token_ids.ravel().tolist())

    def rebuilt(scores):
        rows = zip(scores.token_ids, scores.top_token_ids, scores.top_logprobs, strict=True)
        return [
            values[ids == token][0] if (ids == token).any() else -20.0
            for token, ids, values in rows
        ]

    def check(realised):
        np.testing.assert_allclose(realised(scores), expected, rtol=1e-6)

    check(lambda scores: scores.logprobs)
    caught(check, rebuilt)


def test_what_is_reported_is_not_what_was_applied(ask):
    """Log-probs are those of the settings that stand beside them, of each group by itself."""
    groups = [
        PromptGroup(PROMPT, [TOKENS]),
        PromptGroup(PROMPT, [TOKENS], temperature=2.0),
    ]

    def configured(stream):
        for message in stream:
            for own in message.processing[1:]:
                own.CopyFrom(message.processing[0])
            yield message

    def check(tamper):
        with ToyServer(tamper=tamper) as server:
            results = ask(server.target, "score", groups, temperature=0.5)
        for scores in results.completions():
            assert_scores(scores, PROMPT, TOKENS, temperature=scores.processing.temperature)

    check(None)
    caught(check, configured)


def test_one_start_of_rows_for_a_whole_request(ask):
    """Two turns of one completion, and of another one other turns."""
    masks = [np.arange(12) % 4 > 1, np.arange(12) < 5]

    def one_start(masks):
        first = min(int(np.flatnonzero(mask)[0]) for mask in masks)
        return [np.arange(len(mask)) >= first for mask in masks]

    def check(asked):
        completions = [Completion(TOKENS, rows=mask) for mask in asked(masks)]
        with ToyServer(max_slice=3) as server:
            (group,) = ask(server.target, "score", [(PROMPT, completions)])
        for scores, mask in zip(group, masks, strict=True):
            assert_scores(scores, PROMPT, TOKENS, rows=np.flatnonzero(mask).tolist())

    check(lambda masks: masks)
    caught(check, one_start)


@pytest.mark.usefixtures("quick_retry")
def test_the_first_provenance_is_taken_for_everybodys(ask):
    """Weights change in the middle of a call: each completion is of those that it names."""
    groups = [([i], [[i + 1, i + 2, i + 3]]) for i in range(4)]
    fault = Fault(after_results=6, version_after=4)
    with ToyServer(faults=[fault], max_slice=1, slice_seed=3) as server:
        results = ask(server.target, "score", groups)

    def check(version_of):
        for (prompt, (tokens,)), (scores,) in zip(groups, results, strict=True):
            truth = toy_model.row(prompt, version_of(scores)).logprobs_V[tokens[0]]
            assert scores.logprobs[0] == np.float32(truth)

    assert {scores.weight_version for scores in results.completions()} == {0, 4}
    check(lambda scores: scores.weight_version)
    check(lambda scores: scores.provenance.weight_version)
    caught(check, lambda scores: results.provenances[0].weight_version)


RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.01s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
"""gRPC's own retries, for every method."""


@pytest.mark.usefixtures("quick_retry")
def test_retries_of_the_channel_end_with_the_first_message(ask):
    config = {"methodConfig": [{"name": [{}], "retryPolicy": RETRY_POLICY}]}
    by_the_channel = {
        "max_attempts": 1,
        "channel_options": [
            ("grpc.service_config", json.dumps(config)),
            ("grpc.enable_retries", 1),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    }

    def check(client, after_results=5):
        with ToyServer(faults=[Fault(after_results=after_results)], max_slice=1) as server:
            ((scores,),) = ask(server.target, "score", [(PROMPT, [TOKENS])], client=client)
        assert_scores(scores, PROMPT, TOKENS)

    check({})
    check(by_the_channel, after_results=0)
    caught(check, by_the_channel)


def test_one_seed_for_a_call_correlates_its_prompts(ask):
    """Without a seed each prompt draws from its own: equal prompts draw other tokens."""

    def check(options):
        with ToyServer() as server:
            one, other = ask(
                server.target, "sample", [PROMPT] * 2, n=4, max_tokens=8, ignore_eos=True, **options
            )
        drawn = [[sample.token_ids.tolist() for sample in samples] for samples in (one, other)]
        assert drawn[0] != drawn[1]

    check({})
    caught(check, {"seed": 7})
