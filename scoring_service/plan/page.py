"""A plan as people read it."""

from __future__ import annotations

from scoring_service.model_shape import ModelShape
from scoring_service.plan.estimate import HEADROOM, Plan
from scoring_service.plan.hardware import Hardware
from scoring_service.plan.traffic import Traffic
from scoring_service.types import PAGE_TOKENS


def page(
    name: str,
    shape: ModelShape,
    hardware: Hardware,
    traffic: Traffic,
    plan: Plan,
    assumed: str = "",
) -> str:
    """Return the lines; `assumed` is one more of what is assumed."""
    rows = [
        ("model", f"{name} ({shape.family}), {_short(shape.parameters)} parameters"),
        ("device", f"{hardware.device}, {_bytes(hardware.memory_bytes)}"),
        ("weights", _bytes(plan.weights_bytes)),
        ("a step", f"{_bytes(plan.step_bytes)} beside weights and pages, at most"),
        ("keys and values", f"{_bytes(plan.kv_bytes_per_token)} a token"),
        ("pages", f"{plan.pages:,} of {PAGE_TOKENS} tokens = {plan.tokens_in_pages:,} tokens"),
        ("in flight", f"{plan.groups_in_flight:,} prompt groups"),
        ("work", f"{_short(plan.flops_per_group)}FLOP a group, prompt counted once = "
         f"{_short(plan.flops_per_called_token)}FLOP a token"),
        ("rate of a replica", f"{plan.tokens_per_second:,.0f} tokens/s = "
         f"{plan.groups_per_second:,.2f} groups/s"),
        ("answers", f"{_bytes(traffic.reply_bytes)} a group, "
         f"{_bytes(plan.reply_bytes_per_second)}/s in all"),
        ("replicas", f"{plan.replicas}, busy {plan.utilisation:.0%} of the time"),
    ]  # fmt: skip
    if plan.decode_batch:
        rows.insert(8, ("drawn at once", f"{plan.decode_batch} samples"))
    if plan.graph_bytes:
        rows.insert(4, ("recorded steps", f"{_bytes(plan.graph_bytes)} for those of samples"))
    lines = [f"{label:<18} {value}" for label, value in rows]
    flags = " ".join(f"{flag} {value}" for flag, value in plan.flags.items())
    return "\n".join(
        [*lines, "", f"scoring-service serve … {flags}", "", *_assumptions(hardware, assumed)]
    )


def _assumptions(hardware: Hardware, assumed: str) -> list[str]:
    return [
        "Assumed:",
        f"  {_short(hardware.matrix_flops)}FLOP/s in matrix products and "
        f"{_bytes(hardware.bandwidth)}/s from memory, of which scoring reaches "
        f"{hardware.scoring_efficiency:.0%} and drawing {hardware.decode_efficiency:.0%}",
        f"  {hardware.source}",
        f"  replicas are loaded to {HEADROOM:.0%}; a replica is one worker with one device",
        "  tokens are counted as callers do: each prompt once for each of its completions",
        "  nothing comes from the prefix cache beyond a group's own prompt",
        *([f"  {assumed}"] if assumed else []),
    ]


def _short(number: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "


def _bytes(number: float) -> str:
    return f"{_short(number)}B"
