"""The next tokens of samples, and which of them are preempted when pages run out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scoring_service.engine.packed.call_run import CallRun
from scoring_service.engine.packed.reservation import Room
from scoring_service.engine.packed.sample_run import SampleRun
from scoring_service.engine.packed.sample_slots import SamplePlace, sample_places
from scoring_service.engine.packed.segments import DecodeToken


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What a step takes of samples."""

    tokens: int
    samples: int


def take_decode_tokens(
    ready: Sequence[CallRun],
    running: Iterable[CallRun],
    room: Room,
    limits: DecodeLimits,
    on_bug: Callable[[CallRun, Exception], None],
) -> list[tuple[CallRun, SampleRun, DecodeToken]]:
    """Tokens that a step runs through the model, in the order of `sample_places`.

    Args:
        ready: calls whose samples may go on.
        running: all calls, whose samples further behind are preempted where pages run out.
        room: the pages.
        limits: of the step.
        on_bug: ends a call whose samples cannot go on.
    """
    places = sample_places(running)
    waiting = [
        (run, sample)
        for run in ready
        for sample in run.samples
        if sample.begun and sample.token_ids
    ]
    waiting.sort(key=lambda pair: places[pair[1]])
    last_holders = sorted((sample for sample in places if sample.pages), key=places.__getitem__)
    """Samples that have pages, in the order in which they go on: the last is preempted first."""
    decode_tokens: list[tuple[CallRun, SampleRun, DecodeToken]] = []
    ended: set[int] = set()
    """Calls that met a bug."""
    left, samples_left = limits.tokens, limits.samples
    for run, sample in waiting:
        if left == 0 or samples_left == 0:
            sample.wait()
            continue
        if run.call.call_id in ended:
            continue
        try:
            if sample.pages_missing and not _make_room(sample, last_holders, places, room):
                sample.wait()
                continue
            new = sample.decode_tokens(left)
        except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
            on_bug(run, error)
            ended.add(run.call.call_id)
            decode_tokens = [entry for entry in decode_tokens if entry[0] is not run]
            continue
        left -= len(new)
        samples_left -= 1
        run.served += len(new)
        decode_tokens.extend((run, sample, token) for token in new)
    return decode_tokens


def _make_room(
    sample: SampleRun, holders: list[SampleRun], places: Mapping[SampleRun, SamplePlace], room: Room
) -> bool:
    """Takes the pages that a sample misses, from samples behind it if it must.

    Args:
        sample: misses pages.
        holders: samples that had pages, in their order; those that are preempted are removed.
        places: of all samples.
        room: the pages.
    """
    missing = sample.pages_missing
    left = room.free_for_samples(sample.call.priority)
    # They keep what they have if it is too few.
    giving = 0
    while missing > left and giving < len(holders):
        giving += 1
        other = holders[-giving]
        if places[other] <= places[sample]:
            break
        left += len(other.pages)
    if missing > left:
        return False
    for _ in range(giving):
        room.take_back(holders.pop())
    room.grow(sample, missing)
    return True
