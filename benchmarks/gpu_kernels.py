"""`python -m benchmarks.gpu_kernels`: the Triton kernels against the machine's limits and peers.

Needs a CUDA device, torch, triton and numpy; Liger-Kernel, cut-cross-entropy and FlashInfer take
part where they are installed. Random data, rotated buffers, graph replay; every figure comes with
the largest error of some rows against float64 and, where a target is missed, with the profile that
says why. A case that fails is put down, and the others are measured (`gpu_cases`). Leaves
`benchmarks/results/gpu-kernels.json`, in under ten minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_attention import attention
from benchmarks.gpu_cases import Case, Figure, run_cases, run_part
from benchmarks.gpu_timing import Work, buffers_for, extra_bytes, profile, seconds
from benchmarks.machine import copy_rate, describe, matrix_rate

RESULTS = Path(__file__).parent / "results"
_TIME_LIMIT = 500
"""Seconds after which no further measurement begins."""

PARTS = {"logprobs": 0.3, "attention": 0.2, "top-k": 0.2, "sampler": 1.0}
"""In this order, and the share that each may take of the time that is left."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    rows: int = 8192
    hidden: int = 4096
    vocab: int = 151_936
    tile_rows: int = 1024
    few_rows: tuple[int, ...] = (1, 32)
    ks: tuple[int, ...] = (128, 1024)
    batches: tuple[int, ...] = (32, 1, 512, 128, 8)
    checked: int = 4


_LIMITS = "GPU_KERNELS_LIMITS"
"""Where parts find what the machine can do."""

