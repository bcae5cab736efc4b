"""The plain engine: a call as units of work over one loaded model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Iterator

import torch

from scoring_service.engine.events import ItemFailed, SampleSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.machine.memory import is_refused_memory
from scoring_service.engine.plain.sampling import draw_sample
from scoring_service.engine.plain.scoring import score_completion
from scoring_service.engine.runner import Progress
from scoring_service.engine.text.stops import StopChecker
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.types import Call, GroupTask, SampleCall, SamplingTask, ScoreCall, Usage


class PlainEngine:
    """Computes one completion, or one token of a sample, at a time."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def work(
        self, call: Call, weights: ModelWeights | None = None
    ) -> Generator[Progress, None, None]:
        """Units of work of a call; a fault of an item is an event, and the next item goes on.

        Args:
            call: to be computed.
            weights: to compute it with; None = those that were loaded.
        """
        units = self._units(call)
        with contextlib.closing(units):
            while True:
                # Other calls may have had their turns since, on other weights.
                self._loaded.model.use(weights)
                try:
                    progress = next(units)
                except StopIteration:
                    return
                yield progress

    def _units(self, call: Call) -> Generator[Progress, None, None]:
        if isinstance(call, ScoreCall):
            for group in call.groups:
                yield Usage(prompt_tokens=len(group.prompt_ids))
                yield from self._score_group(call, group)
        else:
            for task in call.prompts:
                yield Usage(prompt_tokens=len(task.prompt_ids))
                yield from self._sample_prompt(call, task)

    def _score_group(self, call: ScoreCall, group: GroupTask) -> Iterator[Progress]:
        for completion in group.completions:
            rows = 0
            try:
                for piece in score_completion(self._loaded.model, call, group, completion):
                    rows += piece.block.rows
                    yield piece
            except (ServiceError, RuntimeError, MemoryError) as error:
                yield ItemFailed(call.call_id, group.index, completion.index, _fault(error))
            yield Usage(
                completion_tokens=len(completion.token_ids),
                computed_tokens=len(group.prompt_ids) + len(completion.token_ids),
                head_rows=rows,
            )

    def _sample_prompt(self, call: SampleCall, task: SamplingTask) -> Iterator[Progress]:
        model, eos_ids = self._loaded.model, self._loaded.info.eos_token_ids
        codec = self._loaded.codec if call.return_text or task.stop else None
        sampled = computed = 0
        try:
            state, cache = model.last_state(task.prompt_ids.tolist())
        except (RuntimeError, MemoryError) as error:
            for index in task.sample_indices:
                yield ItemFailed(call.call_id, task.index, index, _fault(error))
            return
        for index in task.sample_indices:
            stop_checker = StopChecker(task, eos_ids, codec)
            try:
                # The cache has no other name, so that it goes before the next one is made.
                for piece in draw_sample(
                    model, call, task, index, state, copy.deepcopy(cache), stop_checker
                ):
                    if isinstance(piece, SampleSlice):
                        sampled += len(piece.token_ids)
                        computed += len(piece.token_ids) - piece.last
                    yield piece
            except (ServiceError, RuntimeError, MemoryError) as error:
                yield ItemFailed(call.call_id, task.index, index, _fault(error))
        yield Usage(
            sampled_tokens=sampled,
            computed_tokens=len(task.prompt_ids) + computed,
            head_rows=sampled,
        )


def _fault(error: Exception) -> Fault:
    """What an item ends with, if it is the item's own.

    Raises:
        Exception: the error itself, if it is neither a fault nor a want of memory that left
            libraries as they were.
    """
    if isinstance(error, ServiceError):
        return error.fault
    if not is_refused_memory(error):
        raise error
    torch.cuda.empty_cache()
    return Fault(Reason.OUT_OF_MEMORY, "the device ran out of memory for this item")
