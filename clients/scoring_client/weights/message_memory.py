"""Memory of messages, used again rather than given back and taken anew."""

from functools import cache

_BLOCK = 31 << 20
"""glibc learns from blocks of up to 32 MiB."""


@cache
def keep_message_memory() -> None:
    """Have the C library keep what messages leave for the next ones.

    A message is two blocks of 2 MiB, the message itself and gRPC's copy. glibc gives such memory
    back to the kernel as soon as a few of them are free at once, and taking it again means filling
    pages with zeros: a sixth of a push. It keeps more once it has seen a larger block being freed,
    by its own rule (mallopt(3), M_MMAP_THRESHOLD; most programs with large tensors have taught it
    that long before): twice the block's size. Settings of the user's own switch the rule off, and
    other C libraries take no notice.
    """
    # Zeros that nobody touches cost nothing: the block is mapped and unmapped again.
    bytes(_BLOCK)
