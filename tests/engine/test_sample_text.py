"""The text of a sample, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.outputs.draws import DrawRow
from scoring_service.engine.outputs.sample_slices import DrawnToken
from scoring_service.engine.packed.steps import head_jobs
from scoring_service.engine.plain import sampling
from scoring_service.types import Processing
from tests.engine.sampling import Sampled, sample

PROMPT = [40, 41, 42]


@pytest.fixture
def says(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Token ids that the model draws one after another; fill it."""
    script: list[int] = []

    def next_rows(_logits: object, rows: Sequence[DrawRow], *_: object) -> list[DrawnToken]:
        return [DrawnToken(script[row.position - len(PROMPT)], -1.0, -1.0, [], []) for row in rows]

    monkeypatch.setattr(sampling, "draw_rows", next_rows)
    monkeypatch.setattr(head_jobs, "begin_draw", lambda *drawn: partial(next_rows, *drawn))
    return script


def check_slices(drawn: Sampled) -> None:
    assert [s.last for s in drawn.slices] == [False] * (len(drawn.slices) - 1) + [True]
    assert drawn.slices[0].start == 0
    for left, right in pairwise(drawn.slices):
        assert right.start == left.start + len(left.token_ids)
        assert left.finish_reason is left.matched_stop is None


@pytest.mark.parametrize("slice_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        " plain words, with a leading space",
        "naïve café — 中文字 ✓",
        "👩‍👩‍👧 and 😀😀😀😀",
        "tabs\tand\nlines\n\n    indented",
        "a real \ufffd replacement character",
    ],
)
def test_slices_join_to_the_decoded_tokens(
    tiny: LoadedModel, says: list[int], text: str, slice_bytes: int
) -> None:
    assert tiny.codec is not None
    says.extend(tiny.codec.encode(text, add_special_tokens=False))
    drawn = sample(tiny, PROMPT, max_tokens=len(says), return_text=True, slice_bytes=slice_bytes)[
        0, 0
    ]
    check_slices(drawn)
    assert drawn.token_ids == says
    assert drawn.text == text
    if slice_bytes == 1:
        assert len(drawn.slices) == len(says)
        assert all("\ufffd" not in s.text for s in drawn.slices) or "\ufffd" in text


def test_a_character_that_never_completes(tiny: LoadedModel, says: list[int]) -> None:
    """The end of a sample gives what there is, as decoding does."""
    assert tiny.codec is not None
    says.extend(tiny.codec.encode("ok 😀", add_special_tokens=False)[:-1])
    drawn = sample(tiny, PROMPT, max_tokens=len(says), return_text=True)[0, 0]
    assert drawn.text == tiny.codec.decode(says) == "ok \ufffd"


def test_special_tokens_are_no_text(tiny: LoadedModel, says: list[int]) -> None:
    assert tiny.codec is not None
    words = tiny.codec.encode(" so it goes", add_special_tokens=False)
    says.extend([*words, 0, *words])
    drawn = sample(tiny, PROMPT, max_tokens=len(says), return_text=True, ignore_eos=True)[0, 0]
    assert drawn.text == " so it goes so it goes"


def test_text_only_when_asked(tiny: LoadedModel) -> None:
    drawn = sample(tiny, PROMPT, max_tokens=3, ignore_eos=True)[0, 0]
    assert drawn.text == ""


def test_slices_of_real_samples(tiny: LoadedModel) -> None:
    """The same tokens, log-probs, lists and text, however they are cut."""
    settings = {
        "n": 2,
        "seed": 4,
        "max_tokens": 30,
        "ignore_eos": True,
        "processing": Processing(top_k=20),
        "top_logprobs": 3,
        "return_text": True,
    }
    whole = sample(tiny, PROMPT, **settings)
    small = sample(tiny, PROMPT, slice_bytes=100, **settings)
    assert tiny.codec is not None
    for key, drawn in small.items.items():
        check_slices(drawn)
        assert len(drawn.slices) >= 10
        assert all(len(s.token_ids) <= 3 for s in drawn.slices)
        assert drawn.bits == whole[key].bits
        assert (drawn.top_token_ids == whole[key].top_token_ids).all()
        assert drawn.top_logprobs.tobytes() == whole[key].top_logprobs.tobytes()
        assert drawn.text == whole[key].text == tiny.codec.decode(drawn.token_ids)
