"""Where a text's tokens end for sure, and how long they are: bounds on how many it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_KEEP_TEXT = ("NFC", "NFD")
"""Normalizers that neither remove a character nor make or take a space of ASCII."""

_GROWTH = 3
"""The canonical decomposition of a character has at most so many times its bytes of UTF-8, and at
least as many as it divided by this."""


def token_ends(serialised: str) -> frozenset[int]:
    """Bytes that end a token wherever a space comes next; empty where nothing is known.

    A byte-level tokenizer loses no byte that its vocabulary has, so a byte that no token has before
    a space is the last of its token there. With most vocabularies that holds for all that words
    consist of.

    Args:
        serialised: the `tokenizers` library's JSON.
    """
    tokenizer = json.loads(serialised)
    symbols = _byte_symbols()
    space = symbols[ord(" ")]
    if not _keeps_text(tokenizer) or space not in tokenizer["model"]["vocab"]:
        return frozenset()
    vocabulary, added = tokenizer["model"]["vocab"], tokenizer.get("added_tokens") or []
    inside = {before for token in vocabulary for before in _before(space, token)}
    inside_added = {
        byte
        for token in added
        for before in _before(" ", token["content"])
        for byte in before.encode()
    }
    return frozenset(
        byte
        for byte, symbol in symbols.items()
        if symbol in vocabulary and symbol not in inside and byte not in inside_added
    )


def longest_token(serialised: str) -> tuple[int, int]:
    """Bytes of UTF-8 in the longest token, and how much shorter a normalized text may be.

    A tokenizer that has every byte loses none, so a text has at least so many tokens as the longest
    one goes into it.

    Args:
        serialised: the `tokenizers` library's JSON.

    Returns:
        0 bytes where nothing is known; and the factor for texts that are not ASCII alone, which
        normalizers leave as they are.
    """
    tokenizer = json.loads(serialised)
    model = tokenizer["model"]
    if (
        not _keeps_text(tokenizer)
        or not model["vocab"].keys() >= set(_byte_symbols().values())
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return 0, 1
    # Of an added token what was made of it by the normalizer may stand in the text.
    contents = [token["content"] for token in tokenizer.get("added_tokens") or []]
    added = (len(c.encode()) * (1 if c.isascii() else _GROWTH) for c in contents)
    longest = max(max(map(len, model["vocab"])), *added, 0)
    # It decomposes, and composes again what was decomposed before.
    return longest, _GROWTH**2 if tokenizer.get("normalizer") else 1


def _keeps_text(tokenizer: Mapping[str, Any]) -> bool:
    """Whether it is byte-level, and no byte that its vocabulary has gets lost on the way."""
    model, added = tokenizer["model"], tokenizer.get("added_tokens") or []
    steps = list(_flat(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    normalizers = _flat(tokenizer.get("normalizer"), "normalizers")
    return (
        model.get("type") == "BPE"
        and isinstance(model.get("vocab"), Mapping)
        and all(step["type"] in _KEEP_TEXT for step in normalizers)
        and any(step["type"] == "ByteLevel" for step in steps)
        and all(map(_cuts_only, steps))
        and not any(token["lstrip"] or token["rstrip"] for token in added)
    )


def _before(space: str, token: str) -> Iterator[str]:
    """Symbols that a token has before a space."""
    place = token.find(space, 1)
    while place > 0:
        yield token[place - 1]
        place = token.find(space, place + 1)


def _flat(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """A step of a pipeline, or the steps that it consists of."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[inner]:
            yield from _flat(part, inner)
    else:
        yield step


def _cuts_only(step: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer cuts a text and removes nothing of it."""
    if step["type"] == "Split":
        return bool(step["behavior"] != "Removed")
    return step["type"] in ("ByteLevel", "Digits")


def _byte_symbols() -> dict[int, str]:
    """How the 256 bytes are written in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    symbols = {byte: chr(byte) for byte in printable}
    return {**symbols, **{byte: chr(0x100 + place) for place, byte in enumerate(others)}}
