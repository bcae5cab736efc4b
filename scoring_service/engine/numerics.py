"""What decides the bits of an answer, and whether equal requests get equal bits."""

from __future__ import annotations

import hashlib
import json
import platform

import torch
import transformers

from scoring_service.engine.head import ROW_MULTIPLE, RowHead, tile_rows


def numerics_id(**facts: object) -> str:
    """Hash of everything that decides bits: the given facts, libraries, threads, processor."""
    facts = {
        **facts,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def rows_are_invariant(head: RowHead, states_T_H: torch.Tensor) -> bool:
    """Whether a row's logits have the same bits in tiles of different height.

    The body sees one sequence at a time, so the head's tile is the only product whose height
    depends on what else was asked.
    """
    if states_T_H.device.type != "cpu":
        return False
    full = tile_rows(head.vocab_size)
    states = states_T_H.repeat(-(-full // len(states_T_H)), 1)[:full]
    whole = head.logits(states)
    heights = {1, ROW_MULTIPLE, ROW_MULTIPLE + 1, 2 * ROW_MULTIPLE, full - ROW_MULTIPLE} - {0}
    return all(
        torch.equal(head.logits(states[-height:]), whole[-height:])
        for height in heights
        if height <= full
    )
