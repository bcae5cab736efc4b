"""What ``scoring-client compare`` compares: texts or token ids, with log-probs of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring_client.errors import InvalidRequestError

DEFAULT_TEXTS = (
    "The river rose in the night and carried the small bridge away, so the children of the upper "
    "village walked to school by the old road over the hill, which took them an hour longer.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    "In 1905 the town had 4,200 inhabitants; by 1930 there were 11,750, and the railway carried "
    "wheat, timber and coal to the coast three times a day.",
)


@dataclass(frozen=True, slots=True, eq=False)
class ComparedText:
    """A text's tokens."""

    token_ids: list[int]
    """[L], L at least 2."""
    logprobs: npt.NDArray[np.float64] | None = None
    """[L - 1], one's own of tokens 1, 2, …; NaN where there is none."""


def read_texts(path: Path) -> list[ComparedText]:
    """Return the texts of a file, one a line.

    A line is a JSON list of token ids, or an object with ``token_ids`` and, if there are any,
    ``logprobs`` of one's own: as many as tokens, entry i for token i, null where there is none.

    Raises:
        OSError: the file cannot be read.
        InvalidRequestError: a line is something else.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            try:
                found.append(_text(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InvalidRequestError(f"{path}, line {number}: {error}") from error
    if not found:
        raise InvalidRequestError(f"{path} has no line")
    if len({text.logprobs is None for text in found}) > 1:
        raise InvalidRequestError(f"{path}: give logprobs in every line, or in none")
    return found


def _text(line: Any) -> ComparedText:
    given = line if isinstance(line, dict) else {"token_ids": line}
    if unknown := given.keys() - {"token_ids", "logprobs"}:
        raise ValueError(f"unknown key {min(unknown)!r}: token_ids and logprobs are read")
    ids = given.get("token_ids")
    if not isinstance(ids, list) or any(type(token) is not int for token in ids) or len(ids) < 2:
        raise ValueError("expected at least two token ids, as [1, 2] or {'token_ids': [1, 2]}")
    logprobs = given.get("logprobs")
    return ComparedText(ids, None if logprobs is None else _own(logprobs, ids))


def _own(logprobs: Sequence[float | None], ids: list[int]) -> npt.NDArray[np.float64]:
    if len(logprobs) != len(ids):
        raise ValueError(
            f"{len(logprobs)} log-probs for {len(ids)} tokens: entry i describes token i, and "
            "entry 0 is null"
        )
    return np.array([np.nan if value is None else value for value in logprobs[1:]], np.float64)
