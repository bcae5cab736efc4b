"""Colours for log-probs: green is likely, red is not."""

import math
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Band:
    """A range of probabilities with one colour."""

    least: float
    """Least probability in it."""
    label: str
    """What the legend says."""
    style: Style
    """How its tokens look."""


BANDS = (
    Band(0.5, "≥ 50 %", Style(color="black", bgcolor="#5fb35f")),
    Band(0.1, "≥ 10 %", Style(color="black", bgcolor="#a8d08d")),
    Band(0.01, "≥ 1 %", Style(color="black", bgcolor="#f5e08a")),
    Band(0.001, "≥ 0.1 %", Style(color="black", bgcolor="#f0a35e")),
    Band(0.0, "less", Style(color="white", bgcolor="#b83227")),
)


def style_of(logprob: float) -> Style:
    """Return the style of a token with this log-prob (nats)."""
    probability = math.exp(min(logprob, 0.0))
    return next(band.style for band in BANDS if probability >= band.least)


def legend() -> Text:
    """Return a line that explains the colours."""
    line = Text("probability ")
    for band in BANDS:
        line.append(f" {band.label} ", band.style)
    return line
