"""What scoring returns, against the toy model."""

import threading

import numpy as np
import pytest

from scoring_client import Completion, Expect, Progress, PromptGroup
from scoring_client.proto import processing_pb2, tensor_pb2
from tests.client import toy_model
from tests.client.toy_server import ToyServer
from tests.client.truth import assert_scores

PROMPT, TOKENS = [1, 2, 3], [10, 20, 30, 40, 50]


@pytest.fixture(scope="module")
def server():
    with ToyServer(max_slice=2) as running:
        yield running


def truth(row, temperature=1.0):
    return toy_model.row(PROMPT + TOKENS[:row], temperature=temperature)


@pytest.mark.parametrize("numbers", [False, True])
def test_every_statistic(ask, server, numbers):
    server.numbers = numbers
    ((scores,),) = ask(
        server.target,
        "score",
        [(PROMPT, [TOKENS])],
        temperature=2.0,
        top_k=40,
        processed_logprobs=True,
        entropy=True,
        rank=True,
        logsumexp=True,
        log_kept_mass=True,
        tokens=True,
        next_token=True,
    )
    assert_scores(scores, PROMPT, TOKENS, temperature=2.0)
    rows = [truth(row, 2.0) for row in range(6)]
    assert scores.tokens == tuple(toy_model.token_text(t) for t in TOKENS)
    np.testing.assert_allclose(scores.entropies, [r.entropy() for r in rows[:5]], 1e-6)
    np.testing.assert_allclose(scores.logsumexps, [r.logsumexp() for r in rows[:5]], 1e-6)
    np.testing.assert_allclose(
        scores.log_kept_masses, [r.log_kept_mass(40) for r in rows[:5]], 1e-6
    )
    assert scores.ranks.tolist() == [r.rank(t) for r, t in zip(rows, TOKENS, strict=False)]
    processed = [
        r.logprobs_V[t] - r.log_kept_mass(40) if r.support(40)[t] else -np.inf
        for r, t in zip(rows, TOKENS, strict=False)
    ]
    assert np.isneginf(processed).any()
    np.testing.assert_allclose(scores.processed_logprobs, processed, 1e-6)
    assert scores.next_token.row == 5
    assert scores.next_token.entropy == pytest.approx(rows[5].entropy(), 1e-6)
    assert scores.next_token.logsumexp == pytest.approx(rows[5].logsumexp(), 1e-6)
    assert scores.next_token.log_kept_mass == pytest.approx(rows[5].log_kept_mass(40), 1e-6)
    assert scores.next_token.candidate_logprobs is None


def test_what_was_not_asked_is_none(ask, server):
    ((scores,),) = ask(server.target, "score", [(PROMPT, [TOKENS])])
    optional = set(scores.ROW_FIELDS) - {"rows", "token_ids", "logprobs"}
    for name in (*optional, "next_token", "error"):
        assert getattr(scores, name) is None, name


def test_topk_and_its_next_token(ask, server):
    ((topk,),) = ask(
        server.target, "topk_logprobs", [(PROMPT, [TOKENS])], 6, next_token=True, tokens=True
    )
    assert_scores(topk, PROMPT, TOKENS)
    assert topk.top_token_ids.dtype == np.int32
    assert topk.top_logprobs.dtype == np.float32
    assert topk.support_sizes.tolist() == [toy_model.VOCAB_SIZE] * 5
    assert [len(tokens) for tokens in topk.top_tokens] == [6] * 5
    ids, values = truth(5).top(6)
    np.testing.assert_array_equal(topk.next_token.top_token_ids, ids)
    np.testing.assert_array_equal(topk.next_token.top_logprobs, values)
    assert topk.next_token.log_tail_mass == pytest.approx(truth(5).log_tail_mass(6), 1e-5)
    assert topk.next_token.support_size == toy_model.VOCAB_SIZE
    assert topk.next_token.top_tokens == tuple(toy_model.token_text(int(i)) for i in ids)
    assert topk.top_tokens[0][0] == toy_model.token_text(int(topk.top_token_ids[0, 0]))


def test_the_whole_vocabulary(ask, server):
    ((topk,),) = ask(server.target, "topk_logprobs", [(PROMPT, [TOKENS])], toy_model.VOCAB_SIZE)
    assert np.isneginf(topk.log_tail_masses).all()
    np.testing.assert_allclose(np.exp(topk.top_logprobs).sum(axis=1), 1, 1e-5)


