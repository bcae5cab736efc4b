"""From a model's name to a model that answers: weights, tokenizer, head, probes, digests."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scoring_service.engine.causal_model import CausalModel
from scoring_service.engine.causality import is_causal
from scoring_service.engine.digest import weights_digest
from scoring_service.engine.generation_config import eos_token_ids, explicit_settings
from scoring_service.engine.head import LinearHead, RowHead, WholeLogits, linear_head
from scoring_service.engine.head_probe import head_matches
from scoring_service.engine.numerics import (
    body_row_multiple,
    least_padding,
    numerics_id,
    rows_are_invariant,
)
from scoring_service.engine.packed.attention import ATTENTION_NAME
from scoring_service.engine.packed.pages import LayerShape
from scoring_service.engine.packed.probe import (
    PLAIN,
    CannotPackError,
    bits_do_not_depend_on_company,
    layer_shapes,
)
from scoring_service.engine.packed.setup import PackedSetup, set_up
from scoring_service.engine.prepacked import pack_linears
from scoring_service.engine.step_shape import step_shape
from scoring_service.engine.tokenizer import TextCodec
from scoring_service.errors import ConfigurationError
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.build import KernelsUnavailableError
from scoring_service.kernels.cpu.ops import CpuKernels, load_cpu_kernels
from scoring_service.peak_memory import StepShape
from scoring_service.types import EngineConfig, EngineInfo

OnStage = Callable[[str], None]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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
    device = _device(config.device)
    on_stage(f"loading weights of {config.model}")
    network = load_network(config, device)
    text_config = network.config.get_text_config()
    pack_linears(network)
    limit = _sequence_limit(text_config, config)
    on_stage("loading tokenizer")
    tokenizer_json = _load_tokenizer(config)
    codec = None if tokenizer_json is None else TextCodec(tokenizer_json)
    on_stage("hashing weights")
    digest = weights_digest(network.state_dict())
    on_stage("probing the head")
    head, head_reason = _choose_head(network, text_config, config)
    kernels, no_kernels = _cpu_kernels(config, device, on_stage)
    model = CausalModel(network, head, device, config.weight_version, kernels)
    if not is_causal(model, limit):
        raise ConfigurationError(
            f"{config.model!r} is no causal LM: what it says of a token depends on later ones"
        )
    deterministic = False
    if isinstance(head, LinearHead):
        states = model.states(_probe_ids(head.vocab_size, limit))
        model.head = head = least_padding(head, states)
        deterministic = rows_are_invariant(head, states)
    on_stage("probing how it can be packed")
    packed, reason = _choose_path(network, model, config, limit, head_reason)
    if packed is not None:
        limit = min(limit, packed.setup.max_sequence_tokens)
        deterministic = deterministic and packed.deterministic
    elif config.max_batch_tokens is not None:
        # A sequence is one forward pass there.
        limit = min(limit, config.max_batch_tokens)
    dtype = str(network.dtype).removeprefix("torch.")
    head_dtype = str(head.dtype).removeprefix("torch.")
    backend = f"{_backend(packed, kernels, device)}-{device.type}"
    chunk_size = 0 if packed is None else packed.setup.settings.chunk_size
    generation = getattr(network, "generation_config", None)
    identify = partial(
        numerics_id,
        # Of this thread: another one, which stages weights, may have its own number.
        threads=torch.get_num_threads(),
        dtype=dtype,
        head_dtype=head_dtype,
        backend=backend,
        device=_device_name(device),
        chunk_size=chunk_size,
        kernels="" if kernels is None or packed is None else kernels.name,
        attention=ATTENTION_NAME if packed else model.attention,
        triton=None if packed is None else dispatch.version(device),
    )

    def identity(of_digest: str) -> str:
        return identify(digest=of_digest)

    model.keep_weights(digest, identity(digest), cache_key(digest, dtype))
    info = EngineInfo(
        architecture=type(network).__name__,
        vocab_size=head.vocab_size,
        parameter_count=sum(p.numel() for p in network.parameters()),
        max_sequence_tokens=limit,
        weight_version=config.weight_version,
        weights_digest=digest,
        dtype=dtype,
        head_dtype=head_dtype,
        backend=backend,
        device=str(device),
        deterministic=deterministic,
        numerics_id=identity(digest),
        packed=packed is not None,
        path_reason=f"{reason}{no_kernels if packed else ''}",
        chunk_size=chunk_size,
        eos_token_ids=eos_token_ids(generation, text_config, head.vocab_size),
        max_batch_tokens=1024 if packed is None else packed.setup.settings.max_batch_tokens,
        generation_config=explicit_settings(generation),
        tokenizer_json=tokenizer_json,
        bos_token_id=_bos_token_id(codec),
        load_seconds=time.monotonic() - began,
        tensors=() if model.slots is None else model.slots.specs,
        limits=None if packed is None else packed.setup.limits,
    )
    return LoadedModel(model, codec, info, None if packed is None else packed.setup, identity)


def cache_key(digest: str, dtype: str) -> bytes:
    """What cached prompts depend on, beside tokens and salt."""
    return f"{digest} {dtype}".encode()


@dataclass(frozen=True, slots=True)
class _PackedPath:
    setup: PackedSetup
    deterministic: bool


def _choose_path(
    network: Any, model: CausalModel, config: EngineConfig, limit: int, head_reason: str
) -> tuple[_PackedPath | None, str]:
    """The packed path where its probe agrees, else None; and why."""
    try:
        if config.path == "plain":
            raise CannotPackError("the plain path was asked for")
        if head_reason:
            raise CannotPackError(head_reason)
        shapes = layer_shapes(network, model, limit)
        model.fuse_layers()
        model.row_multiple = body_row_multiple(network)
    except CannotPackError as refusal:
        return None, f"{PLAIN}: {refusal}"
    deterministic = bits_do_not_depend_on_company(model, shapes)
    shape = _step_shape(network, model, shapes)
    setup = set_up(config, shapes, shape, limit, model.dtype, model.device)
    return _PackedPath(setup, deterministic), "a probe found packed and plain attention equal"


def _step_shape(network: Any, model: CausalModel, shapes: list[LayerShape]) -> StepShape:
    """What decides the memory of the model's steps as it is run here."""
    kernels, head = model.kernels, model.head
    even = all(width % 2 == 0 for layer in shapes for width in (layer.key_dim, layer.value_dim))
    on_gpu = dispatch.backend(model.device) == "triton"
    return step_shape(
        network.config.get_text_config().to_dict(),
        vocab_size=head.vocab_size,
        element_bytes=model.dtype.itemsize,
        logit_bytes=head.dtype.itemsize,
        device_type=model.device.type,
        compiled_attention=kernels is not None and kernels.takes(model.dtype) and even,
        compiled_head=on_gpu or kernels is not None,
        finishes_logits=not head.finishes_nothing,
    )


