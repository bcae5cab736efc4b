"""Whether a step's rows meet anywhere but in attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.attention.pages import LayerShape, PagePool, pages_for, slots_of
from scoring_service.engine.attention.segments import DecodeToken
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.packed.steps.body import PackedBody, Step

_ROWS = 32
_LEAST_ERROR = 1e-5
"""Of a state, relative: what is less is rounding in float32 as well."""


def rows_keep_apart(model: CausalModel, shapes: list[LayerShape]) -> bool:
    """Puts sequences of one token each in another order, and looks whether their states notice.

    A convolution over neighbouring tokens or a recurrence takes what lies before a row for its
    past. That may change so little that no comparison with a forward pass of another shape tells it
    from rounding. Here the shapes are the same, so that there is next to no rounding.

    Args:
        model: whose attention is packed.
        shapes: what its layers keep of a token.
    """
    pool = PagePool(shapes, _ROWS * pages_for(1), model.dtype, model.device)
    ids = np.arange(_ROWS) * 7 % model.head.vocab_size
    tokens = [DecodeToken(int(token_id), slots_of(pool.take(1), 1)) for token_id in ids]
    body = PackedBody(model, pool)
    one, again = _states(body, tokens), _states(body, tokens)
    other = _states(body, tokens[::-1]).flip(0)
    rounding = max(torch.finfo(model.dtype).eps / 16, _LEAST_ERROR) * one.norm(dim=1)
    # What a device that is not deterministic does by itself is no sign of anything.
    unchanged_T = (one - other).norm(dim=1) <= rounding + 4 * (one - again).norm(dim=1)
    # Most of them, because rounding may send a token of a mixture to another expert.
    return bool(unchanged_T.float().mean() > 0.5)


def _states(body: PackedBody, tokens: list[DecodeToken]) -> Tensor:
    return body.run(Step((), tuple(tokens))).states_T_H.float()
