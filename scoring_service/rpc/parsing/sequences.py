"""Token sequences from requests: ids checked, text tokenised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scoring_service.errors import invalid
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.types import Int32Array


def read_tokens(
    view: ModelView,
    token_ids: Sequence[int],
    text: str | None,
    path: str,
    add_special_tokens: bool | None = None,
    is_prompt: bool = False,
) -> Int32Array:
    """The ids of a sequence given as ids or as text.

    Args:
        view: the model.
        token_ids: as in the message; empty = not given.
        text: None = not given.
        path: of the sequence, for error messages.
        add_special_tokens: as in the message; None = unset.
        is_prompt: special tokens are for the text of prompts only.

    Raises:
        ServiceError: INVALID_FIELD, TOKENIZER_UNAVAILABLE.
    """
    if len(token_ids) and text is not None:
        raise invalid(path, "has both token_ids and text; give exactly one")
    if text is not None:
        return _tokenise(view, text, path, is_prompt and add_special_tokens is not False)
    if not len(token_ids):
        raise invalid(path, "is empty: give token_ids or text")
    if add_special_tokens is not None:
        raise invalid(f"{path}.add_special_tokens", "is for text; token_ids are never changed")
    ids = np.array(token_ids, dtype=np.int32)
    check_ids(ids, view.info.vocab_size, f"{path}.token_ids")
    return ids


def check_ids(ids: Int32Array, vocab_size: int, path: str, least: int = 0) -> None:
    """Raises for the first id outside [least, vocab_size), naming its place.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    bad = (ids < least) | (ids >= vocab_size)
    if not bad.any():
        return
    place = np.argwhere(bad)[0]
    value = int(ids[tuple(place)])
    where = path + "".join(f"[{index}]" for index in place)
    if value < least:
        raise invalid(where, f"{value} is negative" if least == 0 else f"{value} < {least}")
    raise invalid(where, f"{value} ≥ vocabulary {vocab_size}")


def _tokenise(view: ModelView, text: str, path: str, add_special_tokens: bool) -> Int32Array:
    codec, most = view.codec(f"{path}.text"), view.limits.max_sequence_tokens
    # To encode a text takes seconds for each megabyte.
    if len(text) > most and (least := codec.token_lower_bound(text)) > most:
        raise invalid(f"{path}.text", f"has {least} tokens or more; at most {most}")
    ids = codec.encode(text, add_special_tokens=add_special_tokens)
    if not ids:
        raise invalid(f"{path}.text", f"{text!r} has no tokens")
    array = np.array(ids, dtype=np.int32)
    check_ids(array, view.info.vocab_size, f"{path}.text, tokenised")
    return array
