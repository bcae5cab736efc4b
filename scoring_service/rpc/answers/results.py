"""Events of the engine to result messages.

Arrays become lists first: protobuf takes four times as long over an array's own elements.
"""

from __future__ import annotations

from google.protobuf.message import Message
from google.rpc import status_pb2

from scoring_client.proto import sample_pb2, score_pb2, topk_pb2
from scoring_service.engine.events import SampleSlice, ScoreSlice
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.rpc.parsing.sample import ParsedSample
from scoring_service.rpc.parsing.score import ParsedScore
from scoring_service.rpc.parsing.tensors import write_float32, write_int32

_FINISH_REASONS = {
    None: sample_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": sample_pb2.FINISH_REASON_STOP,
    "length": sample_pb2.FINISH_REASON_LENGTH,
}


_OVERHEAD = 64
_ID_BYTES = 3
"""Of an id below two million."""


def bytes_beside(result: Message) -> int:
    """Of a result beside its slice's arrays, about.

    Counted, because ByteSize makes the whole message: with a slice of a top-K list that took as
    long as sending it.
    """
    inner = result.score if isinstance(result, topk_pb2.TopKResult) else result
    ids = sum(len(getattr(inner, name)) for name in ("prompt_token_ids", "token_ids"))
    return _OVERHEAD + _ID_BYTES * ids


def written_bytes(piece: ScoreSlice | SampleSlice, as_bytes: bool) -> int:
    """Of a slice's arrays those that are written element by element, which takes its time.

    Args:
        piece: the slice.
        as_bytes: whether tensors are bytes; what has one number a row is written in either case.
    """
    if not as_bytes:
        return piece.size
    arrays = piece.block if isinstance(piece, ScoreSlice) else piece
    names = ("candidate_logprobs", "top_token_ids", "top_logprobs")
    tensors = (getattr(arrays, name, None) for name in names)
    return piece.size - sum(int(tensor.nbytes) for tensor in tensors if tensor is not None)


def score_result(
    piece: ScoreSlice, parsed: ParsedScore, codec: TextCodec | None, as_bytes: bool
) -> score_pb2.ScoreResult:
    """A slice of a completion."""
    block = piece.block
    key = piece.group_index, piece.completion_index
    realised = slice(piece.start, piece.start + len(block.logprobs))
    result = score_pb2.ScoreResult(
        group_index=piece.group_index,
        completion_index=piece.completion_index,
        prompt_length=piece.prompt_length,
        start=piece.start,
        row_count=block.rows,
        last=piece.last,
        logprobs=block.logprobs.tolist(),
        weight_version=piece.weight_version,
        processing_index=piece.processing_index,
    )
    if key in parsed.echoed:
        result.token_ids.extend(parsed.echoed[key][realised].tolist())
    if piece.last and piece.group_index in parsed.prompts:
        result.prompt_token_ids.extend(parsed.prompts[piece.group_index].tolist())
    if key in parsed.tokens and codec is not None:
        result.tokens.extend(codec.token_text(i) for i in parsed.tokens[key][realised].tolist())
    for name in ("processed_logprobs", "log_kept_masses", "entropies", "ranks", "logsumexps"):
        values = getattr(block, name)
        if values is not None:
            getattr(result, name).extend(values.tolist())
    if block.candidate_logprobs is not None:
        result.candidate_logprobs.CopyFrom(write_float32(block.candidate_logprobs, as_bytes))
    return result


def top_k_result(
    piece: ScoreSlice, parsed: ParsedScore, codec: TextCodec | None, as_bytes: bool
) -> topk_pb2.TopKResult:
    """A slice of a completion with its top-K lists."""
    block = piece.block
    result = topk_pb2.TopKResult(score=score_result(piece, parsed, codec, as_bytes))
    if block.top_token_ids is not None and block.top_logprobs is not None:
        result.top_token_ids.CopyFrom(write_int32(block.top_token_ids, as_bytes))
        result.top_logprobs.CopyFrom(write_float32(block.top_logprobs, as_bytes))
        if parsed.tokens and codec is not None:
            result.top_tokens.extend(
                codec.token_text(i) for i in block.top_token_ids.ravel().tolist()
            )
    if block.log_tail_masses is not None:
        result.log_tail_masses.extend(block.log_tail_masses.tolist())
    if block.support_sizes is not None:
        result.support_sizes.extend(block.support_sizes.tolist())
    return result


class WeightSpans:
    """Which versions the tokens of a call's samples come from."""

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def note(self, piece: SampleSlice) -> list[tuple[int, int]]:
        """(first token, version) of every span of the sample so far, this slice included."""
        spans = self._spans.setdefault((piece.prompt_index, piece.sample_index), [])
        if not spans or spans[-1][1] != piece.weight_version:
            spans.append((piece.start, piece.weight_version))
        return spans


def sample_result(
    piece: SampleSlice,
    parsed: ParsedSample,
    return_text: bool,
    as_bytes: bool,
    spans: WeightSpans,
) -> sample_pb2.SampleResult:
    """A slice of a sample."""
    so_far = spans.note(piece)
    result = sample_pb2.SampleResult(
        prompt_index=piece.prompt_index,
        sample_index=piece.sample_index,
        start=piece.start,
        last=piece.last,
        prompt_length=piece.prompt_length,
        token_ids=piece.token_ids.tolist(),
        logprobs=piece.logprobs.tolist(),
        processed_logprobs=piece.processed_logprobs.tolist(),
        text=piece.text if return_text else "",
        finish_reason=_FINISH_REASONS[piece.finish_reason],
        seed=piece.seed,
        processing_index=piece.processing_index,
    )
    if piece.top_token_ids is not None and piece.top_logprobs is not None:
        result.top_token_ids.CopyFrom(write_int32(piece.top_token_ids, as_bytes))
        result.top_logprobs.CopyFrom(write_float32(piece.top_logprobs, as_bytes))
    if isinstance(piece.matched_stop, str):
        result.matched_stop.text = piece.matched_stop
    elif piece.matched_stop is not None:
        result.matched_stop.token_id = piece.matched_stop
    if piece.last:
        for first, version in so_far:
            result.weight_spans.add(first_token=first, weight_version=version)
        if piece.prompt_index in parsed.prompts:
            result.prompt_token_ids.extend(parsed.prompts[piece.prompt_index].tolist())
    return result


def failed_score(
    group: int, completion: int | None, status: status_pb2.Status
) -> score_pb2.ScoreResult:
    """A completion, or a whole group, that ended with a fault."""
    return score_pb2.ScoreResult(
        group_index=group, completion_index=completion, last=True, status=status
    )


def failed_top_k(
    group: int, completion: int | None, status: status_pb2.Status
) -> topk_pb2.TopKResult:
    """The same where top-K lists were asked for."""
    return topk_pb2.TopKResult(score=failed_score(group, completion, status))


def failed_sample(
    prompt: int, sample: int | None, status: status_pb2.Status
) -> sample_pb2.SampleResult:
    """A sample, or all samples of a prompt, that ended with a fault."""
    return sample_pb2.SampleResult(
        prompt_index=prompt, sample_index=sample, last=True, status=status
    )
