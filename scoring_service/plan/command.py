"""The command `scoring-service plan`: where its numbers come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scoring_service.model_shape import ModelShape, model_shape
from scoring_service.models import tiny_model_path
from scoring_service.plan.chart import chart_lines, chart_values, host_bytes
from scoring_service.plan.estimate import DoesNotFitError, estimate
from scoring_service.plan.hardware import PRESETS, Hardware
from scoring_service.plan.page import page
from scoring_service.plan.traffic import Rpc, Traffic

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """Settings of `scoring-service plan`."""

    hardware: Literal["h200", "h100", "a100", "l40s", "cpu-2-cores"] = "h100"
    """Device of a replica; the flags below replace its figures."""

    memory_gb: float | None = None
    """Memory of the device, or of the machine on a CPU, in GB (10^9 bytes)."""

    matrix_tflops: float | None = None
    """Rate of a matrix product in TFLOP/s, measured or stated."""

    bandwidth_gbs: float | None = None
    """Rate of reading memory in GB/s, measured or stated."""

    efficiency: float | None = None
    """Share of the limit that is reached, in scoring and in drawing. Default: the hardware's."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Element type of the body; auto = as the config says, or what is assumed where it does not."""

    memory_utilization: float | None = None
    """Share of the memory beside the weights for pages. Default: the server's own."""

    rpc: Rpc = "score"
    """What is asked for."""

    prompt_length: int = 512
    """Tokens of a prompt."""

    completion_length: int = 512
    """Tokens of a completion or sample."""

    completions: int = 8
    """Completions or samples of a prompt."""

    k: int = 64
    """K of --rpc topk."""

    prompts_per_second: float | None = None
    """Prompt groups a second. Default: 1."""

    tokens_per_second: float | None = None
    """Tokens a second instead, each prompt counted once for each of its completions."""

    live_weights: bool = False
    """A trainer pushes weights: the host's memory holds several versions."""

    json: bool = False
    """Print JSON."""


def plan_text(model: str | None, config: PlanConfig) -> str:
    """Return what the command prints.

    Raises:
        ValueError: a number makes no sense, the family is unknown, or it does not fit.
        OSError: there is no such model.
    """
    name, values = _read_config(model)
    shape, hardware, traffic = model_shape(values), _hardware(config), _traffic(config)
    _check_within(shape, traffic)
    share = config.memory_utilization
    if share is not None and not 0.01 <= share <= 1:
        raise ValueError(f"memory_utilization must be in [0.01, 1], not {share:g}")
    stored_dtype = _named_dtype(values) or _assumed_dtype(values)
    dtype = config.dtype if config.dtype != "auto" else stored_dtype
    assumed = ""
    if config.dtype == "auto" and _named_dtype(values) is None:
        assumed = f"config.json names no element type, so --dtype {dtype} is assumed"
    try:
        plan = estimate(
            shape, hardware, traffic,
            dtype_bytes=DTYPE_BYTES[dtype], memory_utilization=share,
        )  # fmt: skip
    except DoesNotFitError as error:
        raise DoesNotFitError(f"{error}; {assumed}" if assumed else str(error)) from None
    served = shape.parameters * DTYPE_BYTES[dtype]
    stored = shape.parameters * DTYPE_BYTES[stored_dtype]
    host = host_bytes(plan, hardware.device, served, live_weights=config.live_weights)
    if config.live_weights and hardware.device == "cpu" and host > hardware.memory_bytes:
        raise DoesNotFitError(
            f"with the versions that live weights hold a pod takes {host / 1e9:.1f} GB, and the "
            f"machine has {hardware.memory_bytes / 1e9:.0f} GB: take a larger one, or leave pages "
            "less with --memory-utilization"
        )
    chart = chart_values(plan, hardware.device, served, stored, live_weights=config.live_weights)
    if config.json:
        parts = {
            "model": {name: v for name, v in asdict(shape).items() if name != "config"},
            "hardware": asdict(hardware),
            "traffic": asdict(traffic),
            "plan": asdict(plan),
            "chart": chart,
        }
        return json.dumps(parts, indent=2)
    text = page(f"{name}, {dtype}", shape, hardware, traffic, plan, assumed)
    return f"{text}\n\n{chart_lines(chart)}"


