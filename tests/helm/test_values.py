"""Every value is explained where it stands, known to the schema, and easily set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.helm.charts import CHART, helm

OF_KUBERNETES = {"podSecurityContext", "containerSecurityContext", "resources", "labels"}
"""Maps that are explained as a whole: what is in them is not the chart's."""


def leaves(node: yaml.MappingNode, path: str = "") -> Iterator[tuple[str, int]]:
    """Each value's path and the number of its line, from 0."""
    for key, value in node.value:
        here = f"{path}.{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value and key.value not in OF_KUBERNETES:
            yield from leaves(value, here)
        else:
            yield here, key.start_mark.line


def test_every_value_is_explained_where_it_stands() -> None:
    """By a comment right above it, of its own."""
    text = (CHART / "values.yaml").read_text()
    lines = text.splitlines()
    found = list(leaves(yaml.compose(text)))
    assert len(found) > 100
    bare = [path for path, line in found if not lines[line - 1].lstrip().startswith("#")]
    assert not bare


def test_the_schema_and_the_values_have_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def properties(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            node = {**node, **schema["$defs"][node["$ref"].rpartition("/")[2]]}
        return node.get("properties", {})

    def compare(node: dict[str, Any], value: dict[str, Any], path: str) -> None:
        known = properties(node)
        # Of what Kubernetes has, the values show some.
        if not known or path in (".defaults.settings", ".defaults.strategy"):
            return
        if node.get("$ref", "").startswith("#/$defs/k8s."):
            return
        optional = {".": {"global"}, ".defaults": {"name"}, ".defaults.resources": {"claims"}}
        free = optional.get(path or ".", set()) | optional.get(path, set())
        if path.endswith(".download.resources"):
            free = {"claims"}
        assert known.keys() - free == value.keys(), path
        for key, inner in value.items():
            if isinstance(inner, dict):
                compare(known[key], inner, f"{path}.{key}")

    compare(schema, values, "")


def test_common_things_are_set_from_the_command_line() -> None:
    done = helm(
        *("template", "release", CHART, "--set", "allowInsecure=true"),
        *("--set", "models[0].name=a,models[0].replicas=3,models[0].settings.max_k=100"),
        *("--set", "defaults.resources.limits.memory=32Gi"),
        *("--set", "defaults.gpus=1,image.repository=example.org/scoring,image.tag=v1"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "image: example.org/scoring:v1" in done.stdout
    assert "replicas: 3" in done.stdout
    assert "max_k: 100" in done.stdout