@pytest.mark.parametrize("next_token", [False, True])
@pytest.mark.parametrize("shape", ["each row", "all rows", "flat"])
def test_candidates(ask, server, shape, next_token):
    rows = 5 + next_token
    each = np.arange(rows * 3).reshape(rows, 3)
    each[1, 2] = -1
    given = {"each row": each, "all rows": each[1:2], "flat": each[1]}[shape]
    completion = Completion(TOKENS, candidates=given)
    ((scores,),) = ask(server.target, "score", [(PROMPT, [completion])], next_token=next_token)
    expected = np.broadcast_to(given, (rows, 3))
    assert scores.candidate_logprobs.shape == (5, 3)
    for row in range(rows):
        answered = (
            scores.candidate_logprobs[row] if row < 5 else scores.next_token.candidate_logprobs
        )
        for column in range(3):
            token = expected[row, column]
            if token == -1:
                assert np.isnan(answered[column])
            else:
                assert answered[column] == truth(row).logprobs_V[token]


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 2), (3, 1)],
        np.array([True, True, False, True, False]),
        [True, True, False, True, False],
        [1, 1, 0, 1, 0],
        np.array([[0, 2], [3, 1]]),
    ],
    ids=["spans", "mask", "list of bools", "zeros and ones", "array of spans"],
)
def test_masked_turns(ask, server, rows):
    completion = Completion(TOKENS, rows=rows, candidates=[[5], [6], [7]])
    ((scores,),) = ask(server.target, "score", [(PROMPT, [completion])], entropy=True)
    assert_scores(scores, PROMPT, TOKENS, rows=[0, 1, 3])
    expected = [truth(r).logprobs_V[c] for r, c in ((0, 5), (1, 6), (3, 7))]
    assert scores.candidate_logprobs[:, 0].tolist() == expected
    sent = server.requests[-1].groups[0].completions[0].rows
    assert [(span.start, span.length) for span in sent] == [(0, 2), (3, 1)]


@pytest.mark.parametrize("rows", [[], [False] * 5, np.zeros(5, bool)])
@pytest.mark.parametrize("method", ["score", "topk_logprobs", "score_slices"])
def test_no_row_wanted_is_no_row_not_all(ask, server, method, rows):
    arguments = [2] if method == "topk_logprobs" else []
    answer = ask(server.target, method, [(PROMPT, [Completion(TOKENS, rows=rows)])], *arguments)
    scores = answer[0] if method == "score_slices" else answer[0][0]
    assert scores.rows.tolist() == []
    assert scores.logprobs.shape == (0,)
    assert scores.prompt_length == 3
    assert scores.error is None
    assert [s.length for s in server.requests[-1].groups[0].completions[0].rows] == [1]


def test_the_next_token_alone(ask, server):
    completion = Completion(TOKENS, rows=[], candidates=[4, 5])
    ((topk,),) = ask(
        server.target, "topk_logprobs", [(PROMPT, [completion])], 3, next_token=True, entropy=True
    )
    assert topk.top_logprobs.shape == (0, 3)
    assert topk.candidate_logprobs.shape == (0, 2)
    assert topk.next_token.row == 5
    np.testing.assert_array_equal(topk.next_token.top_logprobs, truth(5).top(3)[1])
    assert topk.next_token.candidate_logprobs.tolist() == truth(5).logprobs_V[[4, 5]].tolist()


def test_text(ask, server):
    results = ask(
        server.target,
        "score",
        [("ab", ["c", Completion("def", rows=[(1, 2)])])],
        next_token=True,
        tokens=True,
    )
    prompt = [toy_model.BOS, 97, 98]
    assert_scores(results[0][0], prompt, [99])
    assert_scores(results[0][1], prompt, [100, 101, 102], rows=[1, 2])
    assert results[0][1].tokens == ("e", "f")
    assert results[0][1].next_token.row == 3
    assert results[0][0].prompt_length == 3


def test_special_tokens_can_be_left_out(ask, server):
    group = PromptGroup("ab", ["c"], add_special_tokens=False)
    ((scores,),) = ask(server.target, "score", [group])
    assert_scores(scores, [97, 98], [99])


def test_groups_with_their_own_processing(ask, server):
    groups = [
        PromptGroup(PROMPT, [TOKENS], temperature=2.0),
        PromptGroup(PROMPT, [TOKENS]),
        PromptGroup(PROMPT, [TOKENS], temperature=3.0, top_k=5),
    ]
    results = ask(server.target, "score", groups)
    for scores, temperature in zip(results.completions(), (2.0, 1.0, 3.0), strict=True):
        assert_scores(scores, PROMPT, TOKENS, temperature=temperature)
        assert scores.processing.temperature == temperature
    assert results[0][0].processing.sources.temperature == "request"
    assert results[1][0].processing.sources.temperature == "neutral"
    assert results[2][0].processing.top_k == 5
    assert len(results.processing) == 3


