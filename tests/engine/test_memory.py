"""Peak memory: of rows, never more than a tile of logits and what goes to the reader."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
import torch
from scoring_service.engine.events import ScoreSlice
from scoring_service.engine.loader import load
from scoring_service.engine.packed.body import PackedBody, Step
from scoring_service.engine.packed.store import SegmentStore
from scoring_service.engine.service_loop import make_runner
from scoring_service.types import CompletionTask, EngineConfig, GroupTask, Processing
from scoring_service.types import RowWants, ScoreCall

MIB = 1 << 20

def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def peak_of(work):
    '''Bytes beyond what is resident before it.'''
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before

def load_model(source, **settings):
    return load(EngineConfig(source, device="cpu", threads=1, **settings), lambda _: None)

def score(loaded, lengths, k, seed=0):
    rng = np.random.default_rng(seed)
    tasks = [
        CompletionTask(0, rng.integers(0, loaded.info.vocab_size, n).astype(np.int32), ((0, n),))
        for n in lengths
    ]
    first = rng.integers(0, loaded.info.vocab_size, (len(lengths), 1)).astype(np.int32)
    groups = tuple(
        GroupTask(i, first[i], (task,), Processing(), 0) for i, task in enumerate(tasks)
    )
    runner = make_runner(loaded, lambda call_id, error: sys.exit(repr(error)))
    runner.submit(ScoreCall(1, groups, RowWants(top_k=k, entropy=True, rank=True)))
    rows = 0
    while runner.can_step:
        for event in runner.step():
            if isinstance(event, ScoreSlice):
                runner.add_credit(1, event.size)
                rows += event.block.rows
    assert rows == sum(lengths), rows
"""


def measured(body: str) -> dict[str, float]:
    """Runs a script in a process of its own, whose peak is nobody else's; what it prints.

    Freed memory goes back to the system at once there, so that the peak is what was in use. (A
    server lets the allocator keep it: page faults would take as long as the arithmetic.)
    """
    script = MEASURE + textwrap.dedent(body)
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "4000000"},
    )
    lines = [line.split() for line in ran.stdout.splitlines()]
    return {name: float(value) for name, value in lines}


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
    """4,095 rows of 151,936 logits are 2.3 GiB in fp32; a tile of them is 24 MiB."""
    found = measured(
        f"""
        loaded = load_model({str(wide_vocabulary)!r})
        score(loaded, [70], 128)
        print("peak", peak_of(lambda: score(loaded, [4095], 128)) / MIB)
        """
    )
    # A tile, what is made of blocks of it in passing, pages, and results on their way.
    assert found["peak"] < 80


def test_top_1024_costs_little_more_than_the_forward(smollm2_file: Path) -> None:
    """8 x 256 rows of K = 1,024: 16 MiB of results, and no more than 64 MiB beside the forward."""
    found = measured(
        f"""
        loaded = load_model({str(smollm2_file)!r}, dtype="bfloat16", head_dtype="bfloat16")

        def forward(seed):
            rng = np.random.default_rng(seed)
            pool = loaded.packed.pool
            store = SegmentStore(pool, loaded.packed.settings.chunk_size)
            body = PackedBody(loaded.model, pool)
            for _ in range(2):
                chains = []
                for i in range(4):
                    ids = rng.integers(0, 49152, 256).astype(np.int32)
                    chains.append(store.prompt(ids, bytes([i])))
                body.run(Step(tuple(segment for chain in chains for segment in chain)))
                for chain in chains:
                    for segment in chain:
                        segment.computed = True
                    store.release(chain[-1])
            store.flush()

        forward(0)  # the pages and the allocator's arenas are touched once
        score(loaded, [256], 1024)
        print("forward", max(peak_of(lambda: forward(seed)) for seed in (1, 2)) / MIB)
        print("scoring", peak_of(lambda: score(loaded, [256] * 8, 1024, seed=3)) / MIB)
        """
    )
    assert found["scoring"] <= found["forward"] + 64
