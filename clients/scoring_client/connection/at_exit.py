"""Iterators that a program still holds when it ends.

Python closes what is left of them when its threads are gone, and to close one is to cancel its call
and to wait for the threads that read it: some processes never ended.
"""

from __future__ import annotations

import atexit
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

GeneratorT = TypeVar("GeneratorT", bound=Generator[Any, None, None])

_held: WeakSet[Generator[Any, None, None]] = WeakSet()


def closed_at_exit(generator: GeneratorT) -> GeneratorT:
    """Return the generator, which is closed before the interpreter takes itself apart."""
    _held.add(generator)
    return generator


@atexit.register
def _close() -> None:
    for generator in list(_held):
        # ValueError: another thread is in it, and takes it along when it ends.
        with suppress(ValueError):
            generator.close()
