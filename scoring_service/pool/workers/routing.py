"""Which worker computes something: the one that has to do least before it is done."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from scoring_service.types import Call, Int32Array, ScoreCall

_REMEMBERED = 1 << 16
"""Chunks of prompts a worker is believed to hold."""


def prompt_keys(call: Call, chunk_size: int) -> list[bytes]:
    """Keys of the whole chunks of a call's prompts, each standing for everything before it too.

    Args:
        call: what is to be computed.
        chunk_size: tokens between the seams at which workers share prompts; 0 = they share none.
    """
    if chunk_size == 0 or (isinstance(call, ScoreCall) and call.uncached):
        return []
    prompts = call.groups if isinstance(call, ScoreCall) else call.prompts
    found: dict[bytes, None] = {}
    for prompt in prompts:
        found.update(dict.fromkeys(_chain(call.cache_salt, prompt.prompt_ids, chunk_size)))
    return list(found)


def _chain(salt: str, prompt_ids: Int32Array, chunk_size: int) -> Iterator[bytes]:
    key = salt.encode()
    for start in range(0, len(prompt_ids) - chunk_size + 1, chunk_size):
        tokens = prompt_ids[start : start + chunk_size].tobytes()
        key = hashlib.blake2b(key + tokens, digest_size=16).digest()
        yield key


class PrefixIndex:
    """What a worker computed lately. A guess: the worker does not say what it evicted."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def note(self, keys: Iterable[bytes]) -> None:
        """The worker is about to compute these."""
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._remembered:
            self._keys.popitem(last=False)

    def held(self, keys: Iterable[bytes]) -> int:
        """How many of these the worker should hold."""
        return sum(key in self._keys for key in keys)

    def clear(self) -> None:
        """The worker is a new one."""
        self._keys.clear()
