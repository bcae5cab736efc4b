"""Which way a model takes: many sequences a forward pass, or one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from scoring_service.engine.attention.pages import LayerShape
from scoring_service.engine.attention.step_shape import step_shape
from scoring_service.engine.head.tiles import ROW_MULTIPLE
from scoring_service.engine.machine.memory import is_lost
from scoring_service.engine.machine.page_budget import step_tokens
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.model.context_cost import context_cost
from scoring_service.engine.model.numerics import body_row_multiple
from scoring_service.engine.packed.setup import PackedSetup, packed_settings, set_up
from scoring_service.engine.trials.batch_invariance import is_batch_invariant
from scoring_service.engine.trials.body_trial import fuse_in_steps
from scoring_service.engine.trials.continuation import continuation_failure
from scoring_service.engine.trials.graph_trial import graphs_failure
from scoring_service.engine.trials.head_trial import head_failure
from scoring_service.engine.trials.probe import (
    PLAIN,
    CannotPackError,
    attends_compiled,
    is_chunk_split_invariant,
    layer_shapes,
)
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.build import KernelsUnavailableError
from scoring_service.kernels.cpu.ops import CpuKernels, load_cpu_kernels
from scoring_service.peak_memory import StepShape
from scoring_service.types import EngineConfig


@dataclass(frozen=True, slots=True)
class ChosenPath:
    """The way, and why."""

    packed: PackedSetup | None
    """None: one after another."""
    reason: str
    deterministic: bool = True
    """Whether bits of what it computes do not depend on what else is in its steps."""


def choose_path(
    network: Any, model: CausalModel, config: EngineConfig, limit: int, head_reason: str
) -> ChosenPath:
    """The packed path where its probe agrees.

    Args:
        network: transformers' own.
        model: the same, as the engine runs it.
        config: what was asked for.
        limit: tokens of the longest sequence.
        head_reason: why the head allows the plain path only; empty where it does not.

    Raises:
        ConfigurationError: there is no memory for a step and a sequence.
    """
    try:
        if config.path == "plain":
            raise CannotPackError("the plain path was asked for")
        if head_reason:
            raise CannotPackError(head_reason)
        shapes, note = _layer_shapes(network, model, limit)
        note += _try_head(model)
        note += _fuse_layers(model, shapes)
    except CannotPackError as refusal:
        return ChosenPath(None, f"{PLAIN}: {refusal}{_try_continuing(model, limit)}")
    deterministic = _choose_padding(network, model, shapes, config)
    # Which of torch's operators attends depends on how many queries there are, and so do bits.
    cuts = (
        deterministic
        and attends_compiled(model, shapes)
        and is_chunk_split_invariant(model, shapes, limit)
    )
    shape = _step_shape(network, model, shapes)
    records, graph_note = _try_graphs(model, shapes, config)
    note += graph_note
    cost = context_cost(network.config.to_dict()) if cuts else None
    setup = set_up(config, shapes, shape, limit, model.dtype, model.device, cost, records)
    reason = f"a probe found packed and plain attention equal{note}"
    return ChosenPath(setup, reason, deterministic)


def _try_continuing(model: CausalModel, limit: int) -> str:
    """Computes samples anew for each token where what the model keeps fails; what was given up.

    Raises:
        RuntimeError: the device was lost meanwhile.
    """
    if refusal := continuation_failure(model, limit):
        model.keeps_states = False
        refusal = f"; samples without what it keeps of earlier tokens: {refusal}"
    return refusal


def _choose_padding(
    network: Any, model: CausalModel, shapes: list[LayerShape], config: EngineConfig
) -> bool:
    """Pads steps no more than batch invariance needs; whether there is any then."""
    settings = packed_settings(config, model.device)
    rows = step_tokens(settings.max_batch_tokens, settings.chunk_size)
    model.row_multiple = body_row_multiple(network, rows)
    if is_batch_invariant(network, model, shapes, rows):
        return True
    if model.row_multiple == ROW_MULTIPLE:
        return False
    # What is no product may need it: threads share out the elements of what torch does pointwise.
    model.row_multiple = ROW_MULTIPLE
    return is_batch_invariant(network, model, shapes, rows)


def _layer_shapes(network: Any, model: CausalModel, limit: int) -> tuple[list[LayerShape], str]:
    """What layers keep, and what was given up to be able to pack.

    Raises:
        CannotPackError: with the reason.
    """
    try:
        return layer_shapes(network, model, limit), ""
    except CannotPackError as refusal:
        if is_lost(model.device):
            raise RuntimeError(f"the device was lost while it was probed: {refusal}") from refusal
        if not model.attends_by_triton:
            raise
        # The kernel may be what fails: shared memory that the device lacks, a compiler that is new.
        model.attends_by_triton = False
        return layer_shapes(network, model, limit), f"; without the Triton kernel: {refusal}"


def _try_head(model: CausalModel) -> str:
    """Leaves Triton's kernels of the head out of use where they fail; what was given up.

    Raises:
        RuntimeError: the device was lost meanwhile.
    """
    dispatch.use_triton(model.device, True)
    if dispatch.backend(model.device) != "triton":
        return ""
    if refusal := head_failure(model.head, model.device):
        if is_lost(model.device):
            raise RuntimeError(f"the device was lost while the head was tried: {refusal}")
        dispatch.use_triton(model.device, False)
        refusal = f"; without the Triton kernels of the head: {refusal}"
    torch.cuda.empty_cache()
    return refusal


def _fuse_layers(model: CausalModel, shapes: list[LayerShape]) -> str:
    """Lets kernels make what stands between a body's products; what was given up.

    Raises:
        RuntimeError: the device was lost meanwhile.
    """
    refusal = fuse_in_steps(model, shapes)
    if refusal and is_lost(model.device):
        raise RuntimeError(f"the device was lost while kernels of the body were tried{refusal}")
    return refusal


def _try_graphs(
    model: CausalModel, shapes: list[LayerShape], config: EngineConfig
) -> tuple[bool, str]:
    """Whether steps that only go on with samples are recorded, and what is to be said of it.

    Raises:
        RuntimeError: the device was lost meanwhile.
    """
    if not _may_record(model):
        return False, ""
    if config.cuda_graphs == "off":
        return False, "; without CUDA graphs, as asked for"
    refusal = graphs_failure(model, shapes)
    torch.cuda.empty_cache()
    if refusal:
        return False, f"; without CUDA graphs: {refusal}"
    return True, "; samples go on by CUDA graphs"


def _may_record(model: CausalModel) -> bool:
    # Torch's operators attend in other pieces for samples of other lengths.
    return model.device.type == "cuda" and model.attends_by_triton


def _step_shape(network: Any, model: CausalModel, shapes: list[LayerShape]) -> StepShape:
    """What decides the memory of the model's steps as it is run here."""
    kernels, head = model.kernels, model.head
    on_gpu = dispatch.backend(model.device) == "triton"
    return step_shape(
        network.config.get_text_config().to_dict(),
        vocab_size=head.vocab_size,
        element_bytes=model.dtype.itemsize,
        residual_bytes=model.residual_dtype.itemsize,
        logit_bytes=head.dtype.itemsize,
        device_type=model.device.type,
        compiled_attention=model.attends_by_triton or attends_compiled(model, shapes),
        compiled_head=on_gpu or kernels is not None,
        finishes_logits=not head.finishes_nothing,
    )


def find_kernels(
    config: EngineConfig, device: torch.device, on_stage: Callable[[str], None]
) -> tuple[CpuKernels | None, str]:
    """The C++ kernels, or None and why they are not used."""
    if device.type != "cpu":
        return None, ""
    if config.cpu_kernels == "off":
        return None, "; without C++ kernels, as asked for"
    on_stage("compiling CPU kernels, once a machine")
    try:
        return load_cpu_kernels(), ""
    except KernelsUnavailableError as error:
        return None, f"; without C++ kernels: {error}"


def backend_of(model: CausalModel, packed: PackedSetup | None) -> str:
    """What computes, and on what, such as "compiled-cpu"."""
    if packed is None:
        name = "reference"
    elif model.kernels is not None:
        name = "compiled"
    else:
        name = dispatch.backend(model.device)
        if model.attends_by_triton != (name == "triton"):
            name = "triton-attention" if model.attends_by_triton else "triton-head"
    return f"{name}-{model.device.type}"
