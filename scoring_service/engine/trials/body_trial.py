"""Whether a body with kernels in it computes what it computed without, in a packed step.

Each kernel is tried by itself, on random rows that lie side by side (`engine.fused.modules`). Steps
have rows that lie otherwise, for which Triton may compile a kernel anew: a step at load does that
too, so that no request waits for it.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from scoring_service.engine.attention.pages import LayerShape, PagePool, pages_for
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.fused.trials import first_line
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.packed.steps.body import PackedBody, Step
from scoring_service.engine.trials.closeness import states_agree
from scoring_service.kernels import dispatch

_TOKENS = 32
"""Which every packed model's sequences may have."""


def fuse_in_steps(model: CausalModel, shapes: list[LayerShape]) -> str:
    """Lets a body use the kernels that agree, and none if a step does not agree; what was given up.

    The C++ kernels are taken as they are: they are compiled once for whatever rows there are.

    Args:
        model: not fused yet.
        shapes: what its layers keep of a token.
    """
    if model.kernels is not None or dispatch.body_kernels(model.device) is None:
        model.fuse_layers()
        return model.fused.note
    expected = _states(model, shapes)
    model.fuse_layers()
    if not model.fused.kernels:
        return model.fused.note
    try:
        agrees = states_agree(_states(model, shapes), expected, model.dtype)
        refusal = "" if agrees else "a step's states are not what they are without"
    except Exception as error:  # noqa: BLE001 - whatever it is, torch's operators do without
        refusal = first_line(error)
    if not refusal:
        return model.fused.note
    model.fused.undo()
    return f"; without the kernels of the body: {refusal}"


def _states(model: CausalModel, shapes: list[LayerShape]) -> Tensor:
    ids = np.array([(13 * i + 7) % model.head.vocab_size for i in range(_TOKENS)], dtype=np.int32)
    pool = PagePool(shapes, pages_for(_TOKENS), model.dtype, model.device)
    segments = SegmentStore(pool, _TOKENS).prompt(ids, b"")
    return PackedBody(model, pool).run(Step.of(segments)).states_T_H[:_TOKENS]
