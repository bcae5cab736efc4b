"""Text to ids and back, against the tokenizer that transformers loads."""

from __future__ import annotations

import hashlib
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer

from scoring_service.engine.files.tokenizer_file import load_tokenizer
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.text.tokenizer import TextCodec, TextStream
from scoring_service.engine.text.word_tokens import token_ends
from scoring_service.models import tiny_model_path
from scoring_service.types import EngineConfig
from tests.engine.made_up_tokenizers import across_spaces, every_byte, metaspace, sentencepiece_like

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading space",
    "   three spaces",
    "trailing space ",
    "import numpy as np\n\ndef f(x: int) -> None:\n    return x\n",
    "tabs\tand\r\nline ends",
    "naïve café — 中文字 ✓ 😀 👩‍👩‍👧",
    "<|endoftext|> and <|im_start|> in the middle",
    "1234567890 3.14159e-10",
    "x" * 500,
]


@pytest.fixture(scope="module")
def codec(tiny: LoadedModel) -> TextCodec:
    assert tiny.codec is not None
    return tiny.codec


@pytest.mark.parametrize("add_special_tokens", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(
    codec: TextCodec, text: str, add_special_tokens: bool
) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_model_path())
    expected = theirs.encode(text, add_special_tokens=add_special_tokens)
    assert codec.encode(text, add_special_tokens=add_special_tokens) == expected


@pytest.mark.smollm2
def test_ids_of_smollm2_are_those_of_transformers(smollm2_file: Path, smollm2_folder: Path) -> None:
    """Theirs was read of the same file."""
    theirs = AutoTokenizer.from_pretrained(smollm2_folder)
    tokenizer_json, _ = load_tokenizer(EngineConfig(model=str(smollm2_file)))
    assert tokenizer_json is not None
    codec = TextCodec(tokenizer_json)
    assert codec.size == len(theirs)
    for text in TEXTS:
        for special in (False, True):
            expected = theirs.encode(text, add_special_tokens=special)
            assert codec.encode(text, add_special_tokens=special) == expected
        ids = theirs.encode(text, add_special_tokens=False)
        assert "".join(map(codec.token_text, ids)).count("\ufffd") or (
            "".join(map(codec.token_text, ids)) == text
        )


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text, add_special_tokens=False)
    assert codec.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_skipped_unless_asked_for(codec: TextCodec) -> None:
    ids = [0, *codec.encode("a", add_special_tokens=False), 0]
    assert codec.decode(ids) == "a"
    assert codec.decode(ids, skip_special_tokens=False) == "<|endoftext|>a<|endoftext|>"


@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_names_of_special_tokens_become_them(codec: TextCodec, add_special_tokens: bool) -> None:
    """As docs/security.md warns, with what it tells to do about it."""
    added = [0] * add_special_tokens
    ids = codec.encode("a<|endoftext|>b", add_special_tokens=add_special_tokens)
    assert ids[len(added) :].count(0) == 1
    theirs = AutoTokenizer.from_pretrained(tiny_model_path())
    as_text = theirs.encode("a<|endoftext|>b", add_special_tokens=False, split_special_tokens=True)
    assert 0 not in as_text
    assert codec.decode(as_text, skip_special_tokens=False) == "a<|endoftext|>b"


ascii_texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@given(text=ascii_texts)
@settings(max_examples=200)
def test_joined_token_texts_are_the_text(codec: TextCodec, text: str) -> None:
    """Every token keeps its leading space, the first one too."""
    ids = codec.encode(text, add_special_tokens=False)
    assert "".join(codec.token_text(token_id) for token_id in ids) == text


@given(text=st.text(alphabet="abhelowrd., ", min_size=1, max_size=30))
def test_joined_token_texts_behind_decoders_that_strip(text: str) -> None:
    """These decoders drop the space before the first token; a token's own text keeps it."""
    for tokenizer in (sentencepiece_like(), metaspace()):
        codec = TextCodec(tokenizer.to_str())
        ids = codec.encode(text, add_special_tokens=False)
        joined = "".join(codec.token_text(token_id) for token_id in ids)
        assert joined.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")
        assert codec.token_text(tokenizer.token_to_id("▁hello")) == " hello"
        assert codec.token_text(tokenizer.token_to_id("o")) == "o"


