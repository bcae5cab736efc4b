"""Parameters that hypothesis finds, a row each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoring_service.kernels import reference
from scoring_service.kernels.gpu import race
from scoring_service.kernels.gpu.tile import TritonTile
from tests.kernels import cases
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.support import assert_like_reference, row_parameters
from tests.kernels.gpu.test_race import keys_of

pytest.importorskip("hypothesis", reason="a bare GPU machine has none")

from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = st.integers(0, 2**32 - 1)


@given(
    data=st.data(),
    top_k=st.integers(-1, 40),
    seed=st.integers(0, 2**64 - 1),
    sample=WORDS,
    position=WORDS,
)
@settings(max_examples=12)
def test_row_parameters(
    data: st.DataObject, top_k: int, seed: int, sample: int, position: int
) -> None:
    """On rows full of ties, and beside a row that has min-p alone: x, supports and draws."""
    floats = st.floats(2**-10, 1.0, width=32)
    top_p, min_p = data.draw(floats), data.draw(st.sampled_from([0.0, 1.0]) | floats)
    temperatures = data.draw(st.lists(st.floats(2**-5, 8.0, width=32), min_size=2, max_size=2))
    rng = np.random.default_rng(seed)
    logits = np.stack([cases.quantised(rng, 33), cases.continuous(rng, 33)])
    logits_T_V = torch.from_numpy(logits).to(DEVICE)
    temperature_T = torch.tensor(temperatures, device=DEVICE)
    tile = TritonTile(logits_T_V, temperature_T)
    x_T_V = logits_T_V / temperature_T[:, None]
    assert torch.equal(tile.x_T_V, x_T_V)
    rows = [cases.Setting(1.0, top_k, top_p, min_p), cases.Setting(1.0, 0, 1.0, min_p)]
    assert_like_reference(x_T_V, rows)
    inputs = [seed] * 2, [sample] * 2, [position] * 2
    drawn_T = tile.draw_from(tile.support(*row_parameters(rows)), *inputs)
    keep_T_V = torch.cat(
        [reference.support(x_T_V[i : i + 1], **row.truncation) for i, row in enumerate(rows)]
    )
    keys_T_V = keys_of(x_T_V, keep_T_V, inputs)
    drawn_keys_T = keys_T_V.gather(1, drawn_T[:, None])[:, 0]
    # The reference's token, save where two keys are closer than the kernel's own error.
    assert (drawn_keys_T - keys_T_V.amin(dim=1) <= 2 * race.KEY_BOUND).all()
