"""From a model's name to a model that answers: weights, tokenizer, head, probes, digests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from scoring_service.engine.attention.attention import ATTENTION_NAME
from scoring_service.engine.files.network import load_network, sequence_limit
from scoring_service.engine.files.tokenizer_file import bos_token_id, load_tokenizer
from scoring_service.engine.fused.prepacked import pack_linears
from scoring_service.engine.fused.wide_residuals import choose_residuals
from scoring_service.engine.head.head import LinearHead, RowHead
from scoring_service.engine.head.product import PlainProduct, WideCpuProduct, WideCudaProduct
from scoring_service.engine.loading.description import describe, type_name
from scoring_service.engine.loading.path import backend_of, choose_path, find_kernels
from scoring_service.engine.machine.device import device_name, find_device, prepare_device
from scoring_service.engine.machine.memory import is_lost
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.model.numerics import (
    least_padding,
    numerics_id,
    rows_are_invariant,
    settings_of,
)
from scoring_service.engine.packed.setup import PackedSetup
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.engine.trials.causality import is_causal
from scoring_service.engine.trials.head_probe import choose_head
from scoring_service.engine.trials.head_trial import head_failure, product_failure
from scoring_service.engine.trials.own_forward import refuse_what_does_not_run
from scoring_service.engine.weights.digest import weights_digest
from scoring_service.errors import ConfigurationError
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.types import EngineConfig, EngineInfo

OnStage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to answer."""

    model: CausalModel
    codec: TextCodec | None
    info: EngineInfo
    packed: PackedSetup | None
    """None for a model that takes the plain path."""
    numerics_id: Callable[[str], str]
    """Of the model with the weights of a digest."""


def load(config: EngineConfig, on_stage: OnStage) -> LoadedModel:
    """Loads a model and finds out what can be promised of it.

    Raises:
        ConfigurationError: the model cannot be had or run as configured.
    """
    began = time.monotonic()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    prepare_device(device)
    on_stage(f"loading weights of {config.model}")
    network = load_network(config, device)
    refuse_what_does_not_run(network, device)
    limit = sequence_limit(network, config)
    residual_dtype = choose_residuals(network, config.residual_dtype, limit)
    pack_linears(network)
    on_stage("loading tokenizer")
    tokenizer_json, no_tokenizer = load_tokenizer(config)
    codec = None if tokenizer_json is None else TextCodec(tokenizer_json)
    on_stage("hashing weights")
    digest = weights_digest(network.state_dict())
    kernels, no_kernels = find_kernels(config, device, on_stage)
    on_stage("probing the head")
    head, head_reason = choose_head(network, config, None if config.path == "plain" else kernels)
    if kernels is not None and (refusal := _refusal(network, head, device, kernels)):
        kernels, no_kernels = None, f"; without C++ kernels: {refusal}"
        head, head_reason = choose_head(network, config, None)
    head, no_product = _with_a_sound_product(network, head, device)
    model = CausalModel(network, head, device, config.weight_version, kernels, residual_dtype)
    head_is_deterministic = _probe(model, config, limit)
    on_stage("probing how it can be packed")
    path = choose_path(network, model, config, limit, head_reason)
    path = replace(path, reason=path.reason + no_product)
    identity = _identity(network, model, path.packed)
    model.keep_weights(digest, identity(digest), cache_key(digest, type_name(model.dtype)))
    info = replace(
        describe(
            network,
            model,
            path,
            no_kernels=no_kernels,
            max_sequence_tokens=_longest(limit, path.packed, config),
            deterministic=head_is_deterministic and path.deterministic,
            on_stage=on_stage,
        ),
        tokenizer_json=tokenizer_json,
        tokenizer_reason=no_tokenizer,
        bos_token_id=bos_token_id(codec),
        load_seconds=time.monotonic() - began,
    )
    return LoadedModel(model, codec, info, path.packed, identity)


def _refusal(network: Any, head: RowHead, device: torch.device, kernels: CpuKernels) -> str:
    """Why the C++ kernels are not to be used on this processor; empty where they work."""
    weight_V_H = None
    if isinstance(head, LinearHead) and isinstance(head.matmul, WideCpuProduct):
        weight_V_H = network.get_output_embeddings().weight.detach()
    return head_failure(head, device, kernels, weight_V_H)


def _with_a_sound_product(network: Any, head: RowHead, device: torch.device) -> tuple[RowHead, str]:
    """A head whose product CUDA makes of half-precision factors, or where that fails the same head
    by a plain product, and why.

    Raises:
        RuntimeError: the device was lost meanwhile.
    """
    if not (isinstance(head, LinearHead) and isinstance(head.matmul, WideCudaProduct)):
        return head, ""
    module = network.get_output_embeddings()
    weight_V_H = module.weight.detach()
    refusal = product_failure(head, weight_V_H)
    if not refusal:
        return head, ""
    if is_lost(device):
        raise RuntimeError(f"the device was lost while the head's product was tried: {refusal}")
    bias_V = None if module.bias is None else module.bias.detach()
    plain = replace(head, matmul=PlainProduct(head.dtype)).with_weight(weight_V_H, bias_V)
    return plain, f"; with a copy of the head's weight in fp32: {refusal}"


def cache_key(digest: str, dtype: str) -> bytes:
    """What cached prompts depend on, beside tokens and salt."""
    return f"{digest} {dtype}".encode()


def _probe(model: CausalModel, config: EngineConfig, limit: int) -> bool:
    """Whether the head is batch invariant; pads its rows no more than that needs.

    Raises:
        ConfigurationError: the model is an encoder.
    """
    if not is_causal(model, limit):
        raise ConfigurationError(
            f"{config.model!r} is no causal LM: what it says of a token depends on later ones"
        )
    if not isinstance(model.head, LinearHead):
        return False
    ids = [(7 * i) % model.head.vocab_size for i in range(min(24, limit))]
    states = model.states(ids)
    model.head = head = least_padding(model.head, states)
    return rows_are_invariant(head, states)


def _longest(limit: int, packed: PackedSetup | None, config: EngineConfig) -> int:
    """Tokens of the longest sequence, given what the model and the configuration allow."""
    if packed is not None:
        return min(limit, packed.max_sequence_tokens)
    # A sequence is one forward pass there.
    return limit if config.max_batch_tokens is None else min(limit, config.max_batch_tokens)


def _identity(network: Any, model: CausalModel, packed: PackedSetup | None) -> Callable[[str], str]:
    """The numerics id of the model with the weights of a digest."""
    identify = partial(
        numerics_id,
        config=settings_of(network.config),
        # Of this thread: another one, which stages weights, may have its own number.
        threads=torch.get_num_threads(),
        dtype=type_name(model.dtype),
        residual_dtype=type_name(model.residual_dtype),
        head_dtype=type_name(model.head.dtype),
        backend=backend_of(model, packed),
        device=device_name(model.device),
        chunk_size=0 if packed is None else packed.settings.chunk_size,
        kernels=_kernels(model),
        attention=_attention(model, packed),
        triton=None if packed is None else dispatch.version(model.device),
        graph_rows=() if packed is None else packed.settings.graph_rows,
        keeps_states=model.keeps_states,
    )
    return lambda digest: identify(digest=digest)


def _kernels(model: CausalModel) -> str:
    """Those of body and head, as far as the device and Triton's version do not say."""
    return ", ".join(model.fused.kernels) if model.kernels is None else model.kernels.name


def _attention(model: CausalModel, packed: PackedSetup | None) -> str:
    if packed is None:
        return model.attention
    return f"{ATTENTION_NAME}, Triton" if model.attends_by_triton else ATTENTION_NAME