def test_every_token_has_a_text(codec: TextCodec) -> None:
    for token_id in range(codec.size):
        assert codec.token_text(token_id)
    assert codec.token_text(0) == "<|endoftext|>"
    assert codec.token_text(codec.size) == ""
    assert codec.token_text(codec.size + 10**6) == ""


def test_the_size_counts_added_tokens() -> None:
    tokenizer = metaspace()
    assert TextCodec(tokenizer.to_str()).size == 16
    tokenizer.add_special_tokens(["<one>", "<two>"])
    assert TextCodec(tokenizer.to_str()).size == 18


def test_padding_and_truncation_of_the_file_are_off() -> None:
    """Some tokenizer.json files carry the settings of their training."""
    tokenizer = metaspace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    plain, set_up = TextCodec(metaspace().to_str()), TextCodec(tokenizer.to_str())
    text = "hello world hello world"
    assert set_up.encode(text, add_special_tokens=True) == plain.encode(
        text, add_special_tokens=True
    )


def test_the_digest_is_of_the_serialised_form(tiny: LoadedModel, codec: TextCodec) -> None:
    """The same file, the same digest; any change of the tokenizer, another."""
    serialised = tiny.info.tokenizer_json
    assert serialised is not None
    assert codec.digest == hashlib.sha256(serialised.encode()).hexdigest()
    again = AutoTokenizer.from_pretrained(tiny_model_path()).backend_tokenizer
    assert TextCodec(again.to_str()).digest == codec.digest
    again.add_special_tokens(["<new>"])
    assert TextCodec(again.to_str()).digest != codec.digest


def streamed(codec: TextCodec, ids: list[int], context: list[int]) -> list[str]:
    stream = TextStream(codec, context)
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@example(text="\ufffd\ufffd\ufffd😀", start=0)
@given(text=st.text(alphabet="ab é中😀\u200d\n\ufffd", max_size=30), start=st.integers(0, 12))
@settings(max_examples=200)
def test_streamed_pieces_join_to_the_text(codec: TextCodec, text: str, start: int) -> None:
    """Whatever went before: any number of tokens of another text, characters split or whole."""
    before = codec.encode("before é 😀", add_special_tokens=False)[:start]
    whole = [*before, *codec.encode(text, add_special_tokens=False)]
    if codec.decode(before).endswith("\ufffd"):
        return  # the prompt ends inside a character: whose it is, is nobody's guess
    pieces = streamed(codec, whole[len(before) :], before)
    assert codec.decode(before) + "".join(pieces) == codec.decode(whole)


@given(ids=st.lists(st.integers(1, 2047), max_size=40))
@settings(max_examples=200)
def test_streamed_pieces_of_any_tokens(codec: TextCodec, ids: list[int]) -> None:
    """Bytes that are no characters included."""
    assert "".join(streamed(codec, ids, [])) == codec.decode(ids)


def test_no_piece_holds_half_a_character(codec: TextCodec) -> None:
    ids = codec.encode("é中😀" * 5, add_special_tokens=False)
    pieces = streamed(codec, ids, [])
    assert "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) >= 5


@pytest.mark.parametrize("prompt", ["", "hello", "hello 😀😀", "中文中文"])
@pytest.mark.parametrize("text", ["a😀😀😀b", "中文é中文ab", "😀 world", "world. hello"])
def test_runs_of_single_bytes(prompt: str, text: str) -> None:
    """A decoder that joins bytes gives up on a run that begins inside a character."""
    codec = TextCodec(sentencepiece_like().to_str())
    before = codec.encode(prompt, add_special_tokens=False)
    ids = codec.encode(text, add_special_tokens=False)
    pieces = streamed(codec, ids, before)
    assert codec.decode(before) + "".join(pieces) == codec.decode([*before, *ids])
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("prompt", ["😀😀", "hello 中文é中文", "é" * 20])
def test_a_run_of_single_bytes_that_the_prompt_began(prompt: str) -> None:
    """The context is a whole number of characters, wherever its first token would fall."""
    codec = TextCodec(sentencepiece_like().to_str())
    before = codec.encode(prompt, add_special_tokens=False)
    ids = codec.encode("中😀é.", add_special_tokens=False)[1:]
    assert codec.token_text(ids[0]) == "\ufffd", "the run has to go on without a space"
    assert "".join(streamed(codec, ids, before)) == "中😀é."


