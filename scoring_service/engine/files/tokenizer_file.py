"""A model's tokenizer, as the JSON that every process makes its own from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from scoring_service.engine.files.model_source import source_of
from scoring_service.engine.files.network import unloadable
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.types import EngineConfig


def load_tokenizer(config: EngineConfig) -> tuple[str | None, str]:
    """The fast tokenizer's JSON, or None and why there is none.

    Token ids can be scored without one, so that only a folder whose own is broken is refused.

    Raises:
        ConfigurationError: the folder has a tokenizer, and it cannot be read.
    """
    source, arguments = source_of(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    except Exception as error:  # the errors of many parsers have no common base
        refusal = unloadable(f"the tokenizer of {config.model!r}", error)
        if (Path(source) / "tokenizer.json").is_file():
            raise refusal from error
        return None, str(refusal)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None, f"{type(tokenizer).__name__} has no form that the tokenizers library reads"
    if _is_made_up(backend):
        return None, f"{config.model!r} comes without one"
    return backend.to_str(), ""


def _is_made_up(backend: Any) -> bool:
    """Where a model has no tokenizer, transformers makes one up that knows special tokens only."""
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    return set(backend.get_vocab(with_added_tokens=False)) <= special


def bos_token_id(codec: TextCodec | None) -> int | None:
    """The id that `add_special_tokens` puts before a text, where it does."""
    ids = [] if codec is None else codec.encode("", add_special_tokens=True)
    return ids[0] if ids else None
