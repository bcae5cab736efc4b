"""Parameters that hypothesis finds, a row each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels import cases
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.support import assert_like_reference

pytest.importorskip("hypothesis", reason="a bare GPU machine has none")

from hypothesis import given, settings
from hypothesis import strategies as st


@given(data=st.data(), top_k=st.integers(-1, 40), seed=st.integers(0, 2**16))
@settings(max_examples=12)
def test_row_parameters(data: st.DataObject, top_k: int, seed: int) -> None:
    """On rows full of ties, and beside a row that has min-p alone."""
    floats = st.floats(2**-10, 1.0, width=32)
    top_p, min_p = data.draw(floats), data.draw(st.sampled_from([0.0, 1.0]) | floats)
    rng = np.random.default_rng(seed)
    x_T_V = torch.from_numpy(np.stack([cases.quantised(rng, 33), cases.continuous(rng, 33)]))
    alone = cases.Setting(1.0, 0, 1.0, min_p)
    assert_like_reference(x_T_V.to(DEVICE), [cases.Setting(1.0, top_k, top_p, min_p), alone])
