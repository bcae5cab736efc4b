"""Peak memory: of rows, never more than a tile of logits and what goes to the reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engine.peaks import MIB, measured


@pytest.fixture(scope="module")
def wide_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=151_936,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_long_text_under_a_large_vocabulary(wide_vocabulary: Path) -> None:
    """4,095 rows of 151,936 logits are 2.3 GiB in fp32; a tile of them is 18.5 MiB."""
    found = measured(
        f"""
        from scoring_service.peak_memory import step_bytes
        from scoring_service.pool.admission.call_memory import call_work

        loaded = load_touched({str(wide_vocabulary)!r}, memory_utilization=0.02)
        wants = RowWants(top_k=128, entropy=True, rank=True)
        drive(loaded, scoring(151_936, [70], wants))
        call = scoring(151_936, [4095], wants)
        limits = loaded.info.limits
        print("predicted", step_bytes(limits.shape, call_work(call, limits)))
        print("peak", peak_of(lambda: drive(loaded, call)))
        """
    )
    # A tile, what is made of blocks of it in passing, and results on their way: no second tile.
    assert found["peak"][0] <= found["predicted"][0]
    # Whatever is predicted: three tiles and a half.
    assert found["peak"][0] <= 64 * MIB


def test_top_1024_costs_little_more_than_the_forward(smollm2_wide: Path) -> None:
    """8 x 256 rows of K = 1,024: 16 MiB of results, and no more than 64 MiB beside the forward."""
    found = measured(
        f"""
        from scoring_service.engine.packed.steps.body import PackedBody, Step
        from scoring_service.engine.attention.store import SegmentStore

        settings = dict(dtype="bfloat16", head_dtype="bfloat16", memory_utilization=0.02)
        loaded = load_touched({str(smollm2_wide)!r}, **settings)

        def forward():
            pool = loaded.packed.pool
            store = SegmentStore(pool, loaded.packed.settings.chunk_size)
            body = PackedBody(loaded.model, pool)
            ids = np.arange(256, dtype=np.int32)
            chains = [store.prompt(ids, bytes([i])) for i in range(4)]
            body.run(Step.of(segment for chain in chains for segment in chain))

        wants = RowWants(top_k=1024, entropy=True, rank=True)
        drive(loaded, scoring(49_152, [70], wants))
        forward()
        print("forward", peak_of(forward))
        print("scoring", peak_of(lambda: drive(loaded, scoring(49_152, [256] * 8, wants))))
        """
    )
    assert found["scoring"][0] <= found["forward"][0] + 64 * MIB
