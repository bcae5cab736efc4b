"""A scored sequence never mixes versions, however many steps it takes."""

from __future__ import annotations

from dataclasses import replace

from tests.weights.conftest import ENGINE, weight_server
from tests.weights.long_sequence import Held, assert_plain, long_sequence
from tests.weights.trainer import Trainer


async def test_a_commit_between_the_slices_of_a_sequence() -> None:
    """All its rows are of the version that it began with, and plain torch's."""
    trainer = Trainer()
    version = trainer.step()
    async with weight_server(engine=replace(ENGINE, max_batch_tokens=64, chunk_size=64)) as server:
        held = await Held.begin(server, trainer.states[version], version)
        slices, versions = await long_sequence(server, held.commit)
        await held.committed()
        assert (versions[0], versions[-1]) == (0, version)
        assert_plain(slices, trainer, 0)

        async def nothing() -> None:
            pass

        after, _ = await long_sequence(server, nothing)
        assert_plain(after, trainer, version)
