"""Full collections leave out what was there when the server began, and are few."""

from __future__ import annotations

import gc
import weakref

from scoring_service.garbage import collect_seldom, freeze_startup_objects


class _Loop:
    """Keeps itself alive until it is collected."""

    def __init__(self) -> None:
        self.itself = self


def test_what_exists_is_not_looked_at_again_and_what_was_garbage_is_gone() -> None:
    garbage = weakref.ref(_Loop())
    kept = _Loop()
    before = len(gc.get_objects())
    try:
        freeze_startup_objects()
        assert garbage() is None
        assert gc.get_freeze_count() > before / 2
        assert len(gc.get_objects()) < before / 100
        later = weakref.ref(_Loop())
        gc.collect()
        assert later() is None, "what comes later is collected as ever"
        assert kept.itself is kept
    finally:
        gc.unfreeze()


def test_a_large_call_has_not_everything_walked_again_and_again() -> None:
    """As many objects as there are of 65,536 groups, kept as the queue keeps them."""
    full = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            full.append(info)

    before = gc.get_threshold()
    try:
        freeze_startup_objects()
        collect_seldom()
        gc.callbacks.append(count)
        kept = [_Loop() for _ in range(130_000)]
        assert not full
        later = weakref.ref(_Loop())
        young = [_Loop() for _ in range(2000)]
        assert later() is None, "what comes later is collected as ever"
        assert len(kept) + len(young) == 132_000
    finally:
        gc.callbacks.remove(count)
        gc.set_threshold(*before)
        gc.unfreeze()
