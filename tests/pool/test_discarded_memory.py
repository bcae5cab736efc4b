"""Memory of weights that nobody reads any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scoring_service.engine.weight_memory import HEADER_BYTES, WeightMemory
from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.weights import sets as weight_sets
from scoring_service.pool.weights.sets import WeightSets

SIZE = HEADER_BYTES + (1 << 20)


def by_older_weights(kept: WeightSets) -> None:
    kept.drop(2, WeightMemory(SIZE))


def by_larger_ones(kept: WeightSets) -> None:
    kept.take_memory(4 * SIZE, 4 * SIZE).close()


@pytest.mark.parametrize("replace", [by_older_weights, by_larger_ones])
def test_it_is_freed_beside_the_thread_that_answers(
    monkeypatch: pytest.MonkeyPatch, replace: Callable[[WeightSets], None]
) -> None:
    freed = WeightMemory.discard
    threads = []
    done = threading.Event()

    def discard(memory: WeightMemory) -> None:
        threads.append(threading.current_thread())
        freed(memory)
        done.set()

    monkeypatch.setattr(WeightMemory, "discard", discard)
    kept, first = WeightSets([]), WeightMemory(SIZE)
    path = Path(first.path)
    kept.drop(1, first)
    assert path.exists()
    replace(kept)
    assert done.wait(30)
    assert threads != [threading.current_thread()]
    with pytest.raises(ValueError, match="released"):
        len(first.view)
    kept.close()


def test_what_is_being_freed_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, spare = WeightSets([]), WeightMemory(SIZE)
    spare.view[:] = bytes(SIZE)
    kept.drop(1, spare)
    monkeypatch.setattr(weight_sets, "free_host_memory", lambda: SIZE)
    # As much as is free, and most of what the spare memory has.
    kept.take_memory(4 * SIZE, int(1.7 * SIZE)).close()
    with pytest.raises(ServiceError) as refused:  # the spare memory is gone
        kept.take_memory(4 * SIZE, int(1.7 * SIZE))
    assert refused.value.fault.reason is Reason.OUT_OF_MEMORY
