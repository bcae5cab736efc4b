"""From model, hardware and traffic to memory, rates, replicas and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scoring_service.plan.hardware import Hardware
from scoring_service.plan.shape import ModelShape
from scoring_service.plan.traffic import Traffic

PAGE_TOKENS = 16
"""As the engine's pages have."""
SPARE_PAGES = 4
"""Pages that a sequence may take beyond its tokens, as the engine counts: segments begin a page."""
BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.9}
"""The server's own defaults."""
HEADROOM = 0.7
"""Share of a replica's capacity that the traffic may take: the rest is for peaks and restarts."""
MOST_SAMPLES = 256
"""Samples that are assumed to be drawn at once, where pages allow."""
_PART_SECONDS = 5.0
"""How long a part of a divided call should take a server."""
_QUEUE_SECONDS = 60.0
"""Work that may wait before calls are refused."""
_LARGEST_QUEUE = 64 << 20
"""Tokens: beyond, the queue itself takes memory that matters."""


class DoesNotFitError(ValueError):
    """The model, or one prompt group of the traffic, does not fit the device's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a deployment needs. Bytes, tokens and seconds; rates are of one replica."""

    weights_bytes: int
    kv_bytes_per_token: int
    pages: int
    tokens_in_pages: int
    groups_in_flight: int
    """Prompt groups whose keys and values fit at once."""
    flops_per_group: int
    flops_per_called_token: float
    tokens_per_second: float
    """As callers count them."""
    groups_per_second: float
    decode_batch: int
    """Samples drawn at once; 0 when nothing is drawn."""
    reply_bytes_per_second: float
    """Of the whole traffic."""
    utilisation: float
    """Of all replicas."""
    replicas: int
    flags: dict[str, str]
    """Flags of `scoring-service serve`."""


def estimate(
    shape: ModelShape,
    hardware: Hardware,
    traffic: Traffic,
    *,
    dtype_bytes: int,
    memory_utilization: float | None = None,
) -> Plan:
    """Estimate what a deployment needs.

    Args:
        shape: the model's counts.
        hardware: one device; a replica is one worker with one device.
        traffic: what is asked for.
        dtype_bytes: bytes of a weight, and of an element of keys and values.
        memory_utilization: share of what is left beside the weights that pages take.

    Raises:
        DoesNotFitError: weights and one prompt group do not fit.
    """
    weights = shape.parameters * dtype_bytes
    if hardware.device == "cpu" and dtype_bytes < 4:
        weights += shape.head_parameters * 4  # the float32 copy of the head
    kv = shape.kv_width * dtype_bytes
    share = memory_utilization or MEMORY_SHARE[hardware.device]
    left = hardware.memory_bytes - weights
    pages = max(0, int(left * share)) // (kv * PAGE_TOKENS)
    group_pages = _pages_of_group(traffic)
    if pages < group_pages:
        raise DoesNotFitError(
            f"{weights / 1e9:.1f} GB of weights leave {max(0.0, left) / 1e9:.1f} GB, of which "
            f"pages take {share:.0%}: {pages} pages, and one prompt group needs {group_pages}"
        )
    flops = _flops(shape, traffic)
    batch = min(MOST_SAMPLES, pages // group_pages * traffic.completions)
    seconds = _seconds(shape, hardware, traffic, batch, weights, kv)
    demand = traffic.groups_per_second * seconds
    replicas = max(1, math.ceil(demand / HEADROOM))
    rate = traffic.called_tokens / seconds
    return Plan(
        weights_bytes=weights,
        kv_bytes_per_token=kv,
        pages=pages,
        tokens_in_pages=pages * PAGE_TOKENS,
        groups_in_flight=pages // group_pages,
        flops_per_group=flops,
        flops_per_called_token=flops / traffic.called_tokens,
        tokens_per_second=rate,
        groups_per_second=1 / seconds,
        decode_batch=batch if traffic.rpc == "sample" else 0,
        reply_bytes_per_second=traffic.reply_bytes * traffic.groups_per_second,
        utilisation=demand / replicas,
        replicas=replicas,
        flags=_flags(hardware, traffic, batch, rate, share),
    )


def _pages_of_group(traffic: Traffic) -> int:
    """Of one group as a whole: each of its segments begins a page of its own."""
    prompt = -(-traffic.prompt_length // PAGE_TOKENS)
    completion = -(-traffic.completion_length // PAGE_TOKENS)
    return prompt + traffic.completions * completion + SPARE_PAGES


def _flops(shape: ModelShape, traffic: Traffic) -> int:
    """Of one group: matrix products and attention, its prompt counted once."""
    return (
        2 * shape.body_parameters * traffic.distinct_tokens
        + 2 * shape.head_parameters * traffic.rows
        + shape.pair_flops * traffic.pairs
    )


def _seconds(
    shape: ModelShape, hardware: Hardware, traffic: Traffic, batch: int, weights: int, kv: int
) -> float:
    """Of one replica for one group, under load."""
    if traffic.rpc != "sample":
        return _flops(shape, traffic) / (hardware.matrix_flops * hardware.scoring_efficiency)
    prompt = 2 * shape.body_parameters * traffic.prompt_length
    prompt += shape.pair_flops * traffic.prompt_length * (traffic.prompt_length + 1) // 2
    prefill = prompt / (hardware.matrix_flops * hardware.scoring_efficiency)
    # A step draws a token of each sample. It reads all weights and what the samples attend to, and
    # is bound by that or by its arithmetic.
    context = traffic.prompt_length + traffic.completion_length / 2
    read = (weights + batch * context * kv) / hardware.bandwidth
    token = 2 * (shape.body_parameters + shape.head_parameters) + shape.pair_flops * context
    step = max(read, batch * token / hardware.matrix_flops) / hardware.decode_efficiency
    return prefill + traffic.rows / batch * step


def _flags(
    hardware: Hardware, traffic: Traffic, batch: int, rate: float, share: float
) -> dict[str, str]:
    part = min(max(int(rate * _PART_SECONDS), traffic.called_tokens), 65_536)
    queue = min(max(int(rate * _QUEUE_SECONDS), 4 * traffic.called_tokens), _LARGEST_QUEUE)
    steps = BATCH_TOKENS[hardware.device]
    if traffic.rpc == "sample":
        steps = max(steps, batch)
    return {
        "--max-model-len": str(traffic.sequence_tokens),
        "--memory-utilization": f"{share:g}",
        "--max-batch-tokens": str(steps),
        "--preferred-tokens-per-call": str(part),
        "--max-queue-tokens": str(queue),
    }
