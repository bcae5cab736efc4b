"""A residual stream in float32 under a half-precision body, as mixed-precision training has it.

Most of the rounding of a half-precision body is the residual stream's, which every layer adds to.
Embeddings are widened once and norms give their weight's type, so that matrix products see what
they see otherwise; sums of the two types are float32 by torch's own rules. Whether a network works
that way is found out by trying.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoring_service.errors import ConfigurationError

CHOICES = ("auto", "float32")

_TOKENS = 24
_LARGEST_ERROR = 0.1
"""Of a row's logits, relative, as the median of rows: both ways are half precision."""


def choose_residuals(network: Any, asked: str) -> torch.dtype:
    """Widens the residual stream of a network for good, if that is asked for.

    Args:
        network: transformers' own.
        asked: one of `CHOICES`; "auto" = the body's own type.

    Returns:
        The type of the stream.

    Raises:
        ConfigurationError: there is no such type, or the network cannot work with it.
    """
    if asked not in CHOICES:
        raise ConfigurationError(f"residual dtype {asked!r} is none of {', '.join(CHOICES)}")
    dtype: torch.dtype = network.dtype
    if asked == "auto" or dtype == torch.float32:
        return dtype
    expected = _logits(network)
    _widen(network, dtype)
    try:
        found = _logits(network)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigurationError(f"{_REFUSAL}: a forward pass failed: {reason}") from error
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    # The median, because rounding may send a token of a mixture to another expert.
    if not bool(errors.median() < _LARGEST_ERROR):
        raise ConfigurationError(f"{_REFUSAL}: it answers something else with it")
    return torch.float32


_REFUSAL = "the residual stream of this model cannot be kept in float32"


def _logits(network: Any) -> Tensor:
    """[T, V] in float32, of a made-up text."""
    vocab = network.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[(7 * i + 3) % vocab for i in range(_TOKENS)]], device=network.device)
    with torch.inference_mode():
        logits: Tensor = network(input_ids=ids, use_cache=False).logits[0].float()
    return logits


def _widen(network: Any, dtype: torch.dtype) -> None:
    embedding = network.get_input_embeddings()
    embedding.register_forward_hook(lambda _module, _inputs, rows: rows.float())
    for module in network.modules():
        name = type(module).__name__
        if name.endswith("Norm") and isinstance(getattr(module, "weight", None), Tensor):
            module.__dict__["forward"] = narrowing(module)
        elif "Rotary" in name:
            # They take their type from the stream, and queries and keys would take it from them.
            module.register_forward_hook(partial(_narrow_tables, dtype))


def narrowing(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward of a norm that takes float32 rows too, and gives its weight's type."""
    return partial(_layer_norm, norm) if isinstance(norm, nn.LayerNorm) else partial(_norm, norm)


def _norm(norm: Any, rows: Tensor) -> Tensor:
    found: Tensor = type(norm).forward(norm, rows)
    return found.to(norm.weight.dtype)


def _layer_norm(norm: nn.LayerNorm, rows: Tensor) -> Tensor:
    bias = None if norm.bias is None else norm.bias.to(rows.dtype)
    weight = norm.weight.to(rows.dtype)
    found = nn.functional.layer_norm(rows, norm.normalized_shape, weight, bias, norm.eps)
    return found.to(norm.weight.dtype)


def _narrow_tables(dtype: torch.dtype, _module: nn.Module, _inputs: Any, tables: Any) -> Any:
    if isinstance(tables, tuple):
        return tuple(table.to(dtype) for table in tables)
    return tables
