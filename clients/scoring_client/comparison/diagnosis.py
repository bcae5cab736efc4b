"""Why log-probs are not those of a model: found by trying what people get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from scoring_client.comparison.agreement import Distance, Logprobs, distance

ByTemperature = Callable[[float], npt.NDArray[np.float64]]

MIN_TOKENS = 8
"""With fewer, something fits by chance."""
TEMPERATURES = np.geomspace(0.1, 10.0, 25)
FITTED_ROWS = 64
"""Rows that a temperature is looked for on; all are used to judge it."""


class Model(Protocol):
    """What is asked of the model that the log-probs should be of."""

    def by_temperature(self, token_ids: Sequence[int]) -> ByTemperature:
        """Return a function from temperatures to what it says of tokens 1, 2, …, [L - 1]."""
        ...


def explain(
    found: Logprobs,
    texts: Sequence[Sequence[int]],
    model: Model,
    yardstick: Distance,
    bos_token_id: int | None,
) -> str | None:
    """Return the mistake that makes the model's log-probs those that were found, if one does.

    Args:
        found: An array a text, [L - 1].
        texts: Token ids of each, [L].
        model: What the log-probs should be of.
        yardstick: How far rounding alone takes them.
        bos_token_id: The tokenizer's beginning-of-sequence token, where it has one.
    """
    if sum(len(values) for values in found) < MIN_TOKENS:
        return None
    candidates = [
        *_shifts(found, texts, model),
        *_special_tokens(found, texts, model, bos_token_id),
    ]
    fitting = [
        (apart.mean, what)
        for what, apart in candidates
        if apart.tokens >= MIN_TOKENS and apart.is_within(yardstick)
    ]
    if fitting:
        return min(fitting)[1]
    return _temperature(found, texts, model, yardstick)


def _shifts(
    found: Logprobs, texts: Sequence[Sequence[int]], model: Model
) -> Iterator[tuple[str, Distance]]:
    right = _said(model, texts)
    yield (
        "shifted by one position: entry i holds the log-prob of token i + 1, not of token i",
        distance([values[:-1] for values in found], [values[1:] for values in right]),
    )
    yield (
        "shifted by one position: entry i holds the log-prob of token i - 1, not of token i",
        distance([values[1:] for values in found], [values[:-1] for values in right]),
    )


def _special_tokens(
    found: Logprobs,
    texts: Sequence[Sequence[int]],
    model: Model,
    bos: int | None,
) -> Iterator[tuple[str, Distance]]:
    if bos is None:
        return
    begun = all(ids[0] == bos for ids in texts)
    # What stands before a text moves every row of it; entry 0 of the longer one is the text's own
    # first token.
    more = [values[1:] for values in _said(model, [[bos, *ids] for ids in texts])]
    name = f"beginning-of-sequence token ({bos})"
    if begun:
        yield f"BOS doubled: computed with the {name} twice", distance(found, more)
        less = _said(model, [ids[1:] for ids in texts])
        yield (
            f"BOS missing: computed without the {name} that the texts begin with",
            distance([values[1:] for values in found], less),
        )
    else:
        yield (
            f"BOS added: computed after a {name} that the texts do not begin with",
            distance(found, more),
        )


def _temperature(
    found: Logprobs, texts: Sequence[Sequence[int]], model: Model, yardstick: Distance
) -> str | None:
    """Look for the temperature on a few rows, coarsely and then finely, and judge it on all."""
    few: list[tuple[npt.NDArray[np.float64], ByTemperature]] = []
    rows = 0
    for values, ids in zip(found, texts, strict=True):
        if rows >= FITTED_ROWS:
            break
        taken = min(len(values), FITTED_ROWS - rows)
        few.append((values[:taken], model.by_temperature(ids[: taken + 1])))
        rows += taken

    def apart(temperature: float) -> float:
        return distance([values for values, _ in few], [said(temperature) for _, said in few]).mean

    best, step = 1.0, float(TEMPERATURES[1] / TEMPERATURES[0])
    grid = TEMPERATURES
    while step > 1.0001:
        best = float(min(grid, key=apart))
        grid, step = np.geomspace(best / step, best * step, 9), step**0.25
    whole = distance(found, _said(model, texts, best))
    # Logits are divided by the temperature, and so are their errors.
    if not whole.is_within(yardstick.scaled(max(1.0, 1.0 / best))):
        return None
    return f"another temperature: computed at about {best:.2g}, not at 1"


def _said(model: Model, texts: Sequence[Sequence[int]], temperature: float = 1.0) -> Logprobs:
    return [model.by_temperature(ids)(temperature) for ids in texts]
