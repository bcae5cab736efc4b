"""From slices of the answer to this package's results, refusing what breaks the contract."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring_client.calls.requests import CompletionAsked
from scoring_client.errors import ProtocolError
from scoring_client.proto import sample_pb2, score_pb2, sequence_pb2, tensor_pb2, topk_pb2
from scoring_client.values.arrays import Float32Array, Int32Array
from scoring_client.values.processing import ResolvedProcessing
from scoring_client.values.provenance import Provenance
from scoring_client.values.results import CompletionScores, CompletionTopK, NextToken, TopKNextToken
from scoring_client.values.samples import FinishReason, Sample, WeightSpan
from scoring_client.values.tensors import float32_array, int32_array

_FINISH_REASONS: dict[int, FinishReason] = {
    sample_pb2.FINISH_REASON_STOP: "stop",
    sample_pb2.FINISH_REASON_LENGTH: "length",
}


@dataclass(frozen=True, slots=True)
class RowsAsked:
    """What a scoring call asked of every row."""

    outputs: score_pb2.RowOutputs
    """The statistics."""
    next_token: bool
    """Whether one row more was asked."""
    k: int = 0
    """Tokens listed for each row."""


@dataclass(slots=True)
class Preamble:
    """What the first message of an attempt said, and later ones changed."""

    provenance: Provenance | None = None
    """The latest."""
    processing: tuple[ResolvedProcessing, ...] = ()
    """What processing_index points into."""

    def resolved(
        self, message: score_pb2.ScoreResult | sample_pb2.SampleResult
    ) -> ResolvedProcessing:
        """Return the processing that a result names.

        Raises:
            ProtocolError: it names none, or one that was not announced.
        """
        index = message.processing_index
        if not message.HasField("processing_index") or not 0 <= index < len(self.processing):
            raise ProtocolError(f"processing_index {index} of {len(self.processing)} announced")
        return self.processing[index]

    def computed_by(self) -> Provenance:
        """Return the provenance.

        Raises:
            ProtocolError: a result came before it.
        """
        if self.provenance is None:
            raise ProtocolError("a result came before the provenance")
        return self.provenance


def scores_slice(
    message: score_pb2.ScoreResult,
    wanted: RowsAsked,
    asked: CompletionAsked,
    prompt: sequence_pb2.TokenSequence,
    preamble: Preamble,
    key: tuple[int, int],
) -> CompletionScores:
    """Return one slice of a completion's scores.

    Args:
        message: The slice.
        wanted: What the call asked of every row.
        asked: What it asked of this completion.
        prompt: The group's prompt, as it was sent.
        preamble: What the attempt's first message said.
        key: Group and completion, in the caller's indices.

    Raises:
        ProtocolError: an array that was asked for is missing or has the wrong length.
    """
    return CompletionScores(
        **_row_values(message, wanted, asked, prompt, preamble, key),
        next_token=NextToken(**_next_token_values(message, wanted, asked))
        if _ends_with_next_token(message, wanted, asked)
        else None,
    )


def topk_slice(
    message: topk_pb2.TopKResult,
    wanted: RowsAsked,
    asked: CompletionAsked,
    prompt: sequence_pb2.TokenSequence,
    preamble: Preamble,
    key: tuple[int, int],
) -> CompletionTopK:
    """Return one slice of a completion's scores with its top-K; arguments as of ``scores_slice``.

    Raises:
        ProtocolError: an array that was asked for is missing or has the wrong length.
    """
    score = message.score
    rows = score.row_count
    realised = len(score.logprobs)
    top_token_ids = _tensor(message, "top_token_ids", int32_array, (rows, wanted.k))
    top_logprobs = _tensor(message, "top_logprobs", float32_array, (rows, wanted.k))
    log_tail_masses = _floats(message.log_tail_masses, rows, "log_tail_masses")
    support_sizes = _ints(message.support_sizes, rows, "support_sizes")
    top_tokens = None
    if wanted.outputs.tokens:
        flat = _strings(message.top_tokens, rows * wanted.k, "top_tokens")
        top_tokens = tuple(flat[row * wanted.k : (row + 1) * wanted.k] for row in range(rows))
    next_token = None
    if _ends_with_next_token(score, wanted, asked):
        next_token = TopKNextToken(
            **_next_token_values(score, wanted, asked),
            top_token_ids=top_token_ids[realised].copy(),
            top_logprobs=top_logprobs[realised].copy(),
            log_tail_mass=float(log_tail_masses[realised]),
            support_size=int(support_sizes[realised]),
            top_tokens=None if top_tokens is None else top_tokens[realised],
        )
    return CompletionTopK(
        **_row_values(score, wanted, asked, prompt, preamble, key),
        top_token_ids=top_token_ids[:realised],
        top_logprobs=top_logprobs[:realised],
        log_tail_masses=log_tail_masses[:realised],
        support_sizes=support_sizes[:realised],
        top_tokens=None if top_tokens is None else top_tokens[:realised],
        next_token=next_token,
    )


def sample_slice(
    message: sample_pb2.SampleResult,
    top_logprobs: int,
    return_text: bool,
    prompt: sample_pb2.SamplePrompt,
    preamble: Preamble,
    key: tuple[int, int],
) -> Sample:
    """Return one slice of a sample.

    Args:
        message: The slice.
        top_logprobs: Tokens that the call wants listed with each drawn one.
        return_text: Whether it wants the text.
        prompt: The prompt, as it was sent.
        preamble: What the attempt's first message said.
        key: Prompt and sample index, in the caller's.

    Raises:
        ProtocolError: an array that was asked for is missing or has the wrong length.
    """
    count = len(message.token_ids)
    top_ids = top_values = None
    if top_logprobs:
        top_ids = _tensor(message, "top_token_ids", int32_array, (count, top_logprobs))
        top_values = _tensor(message, "top_logprobs", float32_array, (count, top_logprobs))
    if count and not message.HasField("start"):
        raise ProtocolError("a slice does not say where it starts")
    if not message.HasField("seed"):
        raise ProtocolError("a slice does not say its seed")
    finish_reason = _FINISH_REASONS.get(message.finish_reason)
    if message.last and finish_reason is None:
        raise ProtocolError("a sample ended without a finish_reason")
    which = message.matched_stop.WhichOneof("stop")
    return Sample(
        prompt_index=key[0],
        sample_index=key[1],
        start=message.start,
        prompt_length=message.prompt_length,
        prompt_token_ids=_prompt_tokens(message, prompt),
        token_ids=_ints(message.token_ids, count, "token_ids"),
        logprobs=_floats(message.logprobs, count, "logprobs"),
        processed_logprobs=_floats(message.processed_logprobs, count, "processed_logprobs"),
        top_token_ids=top_ids,
        top_logprobs=top_values,
        text=message.text if return_text else None,
        finish_reason=finish_reason,
        matched_stop=None if which is None else getattr(message.matched_stop, which),
        seed=message.seed,
        weight_spans=tuple(
            WeightSpan(span.first_token, span.weight_version) for span in message.weight_spans
        ),
        last=message.last,
        processing=preamble.resolved(message),
        provenance=preamble.computed_by(),
    )


def _ends_with_next_token(
    message: score_pb2.ScoreResult, wanted: RowsAsked, asked: CompletionAsked
) -> bool:
    """Return whether the slice's last row is the next-token row.

    Raises:
        ProtocolError: it is due and missing, or there and not due.
    """
    extra = message.row_count - len(message.logprobs)
    due = 1 if wanted.next_token and message.last else 0
    if extra != due:
        raise ProtocolError(
            f"a slice of {message.row_count} rows has {len(message.logprobs)} log-probs"
        )
    if message.row_count and not message.HasField("start"):
        raise ProtocolError("a slice does not say where it starts")
    next_row = message.start + len(message.logprobs)
    if extra and asked.token_ids is not None and next_row != len(asked.token_ids):
        raise ProtocolError(
            f"row {next_row} came as the next-token row of {len(asked.token_ids)} tokens"
        )
    return bool(extra)


def _row_values(
    message: score_pb2.ScoreResult,
    wanted: RowsAsked,
    asked: CompletionAsked,
    prompt: sequence_pb2.TokenSequence,
    preamble: Preamble,
    key: tuple[int, int],
) -> dict[str, Any]:
    """Return the fields of CompletionScores but for next_token, without the next-token row."""
    rows, realised, outputs = message.row_count, len(message.logprobs), wanted.outputs
    row_indices = np.arange(message.start, message.start + realised, dtype=np.int32)

    def statistic(values: Sequence[float], name: str, on: bool) -> Float32Array | None:
        return _floats(values, rows, name)[:realised] if on else None

    candidates = None
    if asked.candidate_count is not None:
        candidates = _candidates(message, asked.candidate_count)[:realised]
    return {
        "group_index": key[0],
        "completion_index": key[1],
        "prompt_length": message.prompt_length,
        "prompt_token_ids": _prompt_tokens(message, prompt),
        "rows": row_indices,
        "token_ids": _realised_tokens(message, asked, row_indices, outputs.token_ids),
        "logprobs": _floats(message.logprobs, realised, "logprobs"),
        "tokens": _strings(message.tokens, realised, "tokens") if outputs.tokens else None,
        "processed_logprobs": _floats(message.processed_logprobs, realised, "processed_logprobs")
        if outputs.processed_logprobs
        else None,
        "log_kept_masses": statistic(
            message.log_kept_masses, "log_kept_masses", outputs.log_kept_mass
        ),
        "entropies": statistic(message.entropies, "entropies", outputs.entropy),
        "ranks": _ints(message.ranks, realised, "ranks") if outputs.rank else None,
        "logsumexps": statistic(message.logsumexps, "logsumexps", outputs.logsumexp),
        "candidate_logprobs": candidates,
        "last": message.last,
        "weight_version": message.weight_version,
        "processing": preamble.resolved(message),
        "provenance": preamble.computed_by(),
    }


def _next_token_values(
    message: score_pb2.ScoreResult, wanted: RowsAsked, asked: CompletionAsked
) -> dict[str, Any]:
    """Return the fields of NextToken: the last entry of every array that has one for it."""
    outputs = wanted.outputs
    candidates = None
    if asked.candidate_count is not None:
        candidates = _candidates(message, asked.candidate_count)[-1].copy()
    return {
        "row": message.start + message.row_count - 1,
        "entropy": message.entropies[-1] if outputs.entropy else None,
        "logsumexp": message.logsumexps[-1] if outputs.logsumexp else None,
        "log_kept_mass": message.log_kept_masses[-1] if outputs.log_kept_mass else None,
        "candidate_logprobs": candidates,
    }


def _realised_tokens(
    message: score_pb2.ScoreResult, asked: CompletionAsked, rows: Int32Array, requested: bool
) -> Int32Array:
    if asked.token_ids is None or requested:
        return _ints(message.token_ids, len(rows), "token_ids")
    if len(rows) and rows[-1] >= len(asked.token_ids):
        raise ProtocolError(f"row {rows[-1]} of a completion of {len(asked.token_ids)} tokens")
    return asked.token_ids[rows]


def ids_sent(prompt: sequence_pb2.TokenSequence | sample_pb2.SamplePrompt) -> Int32Array | None:
    """Return a prompt's token ids, in memory of their own; None of a text."""
    if prompt.HasField("text"):
        return None
    return np.fromiter(prompt.token_ids, dtype=np.int32, count=len(prompt.token_ids))


