"""The table of mismatch KL: its rows as they are measured, kept in JSON and told in Markdown."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.machine import commit, describe
from scoring_client.replay import mismatch_kl

Pair = tuple[torch.Tensor, torch.Tensor]
"""Log-probs of the same tokens by a trainer and a sampler."""

DIGITS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Row:
    """A sampler and a trainer, k estimators in nats a token."""

    sampler: str
    trainer: str
    tokens: int
    k1: float
    k2: float
    k3: float
    standard_error: float
    """Of the mean k3, over samples."""
    largest_k3: float
    without_replay: float | None
    """k3 of the same two, the trainer's log-probs untruncated."""

    def markdown(self) -> str:
        """A line of the table in docs/training.md."""
        exponent = exponent_of(self.k3)
        scale = 10.0**exponent
        found = f"({self.k3 / scale:.1f} ± {self.standard_error / scale:.1f}) · {power(exponent)}"
        without = "" if self.without_replay is None else scientific(self.without_replay)
        cells = [self.sampler, self.trainer, f"{self.tokens:,}", found, without]
        return "| " + " | ".join(cells).rstrip() + " |"


def exponent_of(value: float) -> int:
    """Of the number as rounded to two digits: 9.97 is 1.0 · 10."""
    return int(f"{value:.1e}".partition("e")[2])


def power(exponent: int) -> str:
    return "10" + str(exponent).translate(DIGITS)


def scientific(value: float) -> str:
    exponent = exponent_of(value)
    return f"{value / 10.0**exponent:.1f} · {power(exponent)}"


def measured(
    sampler: str, trainer: str, lengths: list[int], pair: Pair, without: Pair | None = None
) -> Row:
    """The row of two computations of the same tokens.

    Args:
        sampler: Its name in the table.
        trainer: The same.
        lengths: Tokens of each sample.
        pair: With replay.
        without: Without, if that was computed.
    """
    found = mismatch_kl(*pair)
    return Row(
        sampler,
        trainer,
        int(found.tokens),
        float(found.k1),
        float(found.k2),
        float(found.k3),
        standard_error(pair, lengths),
        float(found.max_k3.max()),
        None if without is None else float(mismatch_kl(*without).k3),
    )


def standard_error(pair: Pair, lengths: list[int]) -> float:
    """Of the mean k3, from the means of samples: tokens of one sample are not independent."""
    log_ratio = pair[0] - pair[1]
    k3 = torch.expm1(log_ratio) - log_ratio
    means = torch.stack([part.mean() for part in k3.split(lengths)])
    return float(means.std() / len(means) ** 0.5)


def write(path: Path, rows: list[Row], settings: dict[str, Any]) -> None:
    """Write the rows with what they were measured on."""
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {**describe(), "transformers": transformers.__version__},
        "settings": settings,
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> list[Row]:
    """What `write` wrote."""
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]
