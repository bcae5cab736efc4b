"""A sample that another worker began goes on as if it had never stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scoring_service.engine.events import CallFinished, SampleSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Processing, SampleCall, SamplingTask
from tests.engine.driving import drive
from tests.engine.sampling import Sampled, task

HOT = Processing(temperature=0.9, top_k=40, top_p=0.95)
PROMPT = [(7 * i) % 2048 for i in range(150)]


def sampled(
    loaded: LoadedModel, tasks: list[SamplingTask]
) -> tuple[dict[int, Sampled], CallFinished]:
    # A slice for every token: what had been sent before any cut can be told.
    call = SampleCall(1, tuple(tasks), top_logprobs=2, return_text=True, slice_bytes=1)
    items: dict[int, Sampled] = {}
    for event in drive(loaded, call):
        if isinstance(event, SampleSlice):
            items.setdefault(event.sample_index, Sampled([])).slices.append(event)
    assert isinstance(event, CallFinished)
    return items, event


def sent_before(cut: int, whole: Sampled) -> str:
    """The text that came with the first tokens of a sample."""
    assert [piece.start for piece in whole.slices] == list(range(len(whole.slices)))
    return "".join(piece.text for piece in whole.slices[:cut])


@pytest.mark.parametrize("stop", [{}, {"stop": ("e t", "\n\n")}], ids=["length", "stop text"])
def test_it_draws_the_same_tokens_with_the_same_numbers(
    tiny: LoadedModel, stop: dict[str, Any]
) -> None:
    whole = task(
        PROMPT, n=3, seed=11, max_tokens=30, processing=HOT, ignore_eos=True, first_sample_index=4,
        **stop,
    )  # fmt: skip
    expected, _ = sampled(tiny, [whole])
    assert len({tuple(item.token_ids) for item in expected.values()}) == 3
    cuts = {index: 1 + 5 * place for place, index in enumerate(expected)}
    cuts = {i: min(cut, len(expected[i].token_ids) - 1) for i, cut in cuts.items()}
    drawn = tuple(
        (i, np.array(expected[i].token_ids[:cut], dtype=np.int32)) for i, cut in cuts.items()
    )
    resumed, finished = sampled(tiny, [replace(whole, drawn=drawn)])
    assert resumed.keys() == expected.keys()
    for index, item in resumed.items():
        cut, before = cuts[index], expected[index]
        assert item.slices[0].start == cut
        assert item.token_ids == before.token_ids[cut:]
        assert item.logprobs.tobytes() == before.logprobs[cut:].tobytes()
        assert item.processed_logprobs.tobytes() == before.processed_logprobs[cut:].tobytes()
        assert item.top_token_ids.tolist() == before.top_token_ids[cut:].tolist()
        assert item.finish_reason == before.finish_reason
        assert item.matched_stop == before.matched_stop
        assert sent_before(cut, before) + item.text == before.text
    assert finished.usage.sampled_tokens == sum(len(item.token_ids) for item in resumed.values())


def test_text_that_was_held_back_comes_with_the_rest(tiny: LoadedModel) -> None:
    """Cut at every token, what was sent and what follows make the same text."""
    whole = task(PROMPT, seed=3, max_tokens=12, processing=HOT, ignore_eos=True, stop=("zzzzzz",))
    (expected,) = sampled(tiny, [whole])[0].values()
    held_back = 0
    for cut in range(1, 12):
        ids = np.array(expected.token_ids[:cut], dtype=np.int32)
        (rest,) = sampled(tiny, [replace(whole, drawn=((0, ids),))])[0].values()
        assert sent_before(cut, expected) + rest.text == expected.text
        # The shorter sample flushes at its end what is held back here.
        (flushed,) = sampled(tiny, [replace(whole, max_tokens=cut)])[0].values()
        held_back += len(flushed.text) - len(sent_before(cut, expected))
    assert held_back > 0
