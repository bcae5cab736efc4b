"""Names of pushed tensors that are not the server's own: wrapped, renamed, in parts, merged."""

import pytest
import torch

from scoring_client import InvalidRequestError
from tests.client.pushes import SPECS, assert_holds, raw, state
from tests.client.toy_weights import WeightsServer


@pytest.mark.parametrize("names", ["wrapped", "base model", "renamed"])
def test_names(admin, names):
    tensors = state()
    if names == "wrapped":
        weights = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
        options = {}
    elif names == "base model":
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        options = {}
    else:
        weights = {f"policy/{name}": tensor for name, tensor in tensors.items()}
        weights["critic/v_head.weight"] = torch.zeros(3)
        options = {"names": lambda n: None if "critic" in n else n.removeprefix("policy/")}
    with WeightsServer(SPECS) as server:
        admin(server.target, "push_weights", weights, version=1, **options)
        assert_holds(server, tensors)


EXPERTS = "model.layers.0.mlp.experts"
MOE = {
    f"{EXPERTS}.down_proj": ("bfloat16", (3, 6, 4), ""),
    f"{EXPERTS}.gate_up_proj": ("bfloat16", (3, 8, 6), ""),
    "model.layers.0.mlp.gate.weight": ("float32", (3, 6), ""),
    "model.embeddings.LayerNorm.weight": ("float32", (6,), ""),
}
OLD = "model.layers.0.block_sparse_moe"
IN_CHECKPOINTS = {
    f"{EXPERTS}.down_proj": [f"{OLD}.experts.*.w2.weight"],
    f"{EXPERTS}.gate_up_proj": [f"{OLD}.experts.*.w1.weight", f"{OLD}.experts.*.w3.weight"],
    "model.layers.0.mlp.gate.weight": [f"{OLD}.gate.weight"],
}


def experts_one_by_one():
    """(a checkpoint's tensors, the model's) of MOE."""
    generator = torch.Generator().manual_seed(0)
    w1, w2, w3 = (
        torch.randn(3, *shape, generator=generator).bfloat16() for shape in ((4, 6), (6, 4), (4, 6))
    )
    gate, norm = torch.randn(3, 6, generator=generator), torch.ones(6)
    found = {f"{OLD}.gate.weight": gate, "embeddings.LayerNorm.gamma": norm}
    for expert in reversed(range(3)):
        for name, tensor in (("w1", w1), ("w2", w2), ("w3", w3)):
            found[f"{OLD}.experts.{expert}.{name}.weight"] = tensor[expert]
    return found, {
        f"{EXPERTS}.down_proj": w2,
        f"{EXPERTS}.gate_up_proj": torch.cat([w1, w3], dim=1),
        "model.layers.0.mlp.gate.weight": gate,
        "model.embeddings.LayerNorm.weight": norm,
    }


@pytest.mark.parametrize("form", ["mapping", "iterator", "numpy"])
def test_experts_one_by_one_under_a_checkpoint_s_names(admin, form):
    given, expected = experts_one_by_one()
    options = {}
    if form == "iterator":
        given = ((name, tensor.clone()) for name, tensor in list(given.items()))
    elif form == "numpy":
        given = {name: tensor.float().numpy() for name, tensor in given.items()}
        options = {"convert_dtypes": True}
    with WeightsServer(MOE, checkpoint_names=IN_CHECKPOINTS) as server:
        admin(server.target, "push_weights", given, version=1, **options)
        assert server.tensors == {name: raw(tensor) for name, tensor in expected.items()}


@pytest.mark.parametrize("form", [dict, lambda tensors: iter(tensors.items())])
def test_parts_of_tensors_that_do_not_fit(admin, form):
    name = f"{OLD}.experts.1.w1.weight"
    tensor = experts_one_by_one()[0][name]
    for change, message in (
        ({name: None}, "1 of the 6 parts of .*gate_up_proj are missing, number 2"),
        ({name: tensor.T}, r"has shape \[6, 4\], but a part of .* has \[4, 6\]"),
        ({name: tensor.float()}, "is float32 of Tensor, but other parts"),
        ({f"{EXPERTS}.gate_up_proj": torch.zeros(3, 8, 6).bfloat16()}, "twice|both mean"),
    ):
        tensors = {**experts_one_by_one()[0], **change}
        weights = form({n: t for n, t in tensors.items() if t is not None})
        with WeightsServer(MOE, checkpoint_names=IN_CHECKPOINTS) as server:
            with pytest.raises(InvalidRequestError, match=message):
                admin(server.target, "push_weights", weights, version=1)
            assert server.version == 0


def test_a_part_that_comes_again_is_named(admin):
    """Also when its tensor has been whole, and sent."""
    given = list(experts_one_by_one()[0].items())
    name, tensor = f"{OLD}.experts.1.w1.weight", torch.zeros(4, 6).bfloat16()
    for place in (given.index(next(p for p in given if p[0] == name)) + 1, len(given)):
        again = [*given[:place], (name, tensor), *given[place:]]
        with WeightsServer(MOE, checkpoint_names=IN_CHECKPOINTS) as server:
            with pytest.raises(InvalidRequestError, match=f"^{name} is there twice$"):
                admin(server.target, "push_weights", iter(again), version=1)
            assert server.version == 0


class LoraLinear(torch.nn.Module):
    """PEFT's LoRA layer as far as names and `merged` go."""

    def __init__(self):
        super().__init__()
        self.base_layer = torch.nn.Linear(3, 2)
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(3, 1, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(1, 2, bias=False)})
        self.merged = False


def test_lora_is_pushed_when_it_is_merged(admin):
    policy = torch.nn.Module()
    policy.base_model = torch.nn.Module()
    policy.base_model.model = torch.nn.ModuleDict(
        {"proj": LoraLinear(), "norm": torch.nn.LayerNorm(2)}
    )
    layer = policy.base_model.model["proj"]
    specs = {
        "proj.weight": ("float32", (2, 3), ""),
        "proj.bias": ("float32", (2,), ""),
        "norm.weight": ("float32", (2,), ""),
        "norm.bias": ("float32", (2,), ""),
    }
    with WeightsServer(specs) as server:
        for weights in (policy, policy.state_dict()):
            with pytest.raises(InvalidRequestError, match="merge_adapter"):
                admin(server.target, "push_weights", weights, version=1)
        layer.merged = True
        admin(server.target, "push_weights", policy, version=1)
        assert server.tensors["proj.weight"] == raw(layer.base_layer.weight.detach())
        state = policy.state_dict()
        admin(server.target, "push_weights", state, version=2, merged_lora=True)
        assert set(server.tensors) == set(specs)
