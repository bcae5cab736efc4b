"""Comparing results with the toy model."""

import numpy as np

from scoring_client import CompletionScores, CompletionTopK, Sample
from tests.client import toy_model


def assert_scores(
    scores: CompletionScores,
    prompt: list[int],
    tokens: list[int],
    *,
    rows: list[int] | None = None,
    version: int = 0,
    temperature: float = 1.0,
) -> None:
    """Check indices, tokens and log-probs of a whole completion."""
    wanted = list(range(len(tokens))) if rows is None else rows
    truth = [toy_model.row(prompt + tokens[:r], version, temperature) for r in wanted]
    assert scores.error is None
    assert scores.last
    assert scores.weight_version == version
    assert scores.prompt_length == len(prompt)
    assert scores.rows.tolist() == wanted
    assert scores.rows.dtype == np.int32
    assert scores.token_ids.tolist() == [tokens[r] for r in wanted]
    assert scores.logprobs.dtype == np.float32
    expected = [t.logprobs_V[tokens[r]] for t, r in zip(truth, wanted, strict=True)]
    np.testing.assert_array_equal(scores.logprobs, np.array(expected, dtype=np.float32))
    if isinstance(scores, CompletionTopK):
        k = scores.top_token_ids.shape[1]
        for index, row in enumerate(truth):
            ids, values = row.top(k)
            np.testing.assert_array_equal(scores.top_token_ids[index], ids)
            np.testing.assert_array_equal(scores.top_logprobs[index], values)
            np.testing.assert_allclose(scores.log_tail_masses[index], row.log_tail_mass(k), 1e-5)


def assert_sample(sample: Sample, prompt: list[int], max_tokens: int, version: int = 0) -> None:
    """Check the tokens and log-probs of a whole sample against a draw with its own seed."""
    assert sample.error is None
    assert sample.last
    assert sample.start == 0
    assert sample.seed is not None
    drawn = toy_model.draw_sample(prompt, sample.seed, sample.sample_index, max_tokens, version)
    assert sample.token_ids.tolist() == drawn
    truth = [
        toy_model.row(prompt + drawn[:i], version).logprobs_V[token]
        for i, token in enumerate(drawn)
    ]
    np.testing.assert_array_equal(sample.logprobs, np.array(truth, dtype=np.float32))
    assert sample.finish_reason == ("stop" if drawn[-1] == toy_model.EOS else "length")
