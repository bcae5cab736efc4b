"""Answers against plain forwards of the weights that they name, row by row.

Supports and draws are those of `tests.kernels.oracle`; nothing here comes from the service but what
was asked and what was answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring_service.engine.events import SampleSlice, ScoreSlice
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    Processing,
    SampleCall,
    SamplingTask,
    ScoreCall,
)
from tests.engine import plain
from tests.kernels import oracle

F64 = NDArray[np.float64]
Ids = NDArray[np.int64]

_RACED = 4
"""Of so many tokens of a sample it is looked whether they won the race: each takes milliseconds."""

_LARGE = 200
"""Of a vocabulary of more tokens the supports of one row in eight are looked at, and no race."""


@dataclass
class Truth:
    """What plain transformers says, by the version of the weights.

    Args:
        networks: version -> network with these weights in float32.
        within: nats by which log-probs may differ.
    """

    networks: dict[int, Any]
    within: float
    _seen: dict[tuple[int, bytes], F64] = field(default_factory=dict)

    def x(self, version: int, ids: NDArray[np.int32], temperature: float) -> F64:
        """Logits of each position divided by the temperature, [L, V]."""
        key = version, ids.tobytes()
        if key not in self._seen:
            self._seen[key] = plain.logits(self.networks[version], ids.tolist())
        logits = self._seen[key].astype(np.float32)
        return (logits / np.float32(temperature or 1.0)).astype(np.float64)

    def forget(self) -> None:
        """Logits that were computed."""
        self._seen.clear()

    def check_completion(
        self, call: ScoreCall, group: GroupTask, task: CompletionTask, slices: list[ScoreSlice]
    ) -> int:
        """Every row that was asked for, once, with its numbers; how many there are."""
        wanted = [row for a, n in task.spans for row in range(a, a + n)]
        wanted += [len(task.token_ids)] * call.next_token
        found = [s.start + i for s in slices for i in range(s.block.rows)]
        assert found == wanted
        assert [s.last for s in slices] == [False] * (len(slices) - 1) + [True]
        (version,) = {s.weight_version for s in slices}
        whole = np.concatenate([group.prompt_ids, task.token_ids])
        x_T_V = self.x(version, whole, group.processing.temperature)
        rows = np.array(wanted)
        self._check_rows(
            call, group.processing, task, slices, x_T_V[len(group.prompt_ids) - 1 + rows], rows
        )
        return len(rows)

    def _check_rows(
        self,
        call: ScoreCall,
        processing: Processing,
        task: CompletionTask,
        slices: list[ScoreSlice],
        x_T_V: F64,
        rows: Ids,
    ) -> None:
        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(s.block, name) for s in slices])

        wants = call.wants
        lp_T_V = plain.log_softmax(x_T_V)
        inside = rows < len(task.token_ids)
        ids = task.token_ids[rows[inside]]
        realised = lp_T_V[inside][np.arange(len(ids)), ids]
        self._close(joined("logprobs"), realised)
        if wants.logsumexp:
            self._close(joined("logsumexps"), plain.logsumexp(x_T_V))
        if wants.entropy:
            entropies = -(np.exp(lp_T_V) * lp_T_V).sum(axis=1)
            np.testing.assert_allclose(joined("entropies"), entropies, atol=20 * self.within)
        if wants.rank:
            larger = (lp_T_V[inside] > realised[:, None] + 2 * self.within).sum(axis=1)
            as_large = (lp_T_V[inside] >= realised[:, None] - 2 * self.within).sum(axis=1)
            ranks = joined("ranks")
            assert (larger < ranks).all()
            assert (ranks <= as_large).all()
        if task.candidate_ids is not None:
            asked = np.broadcast_to(task.candidate_ids, (len(rows), task.candidates))
            expected = np.take_along_axis(lp_T_V, np.maximum(asked, 0).astype(np.int64), axis=1)
            expected[asked < 0] = np.nan
            self._close(joined("candidate_logprobs"), expected)
        if wants.top_k:
            self._check_lists(lp_T_V, joined("top_token_ids"), joined("top_logprobs"))
            outside = lp_T_V.copy()
            np.put_along_axis(outside, joined("top_token_ids").astype(np.int64), -np.inf, axis=1)
            with np.errstate(divide="ignore"):
                tails = np.log(np.exp(outside).sum(axis=1))
            np.testing.assert_allclose(joined("log_tail_masses"), tails, atol=20 * self.within)
        if wants.processed_logprobs or wants.log_kept_mass or wants.support_size:
            self._check_supports(slices, processing, task, x_T_V, rows)

    def _check_lists(self, lp_T_V: F64, ids_T_K: Ids, values_T_K: F64) -> None:
        """The likeliest ids, each once."""
        self._close(values_T_K, np.take_along_axis(lp_T_V, ids_T_K.astype(np.int64), axis=1))
        assert all(len(set(row)) == len(row) for row in ids_T_K.tolist())
        self._close(values_T_K, -np.sort(-lp_T_V, axis=1)[:, : ids_T_K.shape[1]])

    def _check_supports(
        self,
        slices: list[ScoreSlice],
        processing: Processing,
        task: CompletionTask,
        x_T_V: F64,
        rows: Ids,
    ) -> None:
        def joined(name: str) -> list[Any]:
            arrays = [getattr(s.block, name) for s in slices]
            return [] if arrays[0] is None else np.concatenate(arrays).tolist()

        processed, kept, sizes = map(
            joined, ("processed_logprobs", "log_kept_masses", "support_sizes")
        )
        for place, row in enumerate(rows):
            if x_T_V.shape[1] > _LARGE and place % 8:
                continue
            supports = _supports(x_T_V[place], processing, self.within)
            if sizes:
                supports = [keep for keep in supports if keep.sum() == sizes[place]]
                assert supports, (sizes[place], place)
            x_V = x_T_V[place].astype(np.float32)
            if kept:
                masses = [oracle.log_kept_mass(x_V, keep) for keep in supports]
                assert self._any_close(kept[place], masses)
            if processed and row < len(task.token_ids):
                token = task.token_ids[row]
                values = [oracle.processed_logprobs(x_V, keep)[token] for keep in supports]
                assert self._any_close(processed[place], values), (processed[place], values)

    def check_sample(
        self,
        call: SampleCall,
        task: SamplingTask,
        index: int,
        slices: list[SampleSlice],
        eos_ids: tuple[int, ...],
        rng: np.random.Generator,
    ) -> int:
        """Every token, once, with its numbers, and how it ends; how many there are."""
        starts = np.cumsum([0, *[len(s.token_ids) for s in slices]])
        assert [s.start for s in slices] == starts[:-1].tolist()
        assert [s.last for s in slices] == [False] * (len(slices) - 1) + [True]
        ids = np.concatenate([s.token_ids for s in slices])
        versions = np.concatenate([[s.weight_version] * len(s.token_ids) for s in slices])
        stops = set(task.stop_token_ids) | set(() if task.ignore_eos else eos_ids)
        _check_end(task, ids, stops, slices[-1])
        raced = set(rng.choice(len(ids), size=min(_RACED, len(ids)), replace=False).tolist())
        whole = np.concatenate([task.prompt_ids, ids])
        position = len(task.prompt_ids)
        logprobs = np.concatenate([s.logprobs for s in slices])
        processed = np.concatenate([s.processed_logprobs for s in slices])
        for place, (token, version) in enumerate(zip(ids, versions.tolist(), strict=True)):
            x_V = self.x(version, whole, task.processing.temperature)[position + place - 1]
            lp_V = plain.log_softmax(x_V[None])[0]
            self._close(logprobs[place], lp_V[token])
            if call.top_logprobs:
                lists = [np.concatenate([getattr(s, name) for s in slices])[place][None]
                         for name in ("top_token_ids", "top_logprobs")]  # fmt: skip
                self._check_lists(lp_V[None], *lists)
            allowed_V = x_V.copy()
            if place < task.min_tokens:
                allowed_V[sorted(stops)] = -np.inf
            if task.processing.temperature == 0.0:
                assert allowed_V[token] >= allowed_V.max() - 2 * self.within
                assert processed[place] == 0
                continue
            if len(x_V) > _LARGE and place % 8:
                continue
            supports = _supports(allowed_V, task.processing, self.within)
            x32_V = allowed_V.astype(np.float32)
            values = [oracle.processed_logprobs(x32_V, keep)[token] for keep in supports]
            assert self._any_close(processed[place], values), (processed[place], values)
            if place in raced and len(x_V) <= _LARGE:
                races = [
                    oracle.race(x32_V, keep, task.seed, index, position + place)
                    for keep in supports
                ]
                assert any(race[token] <= min(race) + 4 * self.within for race in races)
        return len(ids)

    def _close(self, found: Any, expected: Any) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=self.within)

    def _any_close(self, found: float, expected: list[float]) -> bool:
        return any(found == e or abs(found - e) <= 4 * self.within for e in expected)


def _supports(x_V: F64, processing: Processing, within: float) -> list[NDArray[np.bool_]]:
    """What truncation may keep where its edges are within so many nats: mostly one support."""
    found = {}
    for slack in (0.0, -1.0, 1.0):
        top_p = processing.top_p
        if top_p < 1.0:
            top_p = min(1 - 1e-9, top_p + slack * within)
        min_p = processing.min_p * math.exp(-slack * 2 * within)
        keep = oracle.support(x_V.astype(np.float32), processing.top_k, top_p, min_p)
        found[keep.tobytes()] = keep
    # And where the last that is kept and the first that is not are as good as equal.
    keep = next(iter(found.values()))
    if not keep.all() and keep.any():
        last = int(np.where(keep, x_V, np.inf).argmin())
        first = int(np.where(keep, -np.inf, x_V).argmax())
        if x_V[last] - x_V[first] <= 2 * within:
            other = keep.copy()
            other[[last, first]] = False, True
            found[other.tobytes()] = other
    return list(found.values())


def _check_end(
    task: SamplingTask, ids: NDArray[np.int32], stops: set[int], last: SampleSlice
) -> None:
    """It ends with the first stop id or text behind `min_tokens` tokens, or at its length."""
    assert 1 <= len(ids) <= task.max_tokens
    stopping = [place for place, i in enumerate(ids.tolist()) if i in stops]
    assert all(place >= task.min_tokens for place in stopping)
    if stopping:
        assert stopping == [len(ids) - 1]
        assert (last.finish_reason, last.matched_stop) == ("stop", ids[-1])
    elif isinstance(last.matched_stop, str):
        assert last.matched_stop in task.stop
        assert len(ids) > task.min_tokens
    else:
        assert len(ids) == task.max_tokens
        assert (last.finish_reason, last.matched_stop) == ("length", None)
