"""What a model would have written in the place of a text's tokens. L tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scoring_client.calls.batches import batches
from scoring_client.client import ScoringClient
from scoring_client.values.arrays import Float32Array, Int32Array
from scoring_client.values.inputs import Completion, PromptGroup, SamplePrompt
from scoring_client.values.samples import Sample

_CALL_TOKENS = 1 << 20
"""Of the prompts of one call: 8 MiB as a list, 3 MB on the wire."""


def redraw_tokens(
    client: ScoringClient,
    token_ids: Sequence[int],
    n: int,
    *,
    temperature: float = 1.0,
    seed: int | None = None,
) -> tuple[Int32Array, Float32Array]:
    """Return n draws in the place of each token but the first, and the model's log-probs of them.

    Everything before a position is a prompt of its own, so that L**2 / 2 tokens are sent, in calls
    of a million at most: 8 million of a text of 4,000, 500 million of one of 32,000.

    Args:
        client: Of the server.
        token_ids: The whole text; in one of a single token nothing is drawn.
        n: Draws a position.
        temperature: Of the draws; the log-probs are at temperature 1.
        seed: Of all positions. Equal seeds are no harm here: random numbers depend on the position.

    Returns:
        Ids [L - 1, n] and log-probs [L - 1, n]: row i stands for token i + 1.

    Raises:
        ScoringError: see ``scoring_client.errors``.
    """
    if len(token_ids) < 2:
        return np.empty((0, n), dtype=np.int32), np.empty((0, n), dtype=np.float32)
    drawn: list[tuple[Sample, ...]] = []
    for ends in batches(((end, end) for end in range(1, len(token_ids))), _CALL_TOKENS):
        prompts = [SamplePrompt(token_ids[:end], n=n, seed=seed) for end in ends]
        drawn += client.sample(prompts, max_tokens=1, temperature=temperature, ignore_eos=True)
    ids = np.array([[sample.token_ids[0] for sample in row] for row in drawn], dtype=np.int32)
    asked = PromptGroup(token_ids[:1], [Completion(token_ids[1:], candidates=ids)])
    logprobs = client.score([asked])[0][0].candidate_logprobs
    return ids, np.asarray(logprobs)
