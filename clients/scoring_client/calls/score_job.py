"""Score and TopKLogprobs calls."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from scoring_client.calls.assembly import Assembler, SliceAssembler, WholeAssembler
from scoring_client.calls.call import fill_call, job_settings
from scoring_client.calls.decoding import RowsAsked, ids_sent, scores_slice, topk_slice
from scoring_client.calls.division import PartSize, Unit, group_unit
from scoring_client.calls.job import Job
from scoring_client.calls.requests import CompletionAsked, group_messages
from scoring_client.calls.resend import GroupIndices, Key, unfinished_groups
from scoring_client.calls.row_plan import ConsecutiveRows, ListedRows, RowOrder
from scoring_client.calls.state import JobSettings
from scoring_client.errors import ProtocolError, ScoringError, invalid
from scoring_client.proto import score_pb2, topk_pb2
from scoring_client.values.inputs import GroupLike
from scoring_client.values.messages import set_fields
from scoring_client.values.options import ScoreOptions, TopKOptions, check_names
from scoring_client.values.processing import Processing, processing_message
from scoring_client.values.results import CompletionScores, CompletionTopK, ScoreResults, ScoresT


class _RowsJob(Job[ScoresT, GroupIndices, ScoreResults[ScoresT]]):
    """What Score and TopKLogprobs have in common: groups in, rows of completions out."""

    def __init__(
        self,
        template: score_pb2.ScoreRequest | topk_pb2.TopKLogprobsRequest,
        groups: Iterable[GroupLike],
        settings: JobSettings,
        *,
        whole: bool,
    ) -> None:
        self._template = template
        self._groups, self._asked = group_messages(groups)
        self._wanted = RowsAsked(
            template.outputs,
            template.next_token,
            template.k if isinstance(template, topk_pb2.TopKLogprobsRequest) else 0,
        )
        make = WholeAssembler[ScoresT] if whole else SliceAssembler[ScoresT]
        assemblers: dict[Key, Assembler[ScoresT]] = {
            key: make(_row_order(asked), drop_rows=asked.no_rows)
            for key, asked in self._asked.items()
        }
        super().__init__(assemblers, template.context.request_id, settings)

    @property
    def model(self) -> str:
        """Name of the model that the call asks for."""
        return self._template.model

    def results(self, parts: list[ScoresT]) -> ScoreResults[ScoresT]:
        """Return completions by group."""
        by_key = {(part.group_index, part.completion_index): part for part in parts}
        return ScoreResults(
            groups=tuple(
                tuple(by_key[index, number] for number in range(len(group.completions)))
                for index, group in enumerate(self._groups)
            ),
            provenance=self.call.provenance,
            processing=self.call.processing,
            usage=self.call.usage,
            provenances=tuple(self.call.provenances),
        )

    def _units(self, size: PartSize) -> list[Unit]:
        return [group_unit(index, group) for index, group in enumerate(self._groups)]

    def _request_for(self, unfinished: dict[Key, Any]) -> tuple[Any, GroupIndices]:
        groups, indices = unfinished_groups(self._groups, unfinished)
        request = type(self._template)()
        request.CopyFrom(self._template)  # type: ignore[arg-type]  # of its own type
        request.groups.extend(groups)
        return request, indices

    def _keys(self, result: Any) -> list[Key]:
        score = self._score_of(result)
        if not score.HasField("group_index"):
            raise ProtocolError("a result does not say its group")
        if score.HasField("completion_index"):
            return [self._indices.key(score.group_index, score.completion_index)]
        if not score.HasField("status"):
            raise ProtocolError("a result does not say its completion")
        return [key for key in self._indices.keys(score.group_index) if key in self._unfinished]

    def _status_of(self, result: Any) -> Any:
        score = self._score_of(result)
        return score.status if score.HasField("status") else None

    def _item_path(self, key: Key) -> str:
        return f"groups[{key[0]}].completions[{key[1]}]"

    @abstractmethod
    def _score_of(self, result: Any) -> score_pb2.ScoreResult:
        """Return the part of a result that both RPCs have."""

    def _asked_of(self, key: Key) -> dict[str, Any]:
        """Return what is needed to read an answer about a completion."""
        return {
            "wanted": self._wanted,
            "asked": self._asked[key],
            "prompt": self._groups[key[0]].prompt,
            "preamble": self._attempt.preamble,
            "key": key,
        }

    def _failed_values(self, key: Key, error: ScoringError) -> dict[str, Any]:
        prompt_token_ids = ids_sent(self._groups[key[0]].prompt)
        return {
            "group_index": key[0],
            "completion_index": key[1],
            "prompt_length": 0 if prompt_token_ids is None else len(prompt_token_ids),
            "prompt_token_ids": prompt_token_ids,
            "rows": np.empty(0, dtype=np.int32),
            "token_ids": np.empty(0, dtype=np.int32),
            "logprobs": np.empty(0, dtype=np.float32),
            "tokens": None,
            "processed_logprobs": None,
            "log_kept_masses": None,
            "entropies": None,
            "ranks": None,
            "logsumexps": None,
            "candidate_logprobs": None,
            "next_token": None,
            "last": True,
            "weight_version": None,
            "processing": None,
            "provenance": self._attempt.preamble.provenance,
            "error": error,
        }


class ScoreJob(_RowsJob[CompletionScores]):
    """A Score call."""

    rpc: ClassVar[str] = "Score"
    iterator: ClassVar[str] = "score_iter"

    def _score_of(self, result: Any) -> score_pb2.ScoreResult:
        score: score_pb2.ScoreResult = result
        return score

    def _decode(self, result: Any, key: Key) -> CompletionScores:
        return scores_slice(result, **self._asked_of(key))

    def _failed(self, key: Key, error: ScoringError) -> CompletionScores:
        return CompletionScores(**self._failed_values(key, error))


class TopKJob(_RowsJob[CompletionTopK]):
    """A TopKLogprobs call."""

    rpc: ClassVar[str] = "TopKLogprobs"
    iterator: ClassVar[str] = "topk_logprobs_iter"

    def _score_of(self, result: Any) -> score_pb2.ScoreResult:
        score: score_pb2.ScoreResult = result.score
        return score

    def _decode(self, result: Any, key: Key) -> CompletionTopK:
        return topk_slice(result, **self._asked_of(key))

    def _failed(self, key: Key, error: ScoringError) -> CompletionTopK:
        return CompletionTopK(
            **self._failed_values(key, error),
            top_token_ids=np.empty((0, self._wanted.k), dtype=np.int32),
            top_logprobs=np.empty((0, self._wanted.k), dtype=np.float32),
            log_tail_masses=np.empty(0, dtype=np.float32),
            support_sizes=np.empty(0, dtype=np.int32),
            top_tokens=None,
        )


def score_job(
    call: str, groups: Iterable[GroupLike], options: ScoreOptions, *, whole: bool
) -> ScoreJob:
    """Return a Score call.

    Args:
        call: Name of the method that was called, for errors.
        groups: What to score.
        options: Keyword arguments of the call.
        whole: Yield whole completions rather than slices.

    Raises:
        InvalidRequestError: the request is wrong, as far as this side can tell.
        TypeError: an option is unknown.
    """
    check_names(options, ScoreOptions, call)
    template = score_pb2.ScoreRequest()
    _fill_template(template, options)
    return ScoreJob(template, groups, job_settings(options), whole=whole)


def topk_job(
    call: str, groups: Iterable[GroupLike], k: int | None, options: TopKOptions, *, whole: bool
) -> TopKJob:
    """Return a TopKLogprobs call; arguments as of score_job.

    Raises:
        InvalidRequestError: the request is wrong, as far as this side can tell.
        TypeError: an option is unknown.
    """
    check_names(options, TopKOptions, call)
    if k is None:
        raise invalid("k", "is required: how many tokens to list for each row")
    template = topk_pb2.TopKLogprobsRequest()
    _fill_template(template, options)
    set_fields(template, "", k=k, token_id_limit=options.get("token_id_limit"))
    return TopKJob(template, groups, job_settings(options), whole=whole)


def _fill_template(
    template: score_pb2.ScoreRequest | topk_pb2.TopKLogprobsRequest, options: ScoreOptions
) -> None:
    """Set what Score and TopKLogprobs have in common, but for the groups."""
    fill_call(template, options)
    processing = Processing(
        temperature=options.get("temperature"),
        top_k=options.get("top_k"),
        top_p=options.get("top_p"),
        min_p=options.get("min_p"),
        keep_realised=options.get("keep_realised"),
        defaults=options.get("defaults"),
    )
    if (message := processing_message(processing, "processing")) is not None:
        template.processing.CopyFrom(message)
    set_fields(
        template.outputs,
        "outputs",
        processed_logprobs=options.get("processed_logprobs"),
        entropy=options.get("entropy"),
        rank=options.get("rank"),
        logsumexp=options.get("logsumexp"),
        log_kept_mass=options.get("log_kept_mass"),
        tokens=options.get("tokens"),
        token_ids=options.get("token_ids"),
    )
    set_fields(template, "", next_token=options.get("next_token"))


def _row_order(asked: CompletionAsked) -> Callable[[], RowOrder]:
    """Return a maker of the order in which the rows of a completion are due."""
    if asked.spans is not None:
        return partial(ListedRows, asked.spans)
    if asked.token_ids is not None:
        return partial(ListedRows, ((0, len(asked.token_ids)),))
    return ConsecutiveRows
