"""A teacher's answer as tensors: what the losses take. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoring_client.training.given import Given, of_array
from scoring_client.values.results import CompletionScores, CompletionTopK


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherRows:
    """What a teacher says of N rows. All log-probs are over its full vocabulary, in nats."""

    token_ids: Tensor
    """int64 [N, K], an id at most once in a row; negative = none (its log-prob is not read)."""
    logprobs: Tensor
    """[N, K], at ``token_ids``."""
    log_tail_masses: Tensor | None = None
    """[N]: log of the probability outside ``token_ids``. None = not known."""
    candidate_ids: Tensor | None = None
    """int64 [N, C]: further ids, such as the student's own top-C; negative = none. Those that are
    in the list already count once."""
    candidate_logprobs: Tensor | None = None
    """[N, C], at ``candidate_ids``."""
    realised_ids: Tensor | None = None
    """int64 [N], the tokens that were drawn."""
    realised_logprobs: Tensor | None = None
    """[N], of the tokens that were drawn."""

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: they do not fit.
        """
        if self.token_ids.ndim != 2 or self.logprobs.shape != self.token_ids.shape:
            raise ValueError(
                "token_ids and logprobs must both be [N, K], got "
                f"{list(self.token_ids.shape)} and {list(self.logprobs.shape)}"
            )
        rows = len(self.token_ids)
        if (self.candidate_ids is None) != (self.candidate_logprobs is None):
            raise ValueError("candidate_ids and candidate_logprobs go together")
        if self.candidate_ids is not None and self.candidate_logprobs is not None:
            shape = list(self.candidate_ids.shape)
            if len(shape) != 2 or shape[0] != rows or shape != list(self.candidate_logprobs.shape):
                raise ValueError(
                    f"candidate_ids and candidate_logprobs must both be [{rows}, C], got "
                    f"{shape} and {list(self.candidate_logprobs.shape)}"
                )
        for name in ("log_tail_masses", "realised_ids", "realised_logprobs"):
            value = getattr(self, name)
            if value is not None and value.shape != (rows,):
                raise ValueError(f"{name} must be [{rows}], got {list(value.shape)}")

    def soft_targets(self, *, renormalize: bool = True) -> Tensor:
        """Return weights [N, K] for ``soft_cross_entropy``: the teacher's probabilities.

        Args:
            renormalize: Divide by their sum, so that each row's weights add up to 1.
        """
        logprobs = self.logprobs.masked_fill(self.token_ids < 0, -torch.inf)
        return logprobs.softmax(dim=1) if renormalize else logprobs.exp()


def teacher_rows(
    scores: Iterable[CompletionTopK],
    candidates: Iterable[Given] | None = None,
    device: torch.device | str | None = None,
) -> TeacherRows:
    """Return the rows of several answers of ``topk_logprobs``, end to end.

    Everything comes from the one request: the list, its summed tail, the realised token's own
    log-prob, and with ``candidates`` the log-probs at the student's ids. Nothing is rebuilt from a
    list, and nothing floored.

    Args:
        scores: Completions, in the order of the student's rows.
        candidates: The ids [T, C] that were asked with each completion.
        device: Where the tensors go.

    Raises:
        ValueError: no completion, one that failed or has no list, something else than completions,
            or candidates without answers.
    """
    given: Any = scores
    parts = [given] if isinstance(given, CompletionScores) else list(given)
    if isinstance(given, CompletionScores) or not all(
        isinstance(part, CompletionScores) for part in parts
    ):
        raise ValueError(
            "expected completions of topk_logprobs, results.completions() or some of them in a "
            f"list, got {type(given).__name__}"
        )
    if not parts:
        raise ValueError("no completion is there: a loss of no row has no value")
    for part in parts:
        place = f"groups[{part.group_index}].completions[{part.completion_index}]"
        if part.error is not None:
            raise ValueError(f"{place} failed: {part.error}")
        if not isinstance(part, CompletionTopK):
            raise ValueError(f"{place} has no list: ask topk_logprobs, not score")

    def joined(name: str, dtype: torch.dtype) -> Tensor:
        arrays = [getattr(part, name) for part in parts]
        if any(array is None for array in arrays):
            raise ValueError(f"{name} was not asked of every completion")
        return torch.from_numpy(np.concatenate(arrays)).to(device=device, dtype=dtype)

    candidate_ids = candidate_logprobs = None
    if candidates is not None:
        candidate_ids = torch.cat(
            [
                of_array(ids) if isinstance(ids, np.ndarray) else torch.as_tensor(ids)
                for ids in candidates
            ]
        )
        candidate_ids = candidate_ids.to(device=device, dtype=torch.int64)
        candidate_logprobs = joined("candidate_logprobs", torch.float32)
    return TeacherRows(
        token_ids=joined("top_token_ids", torch.int64),
        logprobs=joined("top_logprobs", torch.float32),
        log_tail_masses=joined("log_tail_masses", torch.float32),
        candidate_ids=candidate_ids,
        candidate_logprobs=candidate_logprobs,
        realised_ids=joined("token_ids", torch.int64),
        realised_logprobs=joined("logprobs", torch.float32),
    )
