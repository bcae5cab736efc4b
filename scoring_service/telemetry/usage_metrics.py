"""What callers used, counted by who they are and by a tag of theirs."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

from scoring_service.telemetry.labels import OTHER, BoundedLabel
from scoring_service.types import Usage

_Series = tuple[list[tuple[str, Counter]], Counter]
"""Fields of usage with their series, and that of bytes sent."""

_MAX_PAIRS = 256
"""Identities with values of the tag that usage is counted by; each has seven series."""

_TOKENS = {
    "prompt_tokens": ("scoring_prompt_tokens", "Prompt tokens of answered calls."),
    "completion_tokens": ("scoring_scored_tokens", "Completion tokens scored."),
    "sampled_tokens": ("scoring_sampled_tokens", "Tokens drawn."),
    "computed_tokens": ("scoring_computed_tokens", "Positions that went through the body."),
    "cached_tokens": ("scoring_cached_tokens", "Prompt tokens found in a prefix cache."),
    "head_rows": ("scoring_head_rows", "Rows that went through the head."),
}
"""Fields of usage: their metrics and what these are."""


class UsageMetrics:
    """Counters with a bounded number of series, however many callers and tags there are.

    Args:
        registry: of the server's metrics.
        tag: of requests, by whose values usage is counted beside identities; None = none.
    """

    def __init__(self, registry: CollectorRegistry, tag: str | None) -> None:
        self._tag = tag
        self._identities = BoundedLabel()
        self._tags = BoundedLabel()
        self._series: dict[tuple[str, str], _Series] = {}
        """By identity and tag."""
        labels = ("identity", "tag")
        self._tokens = {
            field: Counter(name, text, labels, registry=registry)
            for field, (name, text) in _TOKENS.items()
        }
        self._reply_bytes = Counter(
            "scoring_reply_bytes", "Bytes of answers.", labels, registry=registry
        )

    def count(
        self, identity: str, tags: Iterable[tuple[str, str]], usage: Usage, sent: int
    ) -> None:
        """Adds a call's.

        Args:
            identity: of the caller.
            tags: of the request.
            usage: of the call.
            sent: bytes of its answer.
        """
        tokens, reply_bytes = self._of(self._identities.of(identity), self._value(tags))
        for name, series in tokens:
            series.inc(getattr(usage, name))
        reply_bytes.inc(sent)

    def _of(self, identity: str, tag: str) -> _Series:
        """Series of a pair. Beyond so many, an identity's further tags are counted as "other"."""
        found = self._series.get((identity, tag))
        if found is None:
            if len(self._series) >= _MAX_PAIRS and tag != OTHER:
                return self._of(identity, OTHER)
            tokens = [(name, metric.labels(identity, tag)) for name, metric in self._tokens.items()]
            found = self._series[identity, tag] = tokens, self._reply_bytes.labels(identity, tag)
        return found

    def _value(self, tags: Iterable[tuple[str, str]]) -> str:
        if self._tag is None:
            return ""
        return self._tags.of(dict(tags).get(self._tag, ""))
