"""The small pieces of what people see."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring_client.cli.colours import BANDS, style_of
from scoring_client.cli.contrast import contrasts, times
from scoring_client.cli.jsonable import jsonable
from scoring_client.cli.render import probability
from scoring_client.cli.visible import harmless, visible


@given(text=st.text())
def test_nothing_that_is_shown_steers_a_terminal(text):
    assert visible(text).isprintable()
    assert all(c.isprintable() or c in "\n\t" for c in harmless(text))


def test_blanks_can_be_seen():
    assert visible(" a\n\tb\x1b\x7f") == "·a↵⇥b␛\\u007f"
    assert harmless(" a\n\tb\x1b") == " a\n\tb␛"


@pytest.mark.parametrize(
    ("nats", "words"),
    [
        (0.1, "1.11 times"),
        (math.log(2), "2 times"),
        (math.log(12345.4), "12,345 times"),
        (100.0, "10^43.4 times"),
        (math.inf, "infinitely many times"),
    ],
)
def test_times(nats, words):
    assert times(nats) == words


def test_contrasts_begin_with_the_nearest():
    pairs = contrasts(["a", "b", "c"], [-5.0, -1.0, -2.5])
    assert [(pair.likelier, pair.other, pair.nats) for pair in pairs] == [
        ("b", "c", 1.5),
        ("b", "a", 4.0),
    ]
    assert pairs[0].sentence() == "'b' is 4.48 times as likely as 'c' (1.50 nats)"
    assert contrasts(["a", "b"], [-1.0, -1.0])[0].sentence() == "'a' is as likely as 'b'"
    assert contrasts(["a"], [-1.0]) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "100.00 %"), (math.log(0.5), "50.00 %"), (-20.0, "10^-8.7"), (-math.inf, "0")],
)
def test_probability(value, words):
    assert probability(value) == words


def test_colours_go_with_probabilities():
    styles = [style_of(math.log(p)) for p in (0.9, 0.3, 0.05, 0.005, 0.0005)]
    assert styles == [band.style for band in BANDS]
    assert style_of(-math.inf) == BANDS[-1].style


def test_jsonable():
    value = {
        "a": np.array([1.5, np.inf, -np.inf, np.nan], dtype=np.float32),
        "b": (np.int32(3), None, True, "x"),
    }
    assert jsonable(value) == {
        "a": [1.5, "Infinity", "-Infinity", "NaN"],
        "b": [3, None, True, "x"],
    }
