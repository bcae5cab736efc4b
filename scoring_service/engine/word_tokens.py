"""Where a text's tokens end for sure, whatever the text: a bound on how many it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_KEEP_TEXT = ("NFC", "NFD")
"""Normalizers that neither remove a character nor make or take a space of ASCII."""


def token_ends(serialised: str) -> frozenset[int]:
    """Bytes that end a token wherever a space comes next; empty where nothing is known.

    A byte-level tokenizer loses no byte that its vocabulary has, so a byte that no token has before
    a space is the last of its token there. With most vocabularies that holds for all that words
    consist of.

    Args:
        serialised: the `tokenizers` library's JSON.
    """
    tokenizer = json.loads(serialised)
    model, added = tokenizer["model"], tokenizer.get("added_tokens") or []
    vocabulary = model.get("vocab")
    steps = list(_flat(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    normalizers = _flat(tokenizer.get("normalizer"), "normalizers")
    symbols = _byte_symbols()
    space = symbols[ord(" ")]
    if (
        model.get("type") != "BPE"
        or not isinstance(vocabulary, Mapping)
        or space not in vocabulary
        or any(step["type"] not in _KEEP_TEXT for step in normalizers)
        or not any(step["type"] == "ByteLevel" for step in steps)
        or not all(map(_cuts_only, steps))
        or any(token["lstrip"] or token["rstrip"] for token in added)
    ):
        return frozenset()
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
