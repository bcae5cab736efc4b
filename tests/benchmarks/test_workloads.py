"""Workloads share nothing: no cache knows a prompt of one from another, or from a warm-up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine
from benchmarks.sides.service import Service
from benchmarks.workloads import WORKLOADS, Mixed, Sampling, Scoring, Work, build
from scoring_service.models import tiny_model_path

VOCAB = 49_152
FEW = 16
"""Tokens that begin two prompts alike by chance once in 10^75."""


def prompts(work: Work) -> list[list[int]]:
    if isinstance(work, Mixed):
        return prompts(work.scoring) + prompts(work.sampling)
    if isinstance(work, Sampling):
        return work.prompts
    return [prompt for prompt, _ in work.groups]


def test_no_two_prompts_begin_alike() -> None:
    seen: dict[tuple[int, ...], tuple[str, int]] = {}
    for name in WORKLOADS:
        for repetition in range(8):
            for prompt in prompts(build(name, "small", VOCAB, repetition)):
                if len(prompt) >= FEW:
                    begin = tuple(prompt[:FEW])
                    assert begin not in seen, (name, repetition, seen[begin])
                    seen[begin] = name, repetition
    assert len(seen) > 8 * len(WORKLOADS)


def test_a_repetition_is_the_same_in_every_process_and_as_long_as_the_others() -> None:
    first = build("skewed", "small", VOCAB, 1)
    assert first == build("skewed", "small", VOCAB, 1)
    other = build("skewed", "small", VOCAB, 2)
    assert isinstance(first, Scoring)
    assert isinstance(other, Scoring)
    assert [len(cs[0]) for _, cs in first.groups] == [len(cs[0]) for _, cs in other.groups]


CONFIG = SideConfig(str(tiny_model_path()), "float32", "float32")


@pytest.fixture(scope="module", params=[Engine, Service])
def side(request: pytest.FixtureRequest) -> Iterator[Engine | Service]:
    """What has a prefix cache and tells of it."""
    made = request.param(CONFIG)
    yield made
    made.close()


def test_sides_tell_what_their_cache_knew(side: Engine | Service) -> None:
    vocab = 64
    for name in ("grpo", "wide", "flat", "sample-1", "mixed"):
        for repetition in (0, 1):
            assert side.run(build(name, "small", vocab, repetition)).cached_tokens == 0, name
    assert side.run(build("grpo", "small", vocab, 1)).cached_tokens == 4 * 256
    assert side.run(build("sample-1", "small", vocab, 1)).cached_tokens == 64
    assert side.run(build("mixed", "small", vocab, 1)).cached_tokens == 16 * 64
