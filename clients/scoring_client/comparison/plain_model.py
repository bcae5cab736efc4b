"""A checkpoint through plain transformers in this process: what a server is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def hide_progress() -> None:
    """Have transformers draw no bars while it loads, in this whole process."""
    logging.disable_progress_bar()


def _source(path: str) -> tuple[str, dict[str, Any]]:
    """Return what transformers is given for a folder, a Hub id or a .gguf file."""
    if path.endswith(".gguf"):
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    return path, {}


def tokenize(path: str, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids by the checkpoint's own tokenizer, special tokens included."""
    source, options = _source(path)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return [list(tokenizer(text)["input_ids"]) for text in texts]


class PlainModel:
    """A checkpoint in one element type, on the CPU; a text a forward pass."""

    def __init__(self, path: str, dtype: str) -> None:
        """Load a folder, a Hub id or a .gguf file.

        Args:
            path: Of the checkpoint.
            dtype: Name of the torch type of everything, the head included.

        Raises:
            OSError: there is no such checkpoint.
        """
        source, options = _source(path)
        self._model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), **options
        ).eval()

    def by_temperature(
        self, token_ids: Sequence[int]
    ) -> Callable[[float], npt.NDArray[np.float64]]:
        """Return a function from temperatures to what the model says of tokens 1, 2, …, [L - 1].

        Logits are divided and normalised in float64, whatever type they were computed in.
        """
        ids = torch.tensor([list(token_ids)])
        with torch.inference_mode():
            logits = self._model(input_ids=ids).logits[0, :-1].double()
        realised = ids[0, 1:, None]

        def logprobs(temperature: float) -> npt.NDArray[np.float64]:
            scaled = logits / temperature
            found = scaled.gather(1, realised)[:, 0] - scaled.logsumexp(1)
            return np.asarray(found.numpy())

        return logprobs

    def logprobs(self, token_ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return [L - 1]: what the model says of tokens 1, 2, …, at temperature 1."""
        return self.by_temperature(token_ids)(1.0)
