"""What ends a sample: stop ids, end of sequence, length, and texts that cross token boundaries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.text.stops import StopChecker
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.types import Processing
from tests.engine import plain
from tests.engine.sampling import Sampled, sample, task
from tests.kernels import oracle

PROMPT = [40, 41, 42]


@pytest.fixture(scope="module")
def greedy(tiny: LoadedModel) -> Sampled:
    """What the model says when nothing stops it."""
    return sample(tiny, PROMPT, max_tokens=40, ignore_eos=True, return_text=True)[0, 0]


def codec_of(loaded: LoadedModel) -> TextCodec:
    assert loaded.codec is not None
    return loaded.codec


@pytest.mark.parametrize("place", [0, 3, 39])
def test_a_stop_id_ends_the_sample(tiny: LoadedModel, greedy: Sampled, place: int) -> None:
    """It is among the tokens and not in the text."""
    stop = greedy.token_ids[place]
    first = greedy.token_ids.index(stop)
    drawn = sample(
        tiny,
        PROMPT,
        max_tokens=40,
        ignore_eos=True,
        stop_token_ids=frozenset({stop, 2047}),
        return_text=True,
    )[0, 0]
    assert drawn.token_ids == greedy.token_ids[: first + 1]
    assert (drawn.finish_reason, drawn.matched_stop) == ("stop", stop)
    assert drawn.text == codec_of(tiny).decode(greedy.token_ids[:first])


def test_end_of_sequence(tiny: LoadedModel, greedy: Sampled) -> None:
    """Always an end, unless `ignore_eos`; a stop id that is one stays an end even then."""
    eos = greedy.token_ids[5]
    first = greedy.token_ids.index(eos)
    loaded = replace(tiny, info=replace(tiny.info, eos_token_ids=(eos,)))
    ended = sample(loaded, PROMPT, max_tokens=40)[0, 0]
    assert ended.token_ids == greedy.token_ids[: first + 1]
    assert (ended.finish_reason, ended.matched_stop) == ("stop", eos)
    ignored = sample(loaded, PROMPT, max_tokens=40, ignore_eos=True)[0, 0]
    assert ignored.token_ids == greedy.token_ids
    assert (ignored.finish_reason, ignored.matched_stop) == ("length", None)
    named = sample(loaded, PROMPT, max_tokens=40, ignore_eos=True, stop_token_ids=frozenset({eos}))[
        0, 0
    ]
    assert named.token_ids == ended.token_ids


@pytest.mark.parametrize("max_tokens", [1, 2, 40])
def test_max_tokens(tiny: LoadedModel, greedy: Sampled, max_tokens: int) -> None:
    drawn = sample(tiny, PROMPT, max_tokens=max_tokens, ignore_eos=True)[0, 0]
    assert drawn.token_ids == greedy.token_ids[:max_tokens]
    assert (drawn.finish_reason, drawn.matched_stop) == ("length", None)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_min_tokens_bans_stops(
    tiny: LoadedModel, plain_tiny: Any, greedy: Sampled, temperature: float
) -> None:
    """Processed log-probs are of what was left to draw, log-probs of the whole vocabulary."""
    stops = sorted({*greedy.token_ids[:3], 0})
    setting = Processing(temperature=temperature, top_k=1 if temperature else 0)
    drawn = sample(
        tiny,
        PROMPT,
        max_tokens=12,
        min_tokens=6,
        stop_token_ids=frozenset(stops),
        processing=setting,
    )[0, 0]
    assert len(drawn.token_ids) >= 6
    assert not set(drawn.token_ids[:6]) & set(stops)
    logits = plain.row_logits(plain_tiny, PROMPT, drawn.token_ids).astype(np.float32)
    for n in range(6):
        x_V = oracle.scaled(logits[n], temperature or 1.0)
        token_id = drawn.token_ids[n]
        assert drawn.logprobs[n] == pytest.approx(oracle.logprobs(x_V)[token_id], abs=1e-4)
        x_V[stops] = -np.inf
        assert token_id == x_V.argmax()
        assert drawn.processed_logprobs[n] == pytest.approx(0, abs=1e-6)


def test_processed_logprobs_under_a_ban(tiny: LoadedModel, plain_tiny: Any) -> None:
    """Without truncation they are a softmax over all tokens that are not banned."""
    banned = frozenset(range(1024))
    setting = Processing(temperature=1.2)
    drawn = sample(
        tiny,
        PROMPT,
        max_tokens=8,
        min_tokens=8,
        stop_token_ids=banned,
        processing=setting,
        top_logprobs=4,
    )[0, 0]
    logits = plain.row_logits(plain_tiny, PROMPT, drawn.token_ids).astype(np.float32)
    for n, token_id in enumerate(drawn.token_ids):
        x_V = oracle.scaled(logits[n], setting.temperature)
        assert drawn.top_logprobs[n][0] == pytest.approx(oracle.logprobs(x_V).max(), abs=1e-4)
        x_V[sorted(banned)] = -np.inf
        expected = oracle.logprobs(x_V)[token_id]
        assert drawn.processed_logprobs[n] == pytest.approx(expected, abs=1e-4)
        assert drawn.processed_logprobs[n] > drawn.logprobs[n] + 1e-3


def test_a_ban_on_everything_is_the_callers_fault(tiny: LoadedModel) -> None:
    answer = sample(tiny, PROMPT, max_tokens=4, min_tokens=2, stop_token_ids=frozenset(range(2048)))
    (failure,) = answer.failures
    assert failure.fault.code == "INVALID_ARGUMENT"


def test_a_stop_text_across_tokens(tiny: LoadedModel, greedy: Sampled) -> None:
    """Cut from the middle of one token to the middle of a later one, wherever that is."""
    codec = codec_of(tiny)
    lengths = [len(codec.decode(greedy.token_ids[:n])) for n in range(41)]
    crossed = 0
    for token in range(4, 30, 5):
        stop = greedy.text[lengths[token] - 1 : lengths[token + 2] + 1]
        drawn = sample(tiny, PROMPT, max_tokens=40, ignore_eos=True, stop=(stop,), return_text=True)
        expected_tokens = next(n for n in range(41) if stop in codec.decode(greedy.token_ids[:n]))
        assert drawn[0, 0].token_ids == greedy.token_ids[:expected_tokens]
        assert drawn[0, 0].text == greedy.text[: greedy.text.index(stop)]
        assert (drawn[0, 0].finish_reason, drawn[0, 0].matched_stop) == ("stop", stop)
        crossed += len(codec.encode(stop, add_special_tokens=False)) > 1
    assert crossed >= 3


def test_stop_texts_need_no_return_text(tiny: LoadedModel, greedy: Sampled) -> None:
    stop = greedy.text[20:24]
    drawn = sample(tiny, PROMPT, max_tokens=40, ignore_eos=True, stop=(stop,))[0, 0]
    assert drawn.matched_stop == stop
    assert len(drawn.token_ids) < 40


def followed(codec: TextCodec, ids: list[int], **limits: Any) -> tuple[str, int, Any, Any]:
    """Text, tokens taken, finish reason and match of a sample that draws these tokens."""
    stop_checker = StopChecker(task([1], max_tokens=len(ids), **limits), (0,), codec)
    text = ""
    for count, token_id in enumerate(ids, start=1):
        certain, stop = stop_checker.push(token_id)
        text += certain
        if stop is not None:
            return text, count, stop.finish_reason, stop.matched
    raise AssertionError("max_tokens did not end it")


def expected(
    codec: TextCodec, ids: list[int], stop: tuple[str, ...], min_tokens: int
) -> tuple[str, int, Any, Any]:
    """The definition: whole decodes, looked through after each token."""
    ignored = len(codec.decode(ids[:min_tokens]))
    for count in range(1, len(ids) + 1):
        text = codec.decode(ids[:count])
        if count > min_tokens:
            if ids[count - 1] == 0:
                return codec.decode(ids[: count - 1]), count, "stop", 0
            found = [(text.index(s, ignored), -len(s), s) for s in stop if s in text[ignored:]]
            if found:
                return text[: min(found)[0]], count, "stop", min(found)[2]
    return codec.decode(ids), len(ids), "length", None


@given(data=st.data())
@settings(max_examples=300)
def test_against_whole_decodes(tiny_packed: LoadedModel, data: st.DataObject) -> None:
    """Few letters, so that stops begin often and mostly do not complete; texts overlap."""
    codec = codec_of(tiny_packed)
    letters = [
        i for i in range(2048) if codec.token_text(i) and set(codec.token_text(i)) <= set("abt ")
    ]
    ids = data.draw(st.lists(st.sampled_from([*letters, 0]), min_size=1, max_size=40))
    texts = st.text(alphabet="abt ", min_size=1, max_size=6)
    stop = tuple(data.draw(st.lists(texts, max_size=3)))
    min_tokens = data.draw(st.integers(0, len(ids)))
    # Below min_tokens a stop id cannot be drawn.
    ids = [letters[0] if n < min_tokens and i == 0 else i for n, i in enumerate(ids)]
    assert followed(codec, ids, stop=stop, min_tokens=min_tokens) == expected(
        codec, ids, stop, min_tokens
    )


@pytest.mark.parametrize(
    ("stop", "text", "matched"),
    [
        (("def",), "abc", "def"),
        (("def", "bcd"), "a", "bcd"),
        (("cdef", "cd"), "ab", "cd"),
        (("xyz",), "abcdefg", None),
        (("fgh",), "abcdefg", None),
        (("efg", "fg"), "abcd", "efg"),
        (("g", "defgh"), "abcdef", "g"),
    ],
)
def test_one_letter_at_a_time(
    tiny: LoadedModel, stop: tuple[str, ...], text: str, matched: str | None
) -> None:
    codec = codec_of(tiny)
    ids = [codec.encode(letter, add_special_tokens=False)[0] for letter in "abcdefg"]
    found = followed(codec, ids, stop=stop)
    assert (found[0], found[3]) == (text, matched)


@pytest.mark.parametrize(
    ("stop", "text", "matched"),
    [
        (("ort", "m"), " i", "m"),
        (("m", "mp", "mport"), " i", "mport"),
        (("t", "im", "imp"), " ", "imp"),
    ],
)
def test_of_several_stop_texts_in_one_token_the_first_counts(
    tiny: LoadedModel, stop: tuple[str, ...], text: str, matched: str
) -> None:
    """Though it may be the shorter one; among those that begin together, the longest."""
    codec = codec_of(tiny)
    ids = codec.encode(" import", add_special_tokens=False)
    assert len(ids) == 1
    found = followed(codec, ids, stop=stop)
    assert (found[0], found[3]) == (text, matched)


def test_a_stop_text_of_split_characters(tiny: LoadedModel) -> None:
    """Its characters arrive in several tokens each."""
    codec = codec_of(tiny)
    ids = codec.encode("naïve 中文😀 fin", add_special_tokens=False)
    text, count, reason, matched = followed(codec, ids, stop=("文😀",))
    assert (text, reason, matched) == ("naïve 中", "stop", "文😀")
    assert codec.decode(ids[:count]) == "naïve 中文😀"


@pytest.fixture(scope="module")
def half_characters() -> TextCodec:
    """Byte-level, with tokens that end inside a character, as many a vocabulary has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(".", "â"), (".â", "Ģ"), ("b", ".â")]
    vocab = {text: place for place, text in enumerate([*alphabet, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.decoder = decoders.ByteLevel()
    return TextCodec(tokenizer.to_str())


def ids_of(codec: TextCodec, *tokens: str) -> list[int]:
    return [codec._tokenizer.token_to_id(token) for token in tokens]


def test_a_stop_text_in_a_token_that_ends_inside_a_character(half_characters: TextCodec) -> None:
    """It counts at once, also where nothing more is drawn that could complete the character."""
    ids = ids_of(half_characters, "a", ".âĢ", "Ŀ", "b")
    assert half_characters.decode(ids) == "a.”b"
    assert followed(half_characters, ids, stop=(".",)) == ("a", 2, "stop", ".")
    assert followed(half_characters, ids[:2], stop=(".",)) == ("a", 2, "stop", ".")
    assert followed(half_characters, ids, stop=("”", ".”b")) == ("a.", 3, "stop", "”")
    assert followed(half_characters, ids[:2], stop=("”",)) == ("a.\ufffd", 2, "length", None)


def test_what_min_tokens_keeps_is_not_looked_through(half_characters: TextCodec) -> None:
    ids = ids_of(half_characters, "b.â", "Ģ", "Ŀ", ".", "a")
    assert half_characters.decode(ids) == "b.”.a"
    for min_tokens in (1, 2, 3):
        found = followed(half_characters, ids, stop=(".",), min_tokens=min_tokens)
        assert found == ("b.”", 4, "stop", ".")
    assert followed(half_characters, ids, stop=("”.",), min_tokens=1) == ("b.", 4, "stop", "”.")


@given(data=st.data())
@settings(max_examples=200)
def test_half_characters_against_whole_decodes(
    half_characters: TextCodec, data: st.DataObject
) -> None:
    tokens = ["a", "b", ".", ".â", ".âĢ", "b.â", "â", "Ģ", "Ŀ"]
    ids = ids_of(half_characters, *data.draw(st.lists(st.sampled_from(tokens), min_size=1)))
    texts = st.text(alphabet="ab.”", min_size=1, max_size=3)
    stop = tuple(data.draw(st.lists(texts, max_size=3)))
    assert followed(half_characters, ids, stop=stop) == expected(half_characters, ids, stop, 0)
