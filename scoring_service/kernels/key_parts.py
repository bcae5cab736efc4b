"""Where attention on a GPU cuts a long chain of earlier keys, by the chain's own segment alone.

A program that walks a whole chain leaves most of a GPU idle when there are few segments: one sample
after 32,000 tokens is 8 programs with 8 heads of keys, on 132 processors. Cut every 512 keys it is
504, of 262 KB of keys and values each (128 wide, in half precision). What a part leaves is
float32, (width + 2) * 4 bytes a query: 520, of 0.2 % of those bytes for each query of a group, and
it is written and read once.

Blocks of many queries read keys from the cache of a device that other blocks of their segment fill,
and leave 33 KB a part: theirs are four times as long, which takes 5 % more than no cut where a
device is full of them anyway. So segments with programs enough of their own are not cut.

Nothing here knows torch: memory is counted with it.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTIAL_BYTES = 64 << 20
"""What parts of one launch may leave. A step that leaves more takes its turns: 2,000 blocks of 64
queries, or 4 million keys of single tokens with 16 heads, are a launch that fills any device. A
chain that would leave more by itself is not cut: of a single token with 128 heads, half a million
keys."""


@dataclass(frozen=True, slots=True)
class KeyParts:
    """Keys of a part: multiples of 64, which blocks of keys divide."""

    few: int = 512
    """Of blocks of few queries, and of single tokens."""
    many: int = 2048
    """Of blocks of many."""
    programs: int = 32
    """A segment of several tokens is cut if it has no more by itself: a quarter of a large GPU."""


KEY_PARTS = KeyParts()


def partial_bytes(heads: int, output_width: int) -> int:
    """What a part leaves of a token: float32 sums of values, and of each head two numbers more.

    Args:
        heads: of queries.
        output_width: elements of a token's values of all of them.
    """
    return 4 * (output_width + 2 * heads)
