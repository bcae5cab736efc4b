"""Memory of updates, as those who read it see it."""

from __future__ import annotations

import pytest

from scoring_service.engine.weight_memory import (
    HEADER_BYTES,
    WeightMemory,
    WriterState,
    map_memory,
)


def test_what_was_mapped_before_serves_the_next_weights_in_the_same_memory() -> None:
    writer = WeightMemory(HEADER_BYTES + 8192)
    writer.view[HEADER_BYTES : HEADER_BYTES + 3] = b"one"
    first = map_memory(writer.path)
    assert first.map[HEADER_BYTES : HEADER_BYTES + 3] == b"one"
    writer.view[HEADER_BYTES : HEADER_BYTES + 3] = b"two"
    writer.publish(3, WriterState.COMPLETE)
    again = map_memory(writer.path, first)
    assert again is first
    assert again.map[HEADER_BYTES : HEADER_BYTES + 3] == b"two"
    assert again.progress() == (3, WriterState.COMPLETE)
    writer.close()


def test_another_memory_under_the_same_path_is_mapped_anew() -> None:
    """The kernel gives the number of a descriptor that was closed to the next one."""
    writer = WeightMemory(HEADER_BYTES)
    path, before = writer.path, map_memory(writer.path)
    writer.close()
    other = WeightMemory(HEADER_BYTES)
    assert other.path == path
    other.publish(7)
    found = map_memory(path, before)
    assert found is not before
    assert found.progress() == (7, WriterState.WRITING)
    other.close()


def test_readers_cannot_write() -> None:
    writer = WeightMemory(HEADER_BYTES)
    with pytest.raises(TypeError):
        map_memory(writer.path).map[0] = 1
    writer.close()
