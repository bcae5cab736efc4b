"""Full collections leave out what was there when the server began."""

from __future__ import annotations

import gc
import weakref

from scoring_service.garbage import freeze_startup_objects


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
