"""What the toy model answers, cut into slices at random."""

import random
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from scoring_client.proto import (
    processing_pb2,
    sample_pb2,
    score_pb2,
    tensor_pb2,
    topk_pb2,
)
from tests.client import toy_model


class ToyAnswers:
    """Makes the results of one request.

    Args:
        chance: Decides how rows are cut into slices and how those of different items mix.
        max_slice: Most rows in a slice.
        numbers: Answer in plain numbers whatever the request's encoding.
        version: Version of the weights.
    """

    def __init__(self, chance: random.Random, max_slice: int, numbers: bool, version: int) -> None:
        self._random = chance
        self._max_slice = max_slice
        self._numbers = numbers
        self.version = version

    def results(self, request: Any) -> Iterator[Any]:
        """Yield the slices of every item, mixed."""
        if isinstance(request, sample_pb2.SampleRequest):
            return self._shuffled(self._sample_results(request))
        k = request.k if isinstance(request, topk_pb2.TopKLogprobsRequest) else 0
        return self._shuffled(self._score_results(request, k))

    def _shuffled(self, results: Iterator[Any]) -> Iterator[Any]:
        """Mix the slices of different items, keeping each item's own order."""
        queues: dict[Any, list[Any]] = {}
        for result in results:
            score = result.score if isinstance(result, topk_pb2.TopKResult) else result
            if isinstance(score, sample_pb2.SampleResult):
                key = (score.prompt_index, score.sample_index)
            else:
                key = (score.group_index, score.completion_index)
            queues.setdefault(key, []).append(result)
        while queues:
            key = self._random.choice(list(queues))
            yield queues[key].pop(0)
            if not queues[key]:
                del queues[key]

    def _cut(self, rows: list[int]) -> Iterator[list[int]]:
        """Cut rows into slices of neighbours."""
        while rows:
            size = self._random.randint(1, self._max_slice)
            size = next((i for i in range(1, size) if rows[i : i + 1] != [rows[0] + i]), size)
            yield rows[:size]
            rows = rows[size:]

    def _tensor(self, request: Any, array: np.ndarray) -> tensor_pb2.Tensor:
        integer = np.issubdtype(array.dtype, np.integer)
        tensor = tensor_pb2.Tensor(
            dtype=tensor_pb2.DATA_TYPE_INT32 if integer else tensor_pb2.DATA_TYPE_FLOAT32,
            shape=array.shape,
        )
        if request.encoding == tensor_pb2.ENCODING_BYTES and not self._numbers:
            tensor.data = array.astype("<i4" if integer else "<f4").tobytes()
        elif integer:
            tensor.ints.extend(array.ravel().tolist())
        else:
            tensor.floats.extend(array.ravel().tolist())
        return tensor

    # Scores

    def _score_results(self, request: Any, k: int) -> Iterator[Any]:
        for g, group in enumerate(request.groups):
            prompt = _ids(group.prompt, special=True)
            if not prompt:
                score = score_pb2.ScoreResult(group_index=g)
                score.status.CopyFrom(_bad(f"groups[{g}].prompt", "no token"))
                yield topk_pb2.TopKResult(score=score) if k else score
                continue
            for c, completion in enumerate(group.completions):
                tokens = _ids(completion, special=False)
                bad = next((i for i, t in enumerate(tokens) if t >= toy_model.VOCAB_SIZE), None)
                if bad is not None or not tokens:
                    score = score_pb2.ScoreResult(group_index=g, completion_index=c)
                    path = f"groups[{g}].completions[{c}]"
                    if bad is None:
                        score.status.CopyFrom(_bad(path, "no token"))
                    else:
                        what = f"{tokens[bad]} ≥ vocabulary {toy_model.VOCAB_SIZE}"
                        score.status.CopyFrom(_bad(f"{path}.token_ids[{bad}]", what))
                    yield topk_pb2.TopKResult(score=score) if k else score
                    continue
                yield from self._completion_slices(request, g, c, prompt, tokens, k)

    def _completion_slices(
        self, request: Any, g: int, c: int, prompt: list[int], tokens: list[int], k: int
    ) -> Iterator[Any]:
        group = request.groups[g]
        completion = group.completions[c]
        rows = list(range(len(tokens)))
        if completion.rows:
            rows = [
                r for span in completion.rows for r in range(span.start, span.start + span.length)
            ]
        if request.next_token:
            rows.append(len(tokens))
        candidates = None
        if completion.HasField("candidate_token_ids"):
            tensor = completion.candidate_token_ids
            candidates = np.frombuffer(tensor.data, dtype="<i4").reshape(tuple(tensor.shape))
            candidates = np.broadcast_to(candidates, (len(rows), candidates.shape[1]))
        index = 1 if group.HasField("processing") else 0
        resolved = resolved_values(
            processings(request)[_group_position(request, g) if index else 0]
        )
        temperature, top_k = resolved.temperature.value, resolved.top_k.value
        done = 0
        for slice_rows in self._cut(rows):
            truth = [
                toy_model.row(prompt + tokens[:r], self.version, temperature) for r in slice_rows
            ]
            realised = [(r, t) for r, t in zip(slice_rows, truth, strict=True) if r < len(tokens)]
            score = score_pb2.ScoreResult(
                group_index=g,
                completion_index=c,
                prompt_length=len(prompt),
                start=slice_rows[0],
                row_count=len(slice_rows),
                last=done + len(slice_rows) == len(rows),
                weight_version=self.version,
                processing_index=_group_position(request, g) if index else 0,
            )
            if score.last and group.prompt.HasField("text"):
                score.prompt_token_ids.extend(prompt)
            outputs = request.outputs
            score.logprobs.extend(t.logprobs_V[tokens[r]] for r, t in realised)
            if outputs.token_ids or completion.HasField("text"):
                score.token_ids.extend(tokens[r] for r, _ in realised)
            if outputs.tokens:
                score.tokens.extend(toy_model.token_text(tokens[r]) for r, _ in realised)
            if outputs.processed_logprobs:
                score.processed_logprobs.extend(
                    t.logprobs_V[tokens[r]] - t.log_kept_mass(top_k)
                    if t.support(top_k)[tokens[r]]
                    else -np.inf
                    for r, t in realised
                )
            if outputs.rank:
                score.ranks.extend(t.rank(tokens[r]) for r, t in realised)
            if outputs.entropy:
                score.entropies.extend(t.entropy() for t in truth)
            if outputs.logsumexp:
                score.logsumexps.extend(t.logsumexp() for t in truth)
            if outputs.log_kept_mass:
                score.log_kept_masses.extend(t.log_kept_mass(top_k) for t in truth)
            if candidates is not None:
                chosen = candidates[done : done + len(slice_rows)]
                values = np.stack([t.logprobs_V[ids] for t, ids in zip(truth, chosen, strict=True)])
                values = np.where(chosen == -1, np.float32(np.nan), values)
                score.candidate_logprobs.CopyFrom(self._tensor(request, values))
            done += len(slice_rows)
            if not k:
                yield score
                continue
            tops = [t.top(k) for t in truth]
            result = topk_pb2.TopKResult(
                score=score,
                top_token_ids=self._tensor(request, np.stack([ids for ids, _ in tops])),
                top_logprobs=self._tensor(request, np.stack([values for _, values in tops])),
                log_tail_masses=[t.log_tail_mass(k) for t in truth],
                support_sizes=[int(t.support(top_k).sum()) for t in truth],
            )
            if outputs.tokens:
                for ids, _ in tops:
                    result.top_tokens.extend(toy_model.token_text(int(i)) for i in ids)
            yield result

    # Samples

    def _sample_results(self, request: Any) -> Iterator[Any]:
        for p, message in enumerate(request.prompts):
            prompt = _ids(message, special=True)
            if not prompt or max(prompt) >= toy_model.VOCAB_SIZE:
                yield sample_pb2.SampleResult(
                    prompt_index=p, status=_bad(f"prompts[{p}].token_ids[0]", "not in vocabulary")
                )
                continue
            sampling, shared = message.sampling, request.sampling
            seed = next(
                (m.seed for m in (message, sampling, shared) if m.HasField("seed")),
                self._random.getrandbits(64),
            )
            max_tokens = next(m.max_tokens for m in (sampling, shared) if m.HasField("max_tokens"))
            n = next((m.n for m in (message, request) if m.HasField("n")), 1)
            for s in range(message.first_sample_index, message.first_sample_index + n):
                yield from self._sample_slices(request, p, s, prompt, seed, max_tokens)

    def _sample_slices(
        self, request: Any, p: int, s: int, prompt: list[int], seed: int, max_tokens: int
    ) -> Iterator[Any]:
        tokens = toy_model.draw_sample(prompt, seed, s, max_tokens, self.version)
        k = request.top_logprobs
        for positions in self._cut(list(range(len(tokens)))):
            truth = [toy_model.row(prompt + tokens[:i], self.version) for i in positions]
            drawn = [tokens[i] for i in positions]
            values = [t.logprobs_V[token] for t, token in zip(truth, drawn, strict=True)]
            last = positions[-1] == len(tokens) - 1
            result = sample_pb2.SampleResult(
                prompt_index=p,
                sample_index=s,
                start=positions[0],
                last=last,
                prompt_length=len(prompt),
                token_ids=drawn,
                logprobs=values,
                processed_logprobs=values,
                seed=seed,
                processing_index=0,
            )
            if k:
                tops = [t.top(k) for t in truth]
                result.top_token_ids.CopyFrom(self._tensor(request, np.stack([i for i, _ in tops])))
                result.top_logprobs.CopyFrom(self._tensor(request, np.stack([v for _, v in tops])))
            if request.return_text:
                result.text = "".join(toy_model.token_text(t) for t in drawn if t < toy_model.BOS)
            if last:
                if request.prompts[p].HasField("text"):
                    result.prompt_token_ids.extend(prompt)
                result.weight_spans.add(first_token=0, weight_version=self.version)
                if tokens[-1] == toy_model.EOS:
                    result.finish_reason = sample_pb2.FINISH_REASON_STOP
                    result.matched_stop.token_id = toy_model.EOS
                else:
                    result.finish_reason = sample_pb2.FINISH_REASON_LENGTH
            yield result


