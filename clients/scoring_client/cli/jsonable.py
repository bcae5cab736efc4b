"""Results as plain values that JSON can hold."""

import dataclasses
import math
from typing import Any

import numpy as np

from scoring_client.errors import ScoringError


def jsonable(value: Any) -> Any:
    """Return dataclasses, arrays and tuples as dicts, lists and numbers, errors as their words.

    JSON has no infinities and no NaN: they become the strings "Infinity", "-Infinity" and "NaN", as
    in the JSON of protobuf.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, ScoringError):
        return {"reason": value.reason, "message": str(value)}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