def _prompt_tokens(
    message: score_pb2.ScoreResult | sample_pb2.SampleResult,
    prompt: sequence_pb2.TokenSequence | sample_pb2.SamplePrompt,
) -> Int32Array | None:
    if message.prompt_token_ids:
        return _ints(message.prompt_token_ids, message.prompt_length, "prompt_token_ids")
    # Ids that the caller knows do not travel back.
    return ids_sent(prompt) if message.last else None


def _candidates(message: score_pb2.ScoreResult, count: int) -> Float32Array:
    array: Float32Array = _tensor(
        message, "candidate_logprobs", float32_array, (message.row_count, count)
    )
    return array


def _tensor(
    message: Any, name: str, read: Callable[[tensor_pb2.Tensor], Any], shape: tuple[int, int]
) -> Any:
    tensor: tensor_pb2.Tensor = getattr(message, name)
    if not message.HasField(name) and 0 in shape:
        # A slice without rows has nothing to put into a tensor.
        return np.empty(shape, dtype=np.int32 if read is int32_array else np.float32)
    if tuple(tensor.shape) != shape:
        raise ProtocolError(f"{name} has shape {list(tensor.shape)}, due was {list(shape)}")
    return read(tensor)


def _floats(values: Sequence[float], count: int, name: str) -> Float32Array:
    return _numbers(values, count, name, np.dtype(np.float32))


def _ints(values: Sequence[int], count: int, name: str) -> Int32Array:
    return _numbers(values, count, name, np.dtype(np.int32))


def _numbers(
    values: Sequence[Any], count: int, name: str, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    _check_length(values, count, name)
    return np.fromiter(values, dtype=dtype, count=count)


def _strings(values: Iterable[str], count: int, name: str) -> tuple[str, ...]:
    strings = tuple(values)
    _check_length(strings, count, name)
    return strings


def _check_length(values: Sequence[Any], count: int, name: str) -> None:
    if len(values) != count:
        raise ProtocolError(f"{name} has {len(values)} entries, due were {count}")
