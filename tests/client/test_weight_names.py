"""Names without wrappers, and adapters that are not merged."""

import pytest

from scoring_client import InvalidRequestError
from scoring_client.weights.names import plain_name

PLAIN = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "name",
    [
        PLAIN,
        f"module.{PLAIN}",
        f"_orig_mod.{PLAIN}",
        f"module._orig_mod.{PLAIN}",
        "model.layers.0._orig_mod.mlp.up_proj.weight",
        f"_fsdp_wrapped_module.{PLAIN}",
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
        "model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight",
        f"base_model.model.{PLAIN}",
        f"module.base_model.model.{PLAIN}",
    ],
)
def test_wrappers_are_left_out(name):
    assert plain_name(name) == PLAIN


def test_a_module_called_module_inside_is_kept():
    assert plain_name("model.module.weight") == "model.module.weight"


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight",
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight",
    ],
)
def test_adapters_that_are_not_merged_are_refused(name):
    with pytest.raises(InvalidRequestError, match="merge_adapter"):
        plain_name(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", PLAIN),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight", None),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("base_model.model.lm_head.original_module.weight", None),
    ],
)
def test_merged_adapters(name, expected):
    assert plain_name(name, merged_lora=True) == expected


def test_flat_shards_are_refused():
    with pytest.raises(InvalidRequestError, match="FULL_STATE_DICT"):
        plain_name("_fsdp_wrapped_module._flat_param")