def _ids(message: Any, *, special: bool) -> list[int]:
    if not message.HasField("text"):
        return list(message.token_ids)
    wanted = special and not (
        message.HasField("add_special_tokens") and not message.add_special_tokens
    )
    return toy_model.encode(message.text, add_special_tokens=wanted)


def processings(request: Any) -> list[Any]:
    """Return the request's processing and those of groups that have their own."""
    if isinstance(request, sample_pb2.SampleRequest):
        return [request.sampling.processing]
    own = [group.processing for group in request.groups if group.HasField("processing")]
    return [request.processing, *own]


def _group_position(request: Any, g: int) -> int:
    return 1 + sum(group.HasField("processing") for group in request.groups[:g])


def resolved_values(processing: Any) -> Any:
    def source(name: str) -> Any:
        if processing.HasField(name):
            return processing_pb2.PROCESSING_SOURCE_REQUEST
        return processing_pb2.PROCESSING_SOURCE_NEUTRAL

    resolved = processing_pb2.ResolvedProcessing()
    for name, neutral in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        field = getattr(resolved, name)
        field.value = getattr(processing, name) if processing.HasField(name) else neutral
        field.source = source(name)
    resolved.keep_realised.source = source("keep_realised")
    return resolved


def _bad(field: str, description: str) -> Any:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field=field, description=description)
    info = error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="scoring.v1")
    return status_pb2.Status(
        code=grpc.StatusCode.INVALID_ARGUMENT.value[0],
        message=f"{field}: {description}",
        details=packed(bad, info),
    )


def packed(*details: Any) -> list[Any]:
    packed = []
    for detail in details:
        message = any_pb2.Any()
        message.Pack(detail)
        packed.append(message)
    return packed
