"""Which Triton kernels a body takes: those that give what its modules give, in a step too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import AutoModelForCausalLM

from scoring_service.engine.fused.modules import fuse_layers
from scoring_service.engine.loading import path
from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.kernels import dispatch
from scoring_service.kernels.body import EagerBody, GateForm, NormForm
from scoring_service.kernels.gpu import gated_activation, rms_norm, rotary
from scoring_service.kernels.gpu.body import TritonBody
from scoring_service.types import EngineConfig
from tests.engine import plain
from tests.engine.sampling import sample
from tests.engine.scoring import groups, score
from tests.engine.small_models import ARCHITECTURES, VOCAB, save_model
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.variants import Variant, recorded

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def network(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    made = AutoModelForCausalLM.from_pretrained(save_model(BY_NAME[name], folder), dtype=dtype)
    for module in made.modules():
        if type(module).__name__.endswith("RMSNorm"):
            with torch.no_grad():  # neither ones nor zeros, which hide where a norm is rounded
                module.weight.add_(0.3 * torch.randn_like(module.weight))
    return made.to(DEVICE)


def fused_names(network: Any) -> set[str]:
    return {type(m).__name__ for m in network.modules() if "forward" in m.__dict__}


@pytest.mark.parametrize(
    ("name", "modules", "kernels"),
    [
        (
            "llama",
            {"LlamaRMSNorm", "LlamaMLP", "LlamaDecoderLayer"},
            {"rms_norm of 32", "add_rms_norm of 32", "silu_mul of 48", "rotate of 8"},
        ),
        (
            "qwen3",
            {"Qwen3RMSNorm", "Qwen3MLP", "Qwen3DecoderLayer"},
            {"rms_norm of 8", "rms_norm of 32", "add_rms_norm of 32", "silu_mul of 48",
             "rotate of 8"},
        ),
        (
            "gemma3",  # norms after the products too: its layers add for themselves
            {"Gemma3RMSNorm", "Gemma3MLP"},
            {"rms_norm_offset of 8", "rms_norm_offset of 32", "gelu_tanh_mul of 48", "rotate of 8"},
        ),
        (
            "gpt-oss",
            {"GptOssRMSNorm"},
            {"rms_norm_once of 32"},  # its function takes half a table
        ),
        ("gpt2", set(), set()),
        ("cohere", {"CohereMLP"}, {"silu_mul of 48"}),  # turns neighbours; its norm has a mean
    ],
)  # fmt: skip
def test_what_is_fused(name: str, modules: set[str], kernels: set[str], tmp_path: Path) -> None:
    made = network(name, tmp_path)
    fused = fuse_layers(made, TritonBody(), made.dtype)
    assert fused_names(made) == modules
    assert set(fused.kernels) - {"add_rms_norm_offset of 32"} == kernels
    assert fused.note == ""
    fused.undo()
    assert fused_names(made) == set()


class Wrong(TritonBody):
    """One that errs."""

    def __init__(self, part: str, errs: Callable[..., Any]) -> None:
        self._part, self._errs = part, errs

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name == self._part:
            return self._errs
        return super().__getattribute__(name)


RIGHT = TritonBody()


def another_mean(form: NormForm, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    width = len(weight)
    return RIGHT.norm(form, rows * ((width - 1) / width) ** 0.5, weight, eps)


def rounded_once(form: NormForm, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    return RIGHT.norm(NormForm.ONCE, rows, weight, eps)


def without_eps(form: NormForm, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    return RIGHT.norm(form, rows, weight, 0.0)


def product_rounded_once(form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
    return (nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


def by_error_function(form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.gelu(gate) * up


def other_way_round(form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
    return RIGHT.gate(form, up, gate)


def backwards(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return RIGHT.rotate(q, k, cos, -sin)


def keys_left_alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return RIGHT.rotate(q, k, cos, sin)[0], k


def turned_in_fp32(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    wide = RIGHT.rotate(q.float(), k.float(), cos.float(), sin.float())
    return wide[0].to(q.dtype), wide[1].to(k.dtype)


def sum_not_rounded(
    form: NormForm, residual: Tensor, rows: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = residual.float() + rows.float()
    return total.to(residual.dtype), RIGHT.norm(NormForm.ONCE, total, weight, eps)


WRONG = {
    "mean of fewer": ("llama", "norm", another_mean, "LlamaRMSNorm", "rms_norm of 32"),
    "rounded once": ("llama", "norm", rounded_once, "LlamaRMSNorm", "rms_norm of 32"),
    "without eps": ("llama", "norm", without_eps, "LlamaRMSNorm", "rms_norm of 32"),
    "sum not rounded": (
        "llama", "add_norm", sum_not_rounded, "LlamaDecoderLayer", "add_rms_norm of 32",
    ),
    "product": ("llama", "gate", product_rounded_once, "LlamaMLP", "silu_mul of 48"),
    "gate and up": ("llama", "gate", other_way_round, "LlamaMLP", "silu_mul of 48"),
    "error function": ("gemma3", "gate", by_error_function, "Gemma3MLP", "gelu_tanh_mul of 48"),
    "backwards": ("llama", "rotate", backwards, "", "rotate of 8"),
    "keys": ("llama", "rotate", keys_left_alone, "", "rotate of 8"),
    "in fp32": ("llama", "rotate", turned_in_fp32, "", "rotate of 8"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_kernel_that_errs_is_not_taken(case: str, tmp_path: Path) -> None:
    name, part, errs, module, kernel = WRONG[case]
    made = network(name, tmp_path)
    fused = fuse_layers(made, Wrong(part, errs), made.dtype)
    assert module not in fused_names(made)
    assert kernel not in fused.kernels
    assert f"; without the Triton kernel {kernel}: it differs" in fused.note
    assert (fused.rotary is None) == (part == "rotate")
    assert fused.kernels, "the others are taken"


class Launched(TorchDispatchMode):
    """Counts what torch launches: neither views nor products nor attention."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        name = func.__name__.split(".")[0]
        if alias is None and not name.startswith(_NO_LAUNCH):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


