"""A residual stream in float32 under a half-precision body, as mixed-precision training has it.

Most of the rounding of a half-precision body is the residual stream's, which every layer adds to.
Embeddings are widened once and norms give their weight's type, so that matrix products see what
they see otherwise; sums of the two types are float32 by torch's own rules. Whether a network works
that way is found out by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoring_service.errors import ConfigurationError

CHOICES = ("auto", "float32")

_TOKENS = 24
_MAX_ERROR = 0.1
"""Of a row's logits, relative, as the median of rows: both ways are half precision."""


_OF_A_FORWARD = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a network raises that meets types it was not made for."""


class _CannotWidenError(Exception):
    """Why a network's stream stays as it is."""


def choose_residuals(network: Any, asked: str, limit: int) -> torch.dtype:
    """Widens the residual stream of a network for good, if that is asked for.

    Args:
        network: transformers' own.
        asked: one of `CHOICES`; "auto" = the body's own type.
        limit: tokens of its longest sequence.

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
    vocab = network.get_input_embeddings().weight.shape[0]
    ids = [(7 * i + 3) % vocab for i in range(min(_TOKENS, limit))]
    try:
        expected = _logits(network, ids)
        _widen(network, dtype)
        with _watching_the_stream(network):
            found = _logits(network, ids)
    except _CannotWidenError as error:
        reason = str(error)
    except _OF_A_FORWARD as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = f"a forward pass failed: {lines[0][:200]}"
    else:
        errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
        # The median, because rounding may send a token of a mixture to another expert.
        if bool(errors.median() < _MAX_ERROR):
            return torch.float32
        reason = "it answers something else with it"
    raise ConfigurationError(
        f"the residual stream of this model cannot be kept in float32: {reason}"
    )


def _logits(network: Any, ids: list[int]) -> Tensor:
    """[T, V] in float32; the last row from a step of its own, where the network has a cache."""
    tokens = torch.tensor([ids], device=network.device)
    with torch.inference_mode():
        output = network(input_ids=tokens[:, :-1], use_cache=True)
        logits: Tensor = output.logits[0]
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            last = network(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True)
            logits = torch.cat([logits, last.logits[0]])
    return logits.float()


@contextmanager
def _watching_the_stream(network: Any) -> Iterator[None]:
    """Looks at what the last norm over whole rows gets: the stream.

    Norms give the body's type, so one that stands in the stream itself narrows it for good.

    Raises:
        _CannotWidenError: it is not float32, or there is no such norm to tell.
    """
    width = network.get_input_embeddings().weight.shape[1]
    seen: list[torch.dtype] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.extend(rows.dtype for rows in [*inputs, *named.values()][:1])

    norms = [m for m in network.modules() if _is_norm(m) and m.weight.shape[-1] == width]
    hooks = [norm.register_forward_pre_hook(note, with_kwargs=True) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise _CannotWidenError("it has no norm that would show it")
    if seen[-1] != torch.float32:
        name = str(seen[-1]).removeprefix("torch.")
        raise _CannotWidenError(f"something in it is of type {name}, such as a norm of embeddings")


def _widen(network: Any, dtype: torch.dtype) -> None:
    embedding = network.get_input_embeddings()
    embedding.register_forward_hook(lambda _module, _inputs, rows: rows.float())
    for module in network.modules():
        if _is_norm(module):
            module.__dict__["forward"] = narrowing(module)
        elif "Rotary" in type(module).__name__:
            # They take their type from the stream, and queries and keys would take it from them.
            module.register_forward_hook(partial(_narrow_tables, dtype))


def _is_norm(module: Any) -> bool:
    named = type(module).__name__.lower().endswith("norm")
    return named and isinstance(getattr(module, "weight", None), Tensor)


def narrowing(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward of a norm that takes float32 rows too, and gives its weight's type."""
    return partial(_layer_norm, norm) if type(norm) is nn.LayerNorm else partial(_norm, norm)


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