def _cpu_kernels(
    config: EngineConfig, device: torch.device, on_stage: OnStage
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


def _backend(packed: _PackedPath | None, kernels: CpuKernels | None, device: torch.device) -> str:
    if packed is None:
        return "reference"
    return dispatch.backend(device) if kernels is None else "compiled"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {name!r} cannot be used: {error}") from error
    return device


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _source(config: EngineConfig) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds the model, and the arguments that go with it."""
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        arguments["revision"] = config.revision
    path = Path(config.model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigurationError(f"there is no file {config.model}")
        return str(path.parent), {**arguments, "gguf_file": path.name}
    if path.is_dir():
        return str(path), arguments
    if path.is_absolute() or config.model.startswith((".", "~")):
        raise ConfigurationError(f"there is no folder {config.model}")
    return config.model, arguments


def load_network(config: EngineConfig, device: torch.device) -> Any:
    """The model alone, ready to run.

    Raises:
        ConfigurationError: it cannot be had.
    """
    source, arguments = _source(config)
    if config.dtype != "auto" and config.dtype not in _DTYPES:
        raise ConfigurationError(
            f"dtype {config.dtype!r} is none of auto, {', '.join(sorted(_DTYPES))}"
        )
    dtype = _DTYPES.get(config.dtype, "auto")
    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **arguments
        )
        if getattr(network.config.get_text_config(), "attn_logit_softcapping", None):
            # transformers' default attention leaves soft-capping out without a word.
            network.set_attn_implementation("eager")
        network = network.to(device).eval().requires_grad_(False)
    except Exception as error:  # the errors of many parsers have no common base
        raise _unloadable(f"the model {config.model!r}", error) from error
    if missing := sorted(found["missing_keys"]):
        # transformers fills them with random numbers and goes on.
        raise ConfigurationError(
            f"the files of {config.model!r} lack {len(missing)} of the weights of a "
            f"{type(network).__name__}, such as {missing[0]}"
        )
    return network


def _unloadable(what: str, error: Exception) -> ConfigurationError:
    """Quotes a library's message, but not the list of all architectures at the end of some."""
    reason = textwrap.shorten(str(error), 500, placeholder=" …")
    return ConfigurationError(f"cannot load {what}: {reason}")


def _load_tokenizer(config: EngineConfig) -> str | None:
    """The fast tokenizer's JSON; None when the model comes without one."""
    source, arguments = _source(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    except Exception as error:
        if (Path(source) / "tokenizer.json").is_file():
            raise _unloadable(f"the tokenizer of {config.model!r}", error) from error
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None or _is_made_up(backend) else backend.to_str()


def _is_made_up(backend: Any) -> bool:
    """Where a model has no tokenizer, transformers makes one up that knows special tokens only."""
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    return set(backend.get_vocab(with_added_tokens=False)) <= special


def _bos_token_id(codec: TextCodec | None) -> int | None:
    """The id that `add_special_tokens` puts before a text, where it does."""
    ids = [] if codec is None else codec.encode("", add_special_tokens=True)
    return ids[0] if ids else None


def _choose_head(network: Any, text_config: Any, config: EngineConfig) -> tuple[RowHead, str]:
    """The model's head as a linear layer where a probe agrees, else its own logits and why."""
    if config.head_dtype != "auto" and config.head_dtype not in _DTYPES:
        raise ConfigurationError(
            f"head dtype {config.head_dtype!r} is none of auto, {', '.join(sorted(_DTYPES))}"
        )
    dtype = _DTYPES.get(config.head_dtype, network.dtype)
    module = network.get_output_embeddings()
    if module is not None:
        own = linear_head(module, text_config, network.dtype)
        if own is not None and head_matches(network, module, own):
            head = linear_head(module, text_config, dtype)
            if head is not None:
                return head, ""
    vocab = int(text_config.vocab_size)
    return (
        WholeLogits(vocab, network.dtype),
        "its head is not a linear layer that could be run on wanted rows alone, so all "
        f"rows of a sequence are projected, in {str(network.dtype).removeprefix('torch.')}",
    )


def _probe_ids(vocab_size: int, limit: int) -> list[int]:
    return [(7 * i) % vocab_size for i in range(min(24, limit))]


def _sequence_limit(text_config: Any, config: EngineConfig) -> int:
    """Longest sequence: the least of the model's positions and what the configuration allows."""
    positions = getattr(text_config, "max_position_embeddings", None)
    wanted = config.max_model_len
    if positions is not None and wanted is not None and wanted > positions:
        raise ConfigurationError(
            f"max_model_len {wanted} exceeds the model's {positions} positions"
        )
    limits = [n for n in (positions, wanted) if n is not None]
    if not limits:
        raise ConfigurationError(
            "the model does not say how long a sequence may be: set max_model_len"
        )
    return int(min(limits))
