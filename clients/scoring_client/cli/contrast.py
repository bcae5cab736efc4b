"""How much likelier one completion is than another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two completions of one prompt."""

    likelier: str
    """Text of the likelier one."""
    other: str
    """Text of the other."""
    nats: float
    """Difference of their log-probs, >= 0; its exponential is the ratio of their probabilities."""

    def sentence(self) -> str:
        """Return the comparison in words."""
        if self.nats == 0:
            return f"{self.likelier!r} is as likely as {self.other!r}"
        return (
            f"{self.likelier!r} is {times(self.nats)} as likely as {self.other!r} "
            f"({self.nats:.2f} nats)"
        )


def contrasts(texts: Sequence[str], logprobs: Sequence[float]) -> list[Contrast]:
    """Return the likeliest completion against each other one, the nearest first.

    Args:
        texts: The completions.
        logprobs: Log-prob (nats) of each as a whole.
    """
    order = sorted(range(len(texts)), key=lambda index: -logprobs[index])
    best = order[0]
    return [
        Contrast(texts[best], texts[other], logprobs[best] - logprobs[other]) for other in order[1:]
    ]


def times(nats: float) -> str:
    """Return the exponential of a difference as a number of times that people can read."""
    if nats == math.inf:
        return "infinitely many times"
    if nats > math.log(1e15):
        return f"10^{nats / math.log(10):.1f} times"
    ratio = math.exp(nats)
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.3g} times"
