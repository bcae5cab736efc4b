"""From model, hardware and traffic to memory, rates, replicas and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scoring_service.config import PREFERRED_TOKENS_PER_CALL
from scoring_service.engine.attention.step_shape import step_shape
from scoring_service.engine.machine.page_budget import (
    BATCH_TOKENS,
    CHUNK_TOKENS,
    MAX_SAMPLES,
    MEMORY_SHARE,
    SPARE_PAGES,
    graph_bytes,
    page_bytes,
    pages_beside,
    step_tokens,
)
from scoring_service.model_shape import ModelShape
from scoring_service.peak_memory import StepLimits, largest_step, step_bytes
from scoring_service.plan.hardware import PRESETS, Hardware
from scoring_service.plan.traffic import Traffic
from scoring_service.types import PAGE_TOKENS

HEAD_BYTES = 4
"""The server's own default: a head in float32."""
HEADROOM = 0.7
"""Share of a replica's capacity that the traffic may take: the rest is for peaks and restarts."""
_PART_SECONDS = 5.0
"""How long a part of a divided call should take a server."""
_QUEUE_SECONDS = 60.0
"""Work that may wait before calls are refused."""
_LARGEST = "h200"
"""The hardware that is known to have the most memory."""
_MAX_QUEUE = 64 << 20
"""Tokens: beyond, the queue itself takes memory that matters."""


class DoesNotFitError(ValueError):
    """The model, or one prompt group of the traffic, does not fit the device's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a deployment needs. Bytes, tokens and seconds; rates are of one replica."""

    weights_bytes: int
    step_bytes: int
    """What a step takes beside weights and pages, at most."""
    graph_bytes: int
    """What recorded steps of samples keep on a GPU."""
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
        weights += shape.head_parameters * dtype_bytes  # once more, as its product takes it
    kv = shape.kv_width * dtype_bytes
    share = memory_utilization or MEMORY_SHARE[hardware.device]
    limits = step_limits(shape, hardware, traffic, dtype_bytes)
    graphs = graph_bytes(limits.shape) if hardware.device == "cuda" else 0
    left = hardware.memory_bytes - weights - graphs
    working = step_bytes(limits.shape, largest_step(limits))
    page = page_bytes(shape.kv_width, shape.hidden, dtype_bytes)
    pages = pages_beside(left * share, working, page)
    group_pages = _pages_of_group(traffic)
    if pages < group_pages:
        missing = (group_pages * page + working) / share - left
        raise DoesNotFitError(
            f"{weights / 1e9:.1f} GB of weights leave {max(0.0, left) / 1e9:.1f} GB, of which "
            f"pages and steps take {share:.0%}, and a step {working / 1e9:.2f} GB: {pages} pages, "
            f"and one prompt group needs {group_pages}; {_way_out(hardware, left, missing)}"
        )
    flops = _flops(shape, traffic)
    batch = min(MAX_SAMPLES, pages // group_pages * traffic.completions)
    seconds = _seconds(shape, hardware, traffic, batch, weights, kv)
    demand = traffic.groups_per_second * seconds
    replicas = max(1, math.ceil(demand / HEADROOM))
    rate = traffic.called_tokens / seconds
    return Plan(
        weights_bytes=weights,
        step_bytes=working,
        graph_bytes=graphs,
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
        flags=_flags(hardware, traffic, rate, share, dtype_bytes),
    )


def step_limits(
    shape: ModelShape, hardware: Hardware, traffic: Traffic, dtype_bytes: int
) -> StepLimits:
    """What bounds the steps of a server with the flags of the plan."""
    device = hardware.device
    return StepLimits(
        shape=step_shape(
            shape.config,
            vocab_size=shape.vocab_size,
            element_bytes=dtype_bytes,
            residual_bytes=dtype_bytes,
            logit_bytes=HEAD_BYTES,
            device_type=device,
            # C++ kernels on a CPU, Triton's on a GPU.
            compiled_attention=True,
            compiled_head=True,
            finishes_logits=shape.finishes_logits,
        ),
        step_tokens=step_tokens(_batch_tokens(hardware, traffic), CHUNK_TOKENS[device]),
        chunk_tokens=CHUNK_TOKENS[device],
        max_samples=MAX_SAMPLES,
        context=traffic.sequence_tokens,
    )


def _way_out(hardware: Hardware, left: float, missing: float) -> str:
    """What to take where so many bytes are missing of those that weights leave."""
    if hardware.device == "cpu":
        return "take a machine with more memory"
    if hardware.memory_bytes + missing <= PRESETS[_LARGEST].memory_bytes:
        largest = PRESETS[_LARGEST].memory_bytes / 1e9
        return (
            "a model is not split over GPUs: take a larger --hardware "
            f"({_LARGEST}: {largest:.0f} GB)"
        )
    needed = math.ceil((hardware.memory_bytes + missing) / 1e9)
    fewer = "; fewer completions, or shorter ones, take fewer pages" if left > 0 else ""
    return (
        f"a model is not split over GPUs, and one with {needed} GB is needed, more than any "
        f"--hardware has (--memory-gb is for others){fewer}"
    )


def _batch_tokens(hardware: Hardware, traffic: Traffic) -> int:
    """Of a step, so that all samples join it."""
    steps = BATCH_TOKENS[hardware.device]
    return max(steps, MAX_SAMPLES) if traffic.rpc == "sample" else steps


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
    hardware: Hardware, traffic: Traffic, rate: float, share: float, dtype_bytes: int
) -> dict[str, str]:
    part = min(max(int(rate * _PART_SECONDS), traffic.called_tokens), PREFERRED_TOKENS_PER_CALL)
    queue = min(max(int(rate * _QUEUE_SECONDS), 4 * traffic.called_tokens), _MAX_QUEUE)
    return {
        "--max-model-len": str(traffic.sequence_tokens),
        "--memory-utilization": f"{share:g}",
        "--max-batch-tokens": str(_batch_tokens(hardware, traffic)),
        "--preferred-tokens-per-call": str(part),
        "--max-queue-tokens": str(queue),
        # What a CPU's rate was measured with.
        **({"--head-dtype": "bfloat16"} if hardware.device == "cpu" and dtype_bytes == 2 else {}),
    }
