"""What a token costs at its place in a sequence, against multiplications counted by hand."""

from __future__ import annotations

import math

import pytest

from scoring_service.engine.model.context_cost import context_cost

LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}

QUERIES, KEYS_AND_VALUES, OUTPUT = 576 * 576, 2 * 576 * 192, 576 * 576
FEED_FORWARD = 3 * 576 * 1536
OWN = QUERIES + KEYS_AND_VALUES + OUTPUT + FEED_FORWARD
"""Multiplications of a token with the weights of a layer."""
OF_A_POSITION = 9 * 64 + 9 * 64
"""With one key and one value, all heads of a layer."""


def test_a_token_costs_what_it_multiplies() -> None:
    cost = context_cost(LLAMA)
    assert cost.at(0) == 1
    for position in (1, 100, 8000):
        expected = (OWN + position * OF_A_POSITION) / OWN
        assert cost.at(position) == pytest.approx(expected, rel=1e-12)


def test_layers_with_a_window_cost_no_more_beyond_it() -> None:
    mixed = ["sliding_attention", "sliding_attention", "full_attention"] * 10
    config = {**LLAMA, "sliding_window": 512, "layer_types": mixed}
    expected = (3 * OWN + (8000 + 2 * 512) * OF_A_POSITION) / (3 * OWN)
    assert context_cost(config).at(8000) == pytest.approx(expected, rel=1e-12)
    within = (OWN + 300 * OF_A_POSITION) / OWN
    assert context_cost(config).at(300) == pytest.approx(within, rel=1e-12)


def test_a_window_that_the_config_does_not_use() -> None:
    config = {**LLAMA, "sliding_window": 512, "use_sliding_window": False}
    assert context_cost(config) == context_cost(LLAMA)
    everywhere = context_cost({**LLAMA, "model_type": "mistral", "sliding_window": 512})
    assert everywhere.at(8000) == everywhere.at(512) > everywhere.at(511)


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, {"model_type": "llama"}, {}])
def test_where_nobody_knows_it_is_the_same_everywhere(config: dict[str, str]) -> None:
    assert context_cost(config).at(10**6) == 1
    assert context_cost(config).doubling == math.inf