_NO_LAUNCH = ("mm", "addmm", "bmm", "_scaled_dot", "_unsafe_view", "empty", "detach")


class Counted(TritonBody):
    """One launch each, of whatever they compute."""

    def __init__(self, launched: Launched) -> None:
        self._launched = launched

    def __getattribute__(self, name: str) -> Any:
        if name not in ("norm", "add_norm", "gate", "rotate"):
            return super().__getattribute__(name)

        def launch(*given: Any) -> Any:
            self._launched.names.append(name)
            with _disable_current_modes():
                return getattr(EagerBody(), name)(*given)

        return launch


def test_launches_of_a_layer(tmp_path: Path) -> None:
    """Those of Qwen 3 beside its products and its attention, which is other operators elsewhere:
    they are counted on the host."""
    made = network("qwen3", tmp_path).to("cpu")
    layer = made.model.layers[0]
    rows = torch.randn(1, 16, 32).bfloat16()
    tables = made.model.rotary_emb(rows, torch.arange(16)[None])

    def launches() -> list[str]:
        launched.names.clear()
        with torch.no_grad(), launched:
            layer(rows, attention_mask=None, position_embeddings=tables)
        return launched.names.copy()

    launched = Launched()
    assert len(launches()) == 46
    with fuse_layers(made, Counted(launched), made.dtype).in_a_step():
        names = launches()
    assert sorted(names) == ["add", "add_norm", "gate", "norm", "norm", "norm", "rotate"]


REFUSING = {
    "rms_norm_rows": (rms_norm, "rms_norm of 32", {"LlamaMLP"}),
    "activated_product": (
        gated_activation, "silu_mul of 48", {"LlamaRMSNorm", "LlamaDecoderLayer"},
    ),
    "rotate_heads": (rotary, "rotate of 8", {"LlamaMLP", "LlamaRMSNorm", "LlamaDecoderLayer"}),
}  # fmt: skip


class Refuses:
    """A kernel that the device does not start."""

    def __getitem__(self, _grid: Any) -> Callable[..., None]:
        def launch(*_arguments: Any, **_options: Any) -> None:
            raise RuntimeError("out of resource: shared memory\nand more")

        return launch