def test_the_request_says_what_was_asked(ask, server):
    ask(
        server.target,
        "topk_logprobs",
        [(PROMPT, [TOKENS])],
        7,
        token_id_limit=200,
        top_p=0.5,
        min_p=0.25,
        keep_realised=True,
        defaults="model",
        token_ids=True,
        expect=Expect(min_weight_version=3, weights_digest="ab", deterministic=True),
        model="toy",
    )
    request = server.requests[-1]
    assert (request.k, request.token_id_limit, request.model) == (7, 200, "toy")
    assert request.encoding == tensor_pb2.ENCODING_BYTES
    assert request.outputs.token_ids
    assert not request.outputs.entropy
    processing = request.processing
    assert (processing.top_p, processing.min_p, processing.keep_realised) == (0.5, 0.25, True)
    assert processing.defaults == processing_pb2.PROCESSING_DEFAULTS_MODEL
    assert not processing.HasField("temperature")
    assert not processing.HasField("top_k")
    assert request.expect.min_weight_version == 3
    assert request.expect.deterministic
    assert not request.expect.HasField("weight_version")
    assert len(request.context.request_id) == 32


def test_a_plain_call_sets_nothing_that_was_not_asked(ask, server):
    ask(server.target, "score", [(PROMPT, [TOKENS])])
    request = server.requests[-1]
    assert not request.HasField("processing")
    assert not request.HasField("expect")
    assert not request.groups[0].HasField("processing")
    assert request.outputs.ByteSize() == 0


def test_results_say_what_computed_them(ask, server):
    results = ask(server.target, "score", [(PROMPT, [TOKENS])])
    assert results.provenance.model == "toy"
    assert results[0][0].provenance == results.provenance
    assert results.usage.completion_tokens == 10
    assert len(results) == 1
    assert len(results[0:1]) == 1


def test_results_are_printed_in_a_line(ask, server):
    results = ask(server.target, "score", [([1, 2], [[3, 4], [999]])], on_error="return")
    assert repr(results) == "<ScoreResults: 1 groups, 2 completions, 2 rows, 1 failed>"
    assert [len(scores.rows) for scores in results.completions()] == [2, 0]
    assert len(results.completions()) == 2
    assert "logprobs=array" in repr(results[0][0])
    assert "provenance" not in repr(results[0][0])
    samples = ask(server.target, "sample", [[1], [2]], n=2, max_tokens=3, ignore_eos=True)
    assert repr(samples) == "<SampleResults: 2 prompts, 4 samples, 12 tokens, 0 failed>"
    assert samples.samples() == (*samples[0], *samples[1])


def test_progress_is_reported(ask):
    seen = []
    with ToyServer(max_slice=1) as server:
        ask(
            server.target, "score", [(PROMPT, [TOKENS, [1]]), ([5], [[6]])], on_progress=seen.append
        )
    assert seen[0] == Progress(items_done=0, items_total=3, tokens_ahead=77)
    assert [progress.items_done for progress in seen[1:]] == [1, 2, 3]


def test_slices_come_before_the_end(runner):
    from scoring_client import AsyncScoringClient, ScoringClient

    # The server holds the rest back until the first slice was seen.
    for kind in ("sync", "async"):
        gate = threading.Event()

        def tamper(stream, gate=gate):
            for message in stream:
                yield message
                if message.results and not gate.wait(timeout=10):
                    raise TimeoutError("the client waits for the end")

        with ToyServer(max_slice=1, tamper=tamper) as server:
            if kind == "sync":
                with ScoringClient(server.target) as client:
                    slices = client.score_slices([(PROMPT, [TOKENS])])
                    assert next(slices).rows.tolist() == [0]
                    gate.set()
                    assert [part.rows.tolist() for part in slices] == [[1], [2], [3], [4]]
                continue

            async def main(server=server, gate=gate):
                async with AsyncScoringClient(server.target) as client:
                    slices = client.score_slices([(PROMPT, [TOKENS])])
                    assert (await anext(slices)).rows.tolist() == [0]
                    gate.set()
                    assert [part.rows.tolist() async for part in slices] == [[1], [2], [3], [4]]

            runner.run(main())


@pytest.mark.parametrize("given", [0.7, 0.95, 0.05, 1e-4, 1 / 3, 0.3000000119])
def test_what_was_applied_reads_as_it_was_given(ask, server, given):
    """The wire carries 32 bits; the decimal shown is the shortest that is the same number there."""
    applied = float(np.float32(given))
    options = {"temperature": given, "top_p": given, "min_p": given}
    ((scores,),) = ask(server.target, "score", [(PROMPT, [TOKENS])], **options)
    shown = scores.processing
    for value in (shown.temperature, shown.top_p, shown.min_p):
        assert float(np.float32(value)) == applied
        assert len(repr(value)) <= len(repr(given))
    group = PromptGroup(PROMPT, [TOKENS], temperature=shown.temperature, top_p=shown.top_p)
    ((again,),) = ask(server.target, "score", [group])
    assert again.processing.temperature == shown.temperature
    asked = server.requests[-1].groups[0].processing
    assert (asked.temperature, asked.top_p) == (applied, applied)
