"""Text to ids and back with the model's own fast tokenizer. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from scoring_service.engine.text.word_tokens import longest_token, token_ends

# Texts are encoded one by one, for which a thread for each core would be started.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_ANCHOR = "a"


class TextCodec:
    """The model's tokenizer, in the form that the server needs it.

    Args:
        serialised: the `tokenizers` library's JSON.
    """

    def __init__(self, serialised: str) -> None:
        self._tokenizer = Tokenizer.from_str(serialised)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._ends = np.zeros(256, dtype=bool)
        self._ends[list(token_ends(serialised))] = True
        self._knows_ends = bool(self._ends.any())
        self._longest, self._shrinks = longest_token(serialised)
        self.digest = hashlib.sha256(serialised.encode()).hexdigest()
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        anchor = self._tokenizer.encode(_ANCHOR, add_special_tokens=False).ids
        self._anchor_ids: list[int] = anchor
        self._anchor_text: str = self._tokenizer.decode(anchor, skip_special_tokens=False)
        self.token_text = lru_cache(maxsize=1 << 18)(self._token_text)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text. Other threads run meanwhile: a batch is encoded without Python's lock."""
        (found,) = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        return list(found.ids)

    def token_lower_bound(self, text: str) -> int:
        """So many tokens a text has at least, at a hundredth of what it takes to count them."""
        if not text or not (self._knows_ends or self._longest):
            return min(1, len(text))
        read = np.frombuffer(text.encode(), dtype=np.uint8)
        words = 1 + int(np.count_nonzero(self._ends[read[:-1]] & (read[1:] == ord(" "))))
        if not self._longest:
            return words
        shrinks = 1 if text.isascii() else self._shrinks
        return max(words, -(-len(read) // (self._longest * shrinks)))

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def _token_text(self, token_id: int) -> str:
        """One token as text, its leading space included; "" for an id beyond the tokenizer.

        Decoded behind another token, because decoders strip the space at the start of a text.
        """
        text = self.decode([*self._anchor_ids, token_id], skip_special_tokens=False)
        return text.removeprefix(self._anchor_text)


class TextStream:
    """Text of a growing run of tokens: `push` gives what became certain, `flush` the rest.

    A token may end in the middle of a character; its text is held back until the character is
    complete. Decoding starts a few tokens back, because decoders treat the start of a text
    specially; never in the middle of a character, because a decoder that joins single bytes gives
    up on the whole run of them.
    """

    _CONTEXT = 6

    def __init__(self, codec: TextCodec, context_ids: list[int]) -> None:
        self._codec = codec
        self._context = [self._from_whole_character(context_ids[-2 * self._CONTEXT :])]
        self._pending: list[int] = []
        self.ahead = ""
        """Text before a character that is not complete yet, in tokens that `push` holds back."""

    def _from_whole_character(self, ids: list[int]) -> list[int]:
        """The end of a run of tokens, from the first that does not begin inside a character."""
        starts = range(len(ids))
        first = (n for n in starts if not self._codec.decode(ids[n:]).startswith("\ufffd"))
        return ids[next(first, 0) :]

    def push(self, token_id: int) -> str:
        """Text that this token completes."""
        self._pending.append(token_id)
        self.ahead = ""
        text = self._pending_text()
        certain = len(self._pending)
        if text.endswith("\ufffd"):
            if certain < 2 * self._CONTEXT:
                self.ahead = text.rstrip("\ufffd")
                return ""
            certain, text = self._before_last_character(text)
        self._context.append(self._pending[:certain])
        while sum(map(len, self._context[1:])) >= self._CONTEXT:
            del self._context[0]
        self._pending = self._pending[certain:]
        return text

    def _before_last_character(self, text: str) -> tuple[int, str]:
        """Pending tokens before a last character that may still be completed, and their text.

        Such a character has at most three tokens so far. Where there is none, all of them.
        """
        whole = self._pending
        for tokens in range(len(whole) - 1, len(whole) - 4, -1):
            self._pending = whole[:tokens]
            before = self._pending_text()
            self._pending = whole
            if before + "\ufffd" == text:
                return tokens, before
        return len(whole), text

    def flush(self) -> str:
        """Text of the tokens that never completed a character."""
        text = self._pending_text() if self._pending else ""
        self._pending = []
        return text

    def _pending_text(self) -> str:
        context = [token_id for run in self._context for token_id in run]
        before = self._codec.decode(context)
        return self._codec.decode(context + self._pending)[len(before) :]
