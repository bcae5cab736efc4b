"""What a trainer hands in: a module, a mapping, or an iterator that makes tensors as it goes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from scoring_client.errors import InvalidRequestError
from scoring_client.weights.tensors import gathered, is_sharded

Weights = Mapping[str, Any] | Iterable[tuple[str, Any]] | Any
"""A module, its ``state_dict``, or pairs of name and tensor."""


class GivenWeights:
    """Tensors by name, read once.

    With FSDP every rank takes part when a sharded tensor is gathered, whether here or inside of the
    trainer's iterator. So whoever began to read has to end it, or other ranks wait for ever:
    sharded tensors and iterators are read in the order in which they are given, all of them, also
    when the push failed (``read_rest``).
    """

    def __init__(self, weights: Weights) -> None:
        """Take the weights, without looking at any tensor's elements.

        Raises:
            InvalidRequestError: something else, such as the path of a file, or a model with LoRA
                adapters that are not merged.
        """
        _refuse_others(weights)
        is_module = hasattr(weights, "state_dict")
        self.merged_lora = is_module and _merged_lora(weights)
        """Whether it is a model whose base layers include PEFT's adapters."""
        found: Any = weights
        if is_module:
            found = found.state_dict()
        self.mapping: Mapping[str, Any] | None = None
        """The tensors, all at once and in any order, unless they have to be read one by one."""
        if isinstance(found, Mapping) and not any(map(is_sharded, found.values())):
            self.mapping = found
            self._pairs: Iterator[tuple[str, Any]] = iter(())
        else:
            pairs = found.items() if isinstance(found, Mapping) else found
            self._pairs = iter(cast(Iterable[tuple[str, Any]], pairs))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield names and whole tensors in the order given, where there is no mapping."""
        for name, tensor in self._pairs:
            yield name, gathered(tensor)

    def read_rest(self) -> None:
        """Read what was not read, for the other ranks' sake. Its errors are not the first ones."""
        with suppress(Exception):
            for _ in self:
                pass


def _refuse_others(weights: Any) -> None:
    is_path = isinstance(weights, (str, bytes, os.PathLike))
    if is_path or not (hasattr(weights, "state_dict") or isinstance(weights, Iterable)):
        got = "a path: use update_weights(path=…)" if is_path else type(weights).__name__
        raise InvalidRequestError(
            f"weights: expected a module, a mapping or (name, tensor) pairs, got {got}"
        )


def _merged_lora(module: Any) -> bool:
    """Return whether PEFT's layers are merged; a module without any has nothing to merge.

    Raises:
        InvalidRequestError: some are not.
    """
    if not hasattr(module, "modules"):
        return False
    merged = [
        m.merged for m in module.modules() if hasattr(m, "base_layer") and hasattr(m, "merged")
    ]
    if not all(merged):
        raise InvalidRequestError(
            f"{merged.count(False)} of {len(merged)} layers with LoRA adapters are not merged: "
            "call model.merge_adapter() before the push, and model.unmerge_adapter() after it"
        )
    return bool(merged)


def gather_weights(weights: Weights) -> None:
    """Take part in gathering sharded tensors, on the ranks that push nothing.

    Args:
        weights: The same as on the rank that pushes.
    """
    given = GivenWeights(weights)
    for _ in given:
        pass
