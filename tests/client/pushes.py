"""What is pushed: a trainer's tensors, and what the server's model is made of."""

import safetensors.torch
import torch

SPECS = {
    "lm_head.weight": ("bfloat16", (300, 1000), "model.embed_tokens.weight"),
    "model.embed_tokens.weight": ("bfloat16", (300, 1000), ""),
    "model.layers.0.weight": ("bfloat16", (1000, 3001), ""),
    "model.layers.0.bias": ("float32", (7,), ""),
    "model.norm.weight": ("bfloat16", (1000,), ""),
    "model.scale": ("float32", (), ""),
    "model.steps": ("int64", (2,), ""),
    "model.nothing": ("float32", (0, 4), ""),
}
ROOTS = {name for name, spec in SPECS.items() if not spec[2]}


def state(tied=True):
    """A trainer's state_dict for SPECS."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (dtype, shape, _) in SPECS.items():
        values = torch.randn(shape, generator=generator) * 50
        tensors[name] = values.to(getattr(torch, dtype))
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def raw(tensor):
    """Bytes as another library writes them: what follows the header of a safetensors file."""
    file = safetensors.torch.save({"t": tensor.contiguous()})
    return file[8 + int.from_bytes(file[:8], "little") :]


def assert_holds(server, tensors):
    for name in ROOTS:
        assert server.tensors[name] == raw(tensors[name]), name