def _read_config(model: str | None) -> tuple[str, dict[str, Any]]:
    """Return a name and config.json of a folder, of the file itself, or of a model of the Hub.

    Raises:
        OSError: there is none.
    """
    path = tiny_model_path() if model is None else Path(model)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file() and model is not None and not Path(model).exists():
        if path.is_absolute() or model.startswith((".", "~")):
            raise OSError(f"there is no folder and no config.json {model}")
        # Needs no torch. Raises OSError, with a reason, when the Hub has no such model.
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(model, "config.json"))
    if path.suffix != ".json":
        raise OSError(f"{path} is no config.json: name the folder that has one")
    values: dict[str, Any] = json.loads(path.read_text())
    return model or "tiny", values


def _named_dtype(values: dict[str, Any]) -> str | None:
    for holder in (values, values.get("text_config", {})):
        dtype = holder.get("dtype") or holder.get("torch_dtype")
        if dtype in DTYPE_BYTES:
            return str(dtype)
    return None


def _assumed_dtype(values: dict[str, Any]) -> str:
    """Where a config names none: transformers unpacks quantised weights to bfloat16 (GPT-OSS)."""
    return "bfloat16" if values.get("quantization_config") else "float32"


def _hardware(config: PlanConfig) -> Hardware:
    changed: dict[str, float] = {}
    if config.efficiency is not None and config.efficiency > 1:
        raise ValueError(f"efficiency is a share, at most 1, not {config.efficiency:g}")
    for field, given, unit in (
        ("memory_bytes", config.memory_gb, 1e9),
        ("matrix_flops", config.matrix_tflops, 1e12),
        ("bandwidth", config.bandwidth_gbs, 1e9),
        ("scoring_efficiency", config.efficiency, 1.0),
        ("decode_efficiency", config.efficiency, 1.0),
    ):
        if given is not None:
            changed[field] = _positive(field, given) * unit
    hardware = replace(PRESETS[config.hardware], **changed)  # type: ignore[arg-type]
    if changed:
        names = ", ".join(name.replace("_", " ") for name in changed)
        return replace(hardware, source=f"{hardware.source}; given instead: {names}")
    return hardware


def _traffic(config: PlanConfig) -> Traffic:
    if config.prompts_per_second is not None and config.tokens_per_second is not None:
        raise ValueError("give --prompts-per-second or --tokens-per-second, not both")
    groups = 1.0 if config.prompts_per_second is None else config.prompts_per_second
    traffic = Traffic(
        rpc=config.rpc,
        prompt_length=int(_positive("prompt_length", config.prompt_length)),
        completion_length=int(_positive("completion_length", config.completion_length)),
        completions=int(_positive("completions", config.completions)),
        k=int(_positive("k", config.k)) if config.rpc == "topk" else 0,
        groups_per_second=_positive("prompts_per_second", groups),
    )
    if config.tokens_per_second is None:
        return traffic
    tokens = _positive("tokens_per_second", config.tokens_per_second)
    return replace(traffic, groups_per_second=tokens / traffic.called_tokens)


def _check_within(shape: ModelShape, traffic: Traffic) -> None:
    """Refuse what a server would refuse of every call.

    Raises:
        ValueError: sequences beyond the model's positions, or a list beyond its vocabulary.
    """
    if traffic.sequence_tokens > shape.max_positions:
        raise ValueError(
            f"prompt_length and completion_length make {traffic.sequence_tokens} tokens; the model "
            f"has positions for {shape.max_positions}"
        )
    if traffic.k > shape.vocab_size:
        raise ValueError(f"k must be at most the vocabulary, {shape.vocab_size}, not {traffic.k}")


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"{name} must be above 0, not {value:g}")
    return value