@pytest.mark.parametrize("kernel", REFUSING)
def test_a_kernel_that_does_not_start_is_not_taken(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, others = REFUSING[kernel]
    monkeypatch.setattr(module, kernel, Refuses())
    made = network("llama", tmp_path)
    fused = fuse_layers(made, TritonBody(), made.dtype)
    assert fused_names(made) == others
    assert f"; without the Triton kernel {name}: out of resource: shared memory" in fused.note
    assert "and more" not in fused.note


@pytest.fixture
def triton_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else by torch, and no tall steps at load: an interpreter is slow."""
    monkeypatch.setattr(dispatch, "body_kernels", lambda _device: TritonBody())
    monkeypatch.setattr(path, "is_batch_invariant", lambda *_probed: False)
    if DEVICE.type == "cuda":
        monkeypatch.setattr(dispatch, "attends_by_triton", lambda _device: False)
        monkeypatch.setattr(dispatch, "backend", lambda _device: "eager")


def load_here(folder: Path, **settings: Any) -> LoadedModel:
    config = EngineConfig(
        str(folder), device=DEVICE.type, cpu_kernels="off", chunk_size=16,
        memory_utilization=0.05 if DEVICE.type == "cuda" else None, **settings,
    )  # fmt: skip
    return load(config, lambda _stage: None)


def pair() -> tuple[list[int], list[list[int]]]:
    ids = np.random.default_rng(0).integers(0, VOCAB, size=40).tolist()
    return ids[:20], [ids[20:], ids[5:25]]


def scored(loaded: LoadedModel) -> np.ndarray:
    answer = score(loaded, groups([pair()]))
    return np.concatenate([answer[0, index].logprobs for index in range(2)])


def expected(network: Any) -> np.ndarray:
    prompt, parts = pair()
    rows = [
        plain.log_softmax(plain.row_logits(network, prompt, part)[:-1])[np.arange(len(part)), part]
        for part in parts
    ]
    return np.concatenate(rows)


@pytest.mark.usefixtures("triton_bodies")
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_a_model_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    """Scores across seams and samples: plain transformers' numbers, with every kernel in use."""
    folder = save_model(BY_NAME[name], tmp_path)
    loaded = load_here(folder, dtype="float32")
    assert loaded.info.packed
    assert "without" not in loaded.info.path_reason.replace("without C++ kernels", "")
    kinds = {kernel.split(" of ")[0].removeprefix("add_") for kernel in loaded.model.fused.kernels}
    assert len(kinds) == 3, kinds
    network = plain.load(folder, torch.float32)
    np.testing.assert_allclose(scored(loaded), expected(network), atol=1e-4)
    prompt = [3, 14, 15, 92, 65]
    drawn = sample(loaded, prompt, seed=5, max_tokens=7, ignore_eos=True)[0, 0]
    logits = plain.row_logits(network, prompt, drawn.token_ids)[:-1]
    want = plain.log_softmax(logits)[range(7), drawn.token_ids]
    np.testing.assert_allclose(drawn.logprobs, want, atol=1e-4)


@pytest.mark.usefixtures("triton_bodies")
@pytest.mark.parametrize("residuals", ["auto", "float32"])
def test_half_precision(residuals: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float32 as torch's operators are, under another numerics id."""
    folder = save_model(BY_NAME["qwen3"], tmp_path)
    settings = {"dtype": "bfloat16", "residual_dtype": residuals}
    loaded = load_here(folder, **settings)
    assert "add_rms_norm of 32" in loaded.model.fused.kernels
    assert loaded.info.residual_dtype == ("bfloat16" if residuals == "auto" else "float32")
    monkeypatch.setattr(dispatch, "body_kernels", lambda _device: None)
    without = load_here(folder, **settings)
    assert not without.model.fused.kernels
    assert loaded.info.numerics_id != without.info.numerics_id
    exact = expected(plain.load(folder, torch.bfloat16).float())
    errors = [np.abs(scored(model) - exact).mean() for model in (loaded, without)]
    assert errors[0] <= 1.1 * errors[1] + 0.005


@pytest.mark.usefixtures("triton_bodies")
def test_no_request_compiles_anew(tmp_path: Path) -> None:
    """What steps of other sizes launch was launched when the model was loaded."""
    before, since = set[Variant](), set[Variant]()
    with recorded(before):
        loaded = load_here(save_model(BY_NAME["qwen3"], tmp_path), dtype="bfloat16")
    with recorded(since):
        scored(loaded)
        sample(loaded, [3, 14, 15], seed=5, max_tokens=3, ignore_eos=True)
    assert {name for name, _ in since} == {
        "rms_norm_rows", "activated_product", "rotate_heads",
    }  # fmt: skip
    assert since <= before


@pytest.mark.usefixtures("triton_bodies")
def test_a_step_that_differs_takes_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is right on rows side by side, and wrong on rows as layers leave them."""
    own = TritonBody.rotate

    def errs(body: TritonBody, q: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        turned, keys = own(body, q, *rest)
        return (turned if q.is_contiguous() else turned.flip(1)), keys

    monkeypatch.setattr(TritonBody, "rotate", errs)
    folder = save_model(BY_NAME["llama"], tmp_path)
    loaded = load_here(folder, dtype="float32")
    assert loaded.info.packed
    assert not loaded.model.fused.kernels
    assert "; without the kernels of the body: a step's states" in loaded.info.path_reason
    np.testing.assert_allclose(
        scored(loaded), expected(plain.load(folder, torch.float32)), atol=1e-4
    )


@pytest.mark.usefixtures("triton_bodies")
def test_the_reason_names_kernels_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rms_norm, "rms_norm_rows", Refuses())
    loaded = load_here(save_model(BY_NAME["llama"], tmp_path), dtype="float32")
    assert "without the Triton kernel rms_norm of 32: out of resource" in loaded.info.path_reason
    assert set(loaded.model.fused.kernels) == {"silu_mul of 48", "rotate of 8"}
