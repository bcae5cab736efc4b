"""The independent reference: transformers' own forward, then float64 in numpy.

Nothing here comes from the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

F64 = NDArray[np.float64]


def load(source: Path, dtype: torch.dtype) -> Any:
    """A folder or a .gguf file as transformers loads it."""
    where = {"gguf_file": source.name} if source.is_file() else {}
    folder = source.parent if source.is_file() else source
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where).eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        # transformers' default attention leaves it out.
        model.set_attn_implementation("eager")
    return model


def logits(model: Any, ids: list[int]) -> F64:
    """The model's own logits of every position of one sequence, [L, V]."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]))
    return output.logits[0].double().numpy()


def row_logits(model: Any, prompt: list[int], completion: list[int]) -> F64:
    """Logits of the completion's rows and of the one after them, [T + 1, V]."""
    return logits(model, [*prompt, *completion])[len(prompt) - 1 :]


def generate(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    """The tokens that the model itself draws at temperature 0."""
    with torch.no_grad():
        whole = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=max_tokens, pad_token_id=0
        )
    return whole[0, len(prompt) :].tolist()


def log_softmax(x_T_V: F64) -> F64:
    """Log-softmax of each row in float64."""
    return x_T_V - logsumexp(x_T_V)[:, None]


def logsumexp(x_T_V: F64) -> F64:
    """log(sum(exp(x))) of each row in float64."""
    max_T = x_T_V.max(axis=1)
    return max_T + np.log(np.exp(x_T_V - max_T[:, None]).sum(axis=1))


@dataclass(frozen=True)
class Rows:
    """What float64 makes of the logits of a completion's rows and of the one after them."""

    logprobs: F64
    """Of the completion's tokens, [T]."""
    entropies: F64
    logsumexps: F64
    larger: NDArray[np.int64]
    """Tokens that are more likely than the completion's by more than `margin`, [T]."""
    as_large: NDArray[np.int64]
    """Tokens, itself included, that are not less likely by more than `margin`, [T]."""
    top_ids: NDArray[np.int64]
    """[T + 1, K + 1], most likely first."""
    top_logprobs: F64
    log_tail_masses: F64
    """Log of the probability outside the first K, [T + 1]."""


def rows(x_T_V: F64, completion: list[int], k: int, margin: float) -> Rows:
    """Everything a row can be asked for, of logits [T + 1, V] divided by the temperature."""
    lp_T_V = log_softmax(x_T_V)
    realised = lp_T_V[np.arange(len(completion)), completion]
    largest = np.argpartition(-lp_T_V, k, axis=1)[:, : k + 1]
    by_size = np.argsort(-np.take_along_axis(lp_T_V, largest, axis=1), axis=1)
    order = np.take_along_axis(largest, by_size, axis=1)
    top = np.take_along_axis(lp_T_V, order, axis=1)
    outside = lp_T_V.copy()
    np.put_along_axis(outside, order[:, :k], -np.inf, axis=1)
    scored = lp_T_V[: len(completion)]
    return Rows(
        logprobs=realised,
        entropies=-(np.exp(lp_T_V) * lp_T_V).sum(axis=1),
        logsumexps=logsumexp(x_T_V),
        larger=(scored > realised[:, None] + margin).sum(axis=1),
        as_large=(scored >= realised[:, None] - margin).sum(axis=1),
        top_ids=order,
        top_logprobs=top,
        log_tail_masses=logsumexp(outside),
    )
