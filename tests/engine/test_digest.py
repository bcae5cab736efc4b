"""The weights digest, computed again with hashlib and numpy from the stored tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.weights.digest import weights_digest
from scoring_service.models import tiny_model_path
from tests.contract_digest import contract_digest
from tests.engine.loading import load_model


def stored_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors of a .safetensors file, read by hand."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    names = {"BF16": "bfloat16", "F32": "float32"}
    body = raw[8 + length :]
    return {
        name: (names[entry["dtype"]], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def test_the_packaged_model(tiny_bfloat16: LoadedModel) -> None:
    """As stored; the embedding is tied to the head, whose name comes first."""
    tensors = stored_tensors(tiny_model_path() / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    assert tiny_bfloat16.info.weights_digest == contract_digest(tensors)


def test_the_dtype_as_loaded_counts(tiny: LoadedModel, tiny_bfloat16: LoadedModel) -> None:
    tensors = stored_tensors(tiny_model_path() / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    widened = {}
    for name, (dtype, shape, data) in tensors.items():
        assert dtype == "bfloat16"
        words = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        widened[name] = ("float32", shape, words.tobytes())
    assert tiny.info.weights_digest == contract_digest(widened)
    assert tiny.info.weights_digest != tiny_bfloat16.info.weights_digest


def test_loading_twice_gives_one_digest(tiny_packed: LoadedModel) -> None:
    again = load_model(tiny_model_path(), dtype="float32").info
    assert again.weights_digest == tiny_packed.info.weights_digest
    assert again.numerics_id == tiny_packed.info.numerics_id


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 4, generator=generator),
        "a.weight": torch.randn(5, 2, generator=generator).to(torch.bfloat16),
        "a.step": torch.tensor(3),
        "c.empty": torch.zeros(0, 7, dtype=torch.bfloat16),
    }


def test_made_up_tensors() -> None:
    """Scalars and empty tensors too."""
    ours = tensors()
    expected = {
        "b.weight": ("float32", (3, 4), ours["b.weight"].numpy().astype("<f4").tobytes()),
        "a.weight": (
            "bfloat16",
            (5, 2),
            (ours["a.weight"].float().numpy().view("<u4") >> 16).astype("<u2").tobytes(),
        ),
        "a.step": ("int64", (), np.array(3, dtype="<i8").tobytes()),
        "c.empty": ("bfloat16", (0, 7), b""),
    }
    assert weights_digest(ours) == contract_digest(expected)


def test_order_and_strides_do_not_count() -> None:
    ours = tensors()
    turned = {
        name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor
        for name, tensor in ours.items()
    }
    assert not turned["b.weight"].is_contiguous()
    assert weights_digest(dict(reversed(turned.items()))) == weights_digest(ours)


def test_tied_tensors_count_once() -> None:
    """Under the first of their names; a copy is another tensor."""
    plain = tensors()
    tied = {**plain, "d.weight": plain["b.weight"]}
    assert weights_digest(tied) == weights_digest(plain)
    copied = {**plain, "d.weight": plain["b.weight"].clone()}
    assert weights_digest(copied) != weights_digest(plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["b.weight"][2, 3].add_(1e-6),
        lambda t: t.update({"b.weights": t.pop("b.weight")}),
        lambda t: t.update({"b.weight": t["b.weight"].double()}),
        lambda t: t.update({"b.weight": t["b.weight"].reshape(4, 3)}),
        lambda t: t.update({"b.weight": t["b.weight"].T}),
        lambda t: t.pop("c.empty"),
        lambda t: t.update({"a.step": torch.tensor(4)}),
    ],
    ids=["an element", "a name", "a dtype", "a shape", "the layout", "one less", "a scalar"],
)
def test_any_change_shows(change: object) -> None:
    changed = {name: tensor.clone() for name, tensor in tensors().items()}
    change(changed)  # type: ignore[operator]
    assert weights_digest(changed) != weights_digest(tensors())