DRY = Sizes(8, 64, 1000, 4, (1,), (8,), (2,), 2)
SETTINGS: dict[str, dict[str, float]] = {
    "no filter": {},
    "k 50": {"top_k": 50},
    "p 0.9": {"top_p": 0.9},
    "k 50, p 0.9": {"top_k": 50, "top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "p 0.1": {"top_p": 0.1},
    "flat, p 0.99": {"top_p": 0.99},
    "mixed": {},
}


@dataclass(frozen=True)
class Target:
    """What a figure should be, and whether it is."""

    what: str
    wanted: str
    got: float | None
    met: bool | None


def at_most(what: str, got: float, bound: float) -> Target:
    return Target(what, f"<= {bound}", got, got <= bound)


def at_least(what: str, got: float | None, bound: float) -> Target:
    return Target(what, f">= {bound}", got, None if got is None else got >= bound)


def main() -> int:
    """Measures and writes; 2 where there is no CUDA device, 1 where a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_kernels", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes in the interpreter")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu-kernels.json")
    parser.add_argument("--time-limit", type=float, default=_TIME_LIMIT, help="seconds")
    # What this program tells the processes that it starts for its parts.
    parser.add_argument("--piece", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=_TIME_LIMIT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print(
            "There is no CUDA device here: nothing was measured, and no file was written.\n"
            "`--dry-run` goes through the script at tiny sizes in Triton's interpreter.",
            file=sys.stderr,
        )
        return 2
    sizes = DRY if arguments.dry_run else Sizes()
    device = "cpu" if arguments.dry_run else "cuda"
    if arguments.piece is not None:
        limits = json.loads(os.environ[_LIMITS])
        cases = CASES[arguments.parts](sizes, device, limits)
        return run_cases(cases, arguments.piece, arguments.skip, arguments.seconds)
    return measure_all(arguments, sizes, device)


def measure_all(arguments: argparse.Namespace, sizes: Sizes, device: str) -> int:
    """Every part in a process of its own; 1 where a case failed."""
    began = time.monotonic()
    report: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.gpu_kernels", *sys.argv[1:]]),
        "machine": machine(device, sizes),
        "sizes": asdict(sizes),
    }
    if device == "cuda":
        torch.cuda.empty_cache()
    os.environ[_LIMITS] = json.dumps(report["machine"])
    names = arguments.parts.split(",")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        left = arguments.time_limit - (time.monotonic() - began)
        share = 1.0 if place == len(names) - 1 else PARTS[name]
        command = [sys.executable, "-m", "benchmarks.gpu_kernels", "--parts", name]
        command += ["--dry-run"] * arguments.dry_run
        piece = arguments.output.with_suffix(f".{name}.json")
        report[name] = run_part(command, piece, left * share)
        # After every part; what a part has so far is in its piece.
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return int(any("failed" in figure for name in names for figure in report[name]))


def machine(device: str, sizes: Sizes) -> dict[str, Any]:
    """Its description and what it can do, measured now."""
    import triton

    return {
        **describe(),
        "triton": triton.__version__,
        "matrix_flops_per_second": matrix_rate(
            "bfloat16", sizes.rows, sizes.hidden, min(sizes.vocab, 16_384), device
        ),
        "copy_bytes_per_second": copy_rate(device),
    }


def normal(shape: tuple[int, ...], device: str, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


def logprobs(sizes: Sizes, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """Log-prob, entropy and rank from hidden states, and what follows the product by itself."""
    yield "log-prob, entropy, rank from logits", partial(after_product, sizes, device, limits)
    for rows in (sizes.rows, *sizes.few_rows):
        what = f"log-prob, entropy, rank of {rows} rows from hidden states"
        yield what, partial(linear_figure, sizes, rows, device, limits)


def linear_figure(sizes: Sizes, rows: int, device: str, limits: dict[str, Any]) -> Figure:
    from scoring_service.kernels.linear_logprobs import LinearHead, linear_logprobs

    weight_V_H = normal((sizes.vocab, sizes.hidden), device, 1, torch.bfloat16)
    weight_V_H *= 2 * sizes.hidden**-0.5
    hidden = [normal((rows, sizes.hidden), device, seed, torch.bfloat16) for seed in range(2)]
    targets_T = torch.randint(sizes.vocab, (rows,), device=device)
    head = LinearHead(weight_V_H)

    def ours(route: str) -> Work:
        return lambda n: linear_logprobs(hidden[n], head, targets_T, route=route)

    # The bare product leaves bf16 logits of all rows: what a head costs at least.
    bare = seconds(lambda n: hidden[n] @ weight_V_H.t(), 2)
    sides = {"bare product": bare, "fused": seconds(ours("fused"), 2)}
    sides["tiled"] = seconds(ours("tiled"), 2)
    for name, peer in linear_peers(hidden, weight_V_H, targets_T).items():
        sides[name] = seconds(peer, 2)
    best = "fused" if sides["fused"] < sides["tiled"] else "tiled"
    share = extra_bytes(ours(best)) / (4 * rows * sizes.vocab)
    targets = [at_most("times the bare product", sides[best] / bare, 1.25)]
    if rows == sizes.rows:
        targets.append(at_most("extra memory, of the full logits", share, 0.01))
    targets += [
        at_most(f"times {name}", sides[best] / sides[name], 1.0)
        for name in sides
        if name not in ("bare product", "fused", "tiled")
    ]
    found = linear_logprobs(hidden[0], head, targets_T, route=best)
    checked = slice(0, sizes.checked)
    truth_T_V = hidden[0][checked].double() @ weight_V_H.double().t()
    truth_T_V = torch.log_softmax(truth_T_V, dim=1)
    truth_T = truth_T_V.gather(1, targets_T[checked, None])[:, 0]
    entropy_T = torch.special.entr(truth_T_V.exp()).sum(dim=1)
    products = 2.0 * rows * sizes.hidden * sizes.vocab / limits["matrix_flops_per_second"]
    reading = 2.0 * weight_V_H.numel() / limits["copy_bytes_per_second"]
    return {
        "what": "log-prob, entropy, rank from hidden states",
        "rows": rows,
        "seconds": sides,
        "floor_seconds": max(products, reading),
        "error_logprob": float((found.logprobs_T[checked] - truth_T).abs().max()),
        "error_entropy": float((found.entropies_T[checked] - entropy_T).abs().max()),
        **judged(targets, ours(best)),
    }


def linear_peers(hidden: list[Tensor], weight_V_H: Tensor, targets_T: Tensor) -> dict[str, Work]:
    """Forward passes of others' fused losses, which have no entropy and no rank."""
    peers: dict[str, Work] = {}
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

        # Without gradients of its inputs, as it is called for log-probs alone.
        peers["Liger-Kernel"] = lambda n: fused_linear_cross_entropy_forward(
            hidden[n], weight_V_H, targets_T, reduction="none"
        )
    if importlib.util.find_spec("cut_cross_entropy") is not None:
        from cut_cross_entropy import linear_cross_entropy

        peers["cut-cross-entropy"] = lambda n: linear_cross_entropy(
            hidden[n], weight_V_H, targets_T, reduction="none"
        )
    return peers


def after_product(sizes: Sizes, device: str, limits: dict[str, Any]) -> Figure:
    """What follows the product, on tiles of logits that are there."""
    from scoring_service.kernels.gpu.tile import TritonTile

    shape = (sizes.tile_rows, sizes.vocab)
    size = 4 * sizes.tile_rows * sizes.vocab
    tiles = [normal(shape, device, seed, torch.float32) for seed in range(buffers_for(size))]
    ids_T = torch.randint(sizes.vocab, (sizes.tile_rows,), device=device)

    def ours(n: int) -> object:
        tile = TritonTile(tiles[n], targets_T=ids_T)
        return tile.logprobs_at(ids_T[:, None]), tile.entropy(), tile.rank_of_targets()

    def eager(n: int) -> object:
        logprobs_T_V = torch.log_softmax(tiles[n], dim=1)
        entropy_T = torch.special.entr(logprobs_T_V.exp()).sum(dim=1)
        return logprobs_T_V.gather(1, ids_T[:, None]), entropy_T

    sides = {"ours": seconds(ours, len(tiles)), "torch": seconds(eager, len(tiles))}
    targets = [at_least("times torch's speed", sides["torch"] / sides["ours"], 6.0)]
    return {
        "what": "log-prob, entropy, rank from logits",
        "rows": sizes.tile_rows,
        "seconds": sides,
        "floor_seconds": size / limits["copy_bytes_per_second"],
        **judged(targets, ours),
    }


def top_k(sizes: Sizes, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """Lists of the most likely tokens from tiles of logits, and the products before them."""
    for k in sizes.ks:
        yield f"top {k} with log-probs and tail", partial(top_k_figure, sizes, k, device, limits)


def top_k_figure(sizes: Sizes, k: int, device: str, limits: dict[str, Any]) -> Figure:
    from scoring_service.kernels.gpu.tile import TritonTile

    shape = (sizes.tile_rows, sizes.vocab)
    size = 4 * sizes.tile_rows * sizes.vocab
    tiles = [normal(shape, device, seed, torch.float32) for seed in range(buffers_for(size))]
    hidden_T_H = normal((sizes.tile_rows, sizes.hidden), device, 1, torch.bfloat16)
    weight_V_H = normal((sizes.vocab, sizes.hidden), device, 2, torch.bfloat16)
    product = seconds(lambda _: hidden_T_H @ weight_V_H.t(), 1)

    def ours(n: int) -> object:
        tile = TritonTile(tiles[n])
        ids_T_K = tile.top_k_ids(k, sizes.vocab)
        return tile.logprobs_at(ids_T_K), tile.log_tail_mass(ids_T_K)

    def select(n: int) -> object:
        return TritonTile(tiles[n]).top_k_ids(k, sizes.vocab)

    def eager(n: int) -> object:
        return torch.topk(tiles[n], k, dim=1)

    sides = {"bare product": product, "ours": seconds(ours, len(tiles))}
    sides["ours, selection"] = seconds(select, len(tiles))
    sides["torch.topk"] = seconds(eager, len(tiles))
    ratio = sides["torch.topk"] / sides["ours, selection"]
    targets = [at_least("times torch.topk's speed", ratio, 4.0)]
    if k == sizes.ks[0]:
        whole = (product + sides["ours"]) / product
        targets.append(at_most("times the bare product, with it", whole, 1.35))
    want_T_K = tiles[0][: sizes.checked].double().sort(dim=1, descending=True, stable=True)
    got_T_K = TritonTile(tiles[0]).top_k_ids(k, sizes.vocab)[: sizes.checked]
    return {
        "what": f"top {k} with log-probs and tail",
        "rows": sizes.tile_rows,
        "seconds": sides,
        "floor_seconds": size / limits["copy_bytes_per_second"],
        "wrong_ids": int((got_T_K != want_T_K.indices[:, :k]).sum()),
        **judged(targets, ours),
    }


def sampler(sizes: Sizes, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """One token a row from logits, with every mix of filters."""
    for batch in sizes.batches:
        for name in SETTINGS:
            what = f"sample, {name}, batch {batch}"
            yield what, partial(sampler_figure, sizes, batch, name, device, limits)


def sampler_figure(
    sizes: Sizes, batch: int, name: str, device: str, limits: dict[str, Any]
) -> Figure:
    from scoring_service.kernels import reference
    from scoring_service.kernels.gpu.tile import TritonTile

    size = 4 * batch * sizes.vocab
    spread = 0.1 if name.startswith("flat") else 2.0
    tiles = [
        normal((batch, sizes.vocab), device, seed, torch.float32) * spread
        for seed in range(buffers_for(size))
    ]
    rows = [SETTINGS[name]] * batch
    if name == "mixed":
        rows = [list(SETTINGS.values())[row % 7] for row in range(batch)]
    top_k_T = torch.tensor([int(r.get("top_k", 0)) for r in rows], device=device)
    top_p_T, min_p_T = (
        torch.tensor([r.get(key, off) for r in rows], dtype=torch.float64, device=device)
        for key, off in (("top_p", 1.0), ("min_p", 0.0))
    )
    numbers_T = torch.arange(batch, device=device)

    def ours(n: int) -> Tensor:
        tile = TritonTile(tiles[n])
        found = None if name == "no filter" else tile.support(top_k_T, top_p_T, min_p_T)
        return tile.draw(found, numbers_T, numbers_T, numbers_T)

    sides = {"ours": seconds(ours, len(tiles))}
    peer = flashinfer(tiles, top_k_T, top_p_T) if float(min_p_T.max()) == 0.0 else None
    if peer is not None:
        sides["FlashInfer"] = seconds(peer, len(tiles))
    ratio = sides["FlashInfer"] / sides["ours"] if peer is not None else None
    wrong, drawn_T = 0, ours(0)
    for row in range(min(batch, sizes.checked)):
        x_1_V = tiles[0][row : row + 1]
        keep = reference.support(x_1_V, int(top_k_T[row]), float(top_p_T[row]), float(min_p_T[row]))
        want = reference.draw(x_1_V, keep, [row], [row], [row])
        wrong += int(want.item() != drawn_T[row].item())
    return {
        "what": f"sample, {name}",
        "rows": batch,
        "seconds": sides,
        "floor_seconds": size / limits["copy_bytes_per_second"],
        "tokens_that_are_not_the_references": wrong,
        **judged([at_least("times FlashInfer's speed", ratio, 2.0)], ours),
    }


def flashinfer(tiles: list[Tensor], top_k_T: Tensor, top_p_T: Tensor) -> Work | None:
    """softmax, then sampling from probabilities: what engines call."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    from flashinfer import sampling

    vocab = tiles[0].shape[1]
    k_T = torch.where(top_k_T == 0, vocab, top_k_T).int()
    p_T = top_p_T.float()
    return lambda n: sampling.top_k_top_p_sampling_from_probs(
        torch.softmax(tiles[n], dim=1), k_T, p_T, filter_apply_order="top_k_first"
    )


def judged(targets: list[Target], work: Callable[[int], Any]) -> Figure:
    """The targets, and the profile that says why where one is missed."""
    found: Figure = {"targets": [asdict(target) for target in targets]}
    if any(target.met is False for target in targets):
        found["profile"] = profile(work)
    return found


CASES = {"logprobs": logprobs, "attention": attention, "top-k": top_k, "sampler": sampler}


if __name__ == "__main__":
    sys.exit(main())
