"""The next tokens of samples, and who gives way when pages run out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from scoring_service.engine.packed.body import Feed
from scoring_service.engine.packed.call_run import CallRun
from scoring_service.engine.packed.reservation import Room
from scoring_service.engine.packed.sample_run import SampleRun
from scoring_service.engine.packed.store import SegmentStore


def take_feeds(
    ready: Sequence[CallRun],
    running: Iterable[CallRun],
    store: SegmentStore,
    room: Room,
    max_tokens: int,
    on_bug: Callable[[CallRun, Exception], None],
) -> list[tuple[CallRun, SampleRun, Feed]]:
    """Tokens that a step runs through the model, most urgent samples first, then the oldest.

    Args:
        ready: calls whose samples may go on.
        running: all calls, whose later samples give way where pages run out.
        store: has the pages.
        room: what of them is promised to nobody.
        max_tokens: of the step.
        on_bug: ends a call whose samples cannot go on.
    """
    waiting = [
        (run, sample)
        for run in ready
        for sample in run.samples
        if sample.begun and sample.token_ids
    ]
    waiting.sort(key=lambda pair: pair[1].place)
    feeds: list[tuple[CallRun, SampleRun, Feed]] = []
    ended: set[int] = set()
    """Calls that met a bug."""
    left = max_tokens
    for run, sample in waiting:
        if left == 0:
            break
        if run.call.call_id in ended:
            continue
        try:
            if sample.pages_missing and not _make_room(sample, running, store, room):
                continue
            new = sample.feeds(left)
        except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
            on_bug(run, error)
            ended.add(run.call.call_id)
            feeds = [feed for feed in feeds if feed[0] is not run]
            continue
        left -= len(new)
        run.served += len(new)
        feeds.extend((run, sample, feed) for feed in new)
    return feeds


def _make_room(
    sample: SampleRun, running: Iterable[CallRun], store: SegmentStore, room: Room
) -> bool:
    """Takes the pages that a sample misses, from later samples if it must."""
    missing = sample.pages_missing
    left = room.free_for_samples(sample.call.priority)
    if missing > left:
        left = _take_back(missing, left, sample, running, store)
    if missing > left:
        return False
    sample.add_pages(store.take(missing))
    return True


def _take_back(
    missing: int, left: int, sample: SampleRun, running: Iterable[CallRun], store: SegmentStore
) -> int:
    """Pages that are there once later samples gave theirs; they keep them if it is too few."""
    later = sorted(
        (
            other
            for run in running
            for other in run.samples
            if other.place > sample.place and other.pages
        ),
        key=lambda other: other.place,
        reverse=True,
    )
    if missing > left + sum(len(other.pages) for other in later):
        return left
    for other in later:
        if missing <= left:
            break
        pages = other.give_way()
        store.give_back(pages)
        left += len(pages)
    return left
