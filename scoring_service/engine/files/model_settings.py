"""What a model's config says of its log-probs, and where two configs differ in that."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose
from typing import Any

from scoring_service.engine.model.numerics import settings_of

_SAY_NOTHING = frozenset(
    {
        "architectures",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "gradient_checkpointing",
        "id2label",
        "label2id",
        "layerdrop",
        "num_nextn_predict_layers",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "router_jitter_noise",
        "tie_word_embeddings",
        "torch_dtype",
        "use_cache",
    }
)
"""Settings of training, of other uses, and of what the tensors themselves tell."""

_SAY_NOTHING_PREFIXES = ("_", "initializer_", "summary_")
_SAY_NOTHING_ENDS = ("_token_id", "_coef", "pdrop")

_POSITIONS = "max_position_embeddings"
_ROPES_WITHOUT_A_LENGTH = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that do not depend on how long a sequence may be."""

_TOLERANCE = 1e-6
"""Relative: some formats keep numbers in float32."""


def model_settings(config: Any) -> dict[str, Any]:
    """Settings that decide log-probs, those of the text alone.

    Args:
        config: transformers' own.
    """
    found = {
        name: setting
        for name, setting in settings_of(config.get_text_config()).items()
        if not _says_nothing(name)
    }
    ropes = set(map(str, _rope_types(found.get("rope_parameters"))))
    if ropes and ropes <= _ROPES_WITHOUT_A_LENGTH:
        found.pop(_POSITIONS, None)
    return found


def settings_difference(served: dict[str, Any], found: dict[str, Any]) -> str:
    """A setting that differs, in words; empty if none does.

    Args:
        served: of the server's model.
        found: of another one's files. What only one of the two has is not transformers' own: with
            defaults, both have all that the model knows.
    """
    differences = (
        difference
        for name in sorted(served.keys() & found.keys())
        for difference in _differences(name, served[name], found[name])
    )
    return next(differences, "")


def _differences(name: str, served: Any, found: Any) -> Iterator[str]:
    if isinstance(served, dict) and isinstance(found, dict):
        for key in sorted(served.keys() | found.keys()):
            yield from _differences(f"{name}.{key}", served.get(key), found.get(key))
    elif not _is_equal(served, found):
        yield f"their config has {name} {found!r}, not {served!r}"


def _is_equal(served: Any, found: Any) -> bool:
    if isinstance(served, int | float) and isinstance(found, int | float):
        return isclose(served, found, rel_tol=_TOLERANCE)
    return bool(served == found)


def _says_nothing(name: str) -> bool:
    return (
        name in _SAY_NOTHING
        or name.startswith(_SAY_NOTHING_PREFIXES)
        or name.endswith(_SAY_NOTHING_ENDS)
        or "dropout" in name
    )


def _rope_types(parameters: Any) -> Iterator[Any]:
    """Of all layers, or by their types."""
    if isinstance(parameters, dict):
        if "rope_type" in parameters:
            yield parameters["rope_type"]
        for part in parameters.values():
            yield from _rope_types(part)