def test_the_space_between_prompt_and_sample_is_kept() -> None:
    """Alone, the sample's first token would be decoded without it."""
    codec = TextCodec(sentencepiece_like().to_str())
    prompt = codec.encode("hello", add_special_tokens=False)
    ids = codec.encode("world", add_special_tokens=False)
    assert codec.decode(ids) == "world"
    assert "".join(streamed(codec, ids, prompt)) == " world"


MERGED = across_spaces()
COMPOSED = every_byte(("KK", "KKKK"), normalizers.NFC())
WORDS_AND_MORE = st.text() | st.text(alphabet="ab \n\t.é\x04<|end>")


@settings(max_examples=300)
@given(text=WORDS_AND_MORE)
@example(text="a b  c\n d <|endoftext|> e \x04 f")
@example(text="\u212a" * 100)  # a sign for kelvin: three bytes, of which its letter is made
@example(text="K" * 100)
def test_no_text_has_fewer_tokens_than_counted_at_a_glance(codec: TextCodec, text: str) -> None:
    others = (MERGED, metaspace(), COMPOSED)
    for known in (codec, *(TextCodec(tokenizer.to_str()) for tokenizer in others)):
        assert known.token_lower_bound(text) <= max(
            1, len(known.encode(text, add_special_tokens=False))
        )


def test_canonical_forms_of_a_character_differ_by_a_factor_of_three_at_most() -> None:
    """What the bound for texts of any characters is made of."""
    factors = []
    for number in range(0x110000):
        if not 0xD800 <= number < 0xE000:
            character = chr(number)
            whole = len(character.encode())
            parts = len(unicodedata.normalize("NFD", character).encode())
            factors += [whole / parts, parts / whole]
    assert max(factors) == 3


@pytest.mark.parametrize(("text", "least"), [("K" * 4000, 1000), ("é" * 4000, 223)])
def test_a_text_has_as_many_tokens_as_its_bytes_are_times_the_longest(
    text: str, least: int
) -> None:
    """Which is of four bytes; nine times as many may become one when they are composed."""
    assert TextCodec(COMPOSED.to_str()).token_lower_bound(text) == least


def test_other_threads_run_while_a_text_is_encoded(codec: TextCodec) -> None:
    ran: list[bool] = []
    begun = threading.Event()

    def run() -> None:
        begun.wait()
        ran.append(True)

    text = "import numpy as np and so on " * 10_000
    other = threading.Thread(target=run)
    interval = sys.getswitchinterval()
    other.start()
    try:
        # From here on this thread goes on until it gives the interpreter's lock away by itself.
        sys.setswitchinterval(1000.0)
        begun.set()
        codec.encode(text, add_special_tokens=True)
        meanwhile = list(ran)
    finally:
        sys.setswitchinterval(interval)
        other.join()
    assert meanwhile == [True]


class Unread(str):
    """A text that nobody may look into."""

    def encode(self, *_args: str) -> bytes:
        raise AssertionError("it is read for nothing")


def test_of_words_most_tokens_are_seen_at_a_glance(codec: TextCodec) -> None:
    text = "the words of a text, and where each of them ends " * 50
    assert codec.token_lower_bound(text) >= 11 * 50
    lossy = TextCodec(metaspace().to_str())
    assert lossy.token_lower_bound(Unread(text)) == 1, "bytes may be lost there"
    assert TextCodec(MERGED.to_str()).token_lower_bound("ab ab a bc") == 3, (
        "a is not sure to end there"
    )
    assert token_ends(MERGED.to_str()) == {ord("b"), ord(" ")}
