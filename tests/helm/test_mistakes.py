"""Values that are wrong are refused, with a message that names the place and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.helm.charts import CHART, helm, template
from tests.helm.test_renders import KEY, OPEN, PEM, one

TYPOS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "at the top": ({"modles": []}, ("modles", "not allowed")),
    "in a model": (one(replica=2), ("/models/0", "replica")),
    "in the defaults": ({**OPEN, "defaults": {"gpu": 1}}, ("/defaults", "gpu")),
    "in a map": (one(cache={"enable": True}), ("/models/0/cache", "enable")),
    "in the settings": (one(settings={"max_modle_len": 9}), ("/settings", "max_modle_len")),
    "a word too many": (one(liveWeights={"push": True}), ("/models/0/liveWeights", "push")),
    "a setting of the chart": (one(settings={"port": 80}), ("/settings", "port")),
    "a setting as a flag": (one(settings={"max-k": 9}), ("/settings", "max-k")),
    "a setting out of range": (one(settings={"chunk_size": 1}), ("chunk_size", "16")),
    "a setting of another type": (one(settings={"max_k": "many"}), ("max_k", "integer")),
    "an unknown choice": (one(settings={"dtype": "fp16"}), ("dtype", "'bfloat16'")),
    "off without quotes": (one(settings={"cpu_kernels": False}), ("cpu_kernels", "'off'")),
    "a bad name": ({**OPEN, "models": [{"name": "Qwen_8B"}]}, ("/models/0/name", "Qwen_8B")),
    "no name": ({**OPEN, "models": [{"gpus": 1}]}, ("/models/0", "name")),
    "no models": ({**OPEN, "models": []}, ("/models", "1")),
    "a number as text": (one(replicas="two"), ("/models/0/replicas", "integer")),
    "a bad quantity": (one(sharedMemory="1 GB"), ("sharedMemory", "1 GB")),
    "a bad scope": (
        {
            **OPEN,
            "auth": {
                "enabled": True,
                "tokens": [{"name": "a", "scopes": ["read"], "token": "x" * 16}],
            },
        },
        ("/auth/tokens/0/scopes/0", "'score'"),
    ),
    "a short token": (
        {
            **OPEN,
            "auth": {"enabled": True, "tokens": [{"name": "a", "scopes": ["score"], "token": "x"}]},
        },
        ("/auth/tokens/0", "token"),
    ),
    "scaling to nought": (one(autoscaling={"minReplicas": 0}), ("minReplicas", "1")),
    "a budget of nought": (one(podDisruptionBudget={"maxUnavailable": 0}), ("maxUnavailable", "1")),
    "a setting in the environment": (
        one(env=[{"name": "SCORING_PORT", "value": "1"}]),
        ("/models/0/env/0/name",),
    ),
    "a volume that is there": (one(extraVolumes=[{"name": "tmp"}]), ("extraVolumes/0/name",)),
    "a key that is none": (
        {**OPEN, "tls": {"enabled": True, "certificate": "x", "key": KEY}},
        ("/tls/certificate", "BEGIN CERTIFICATE"),
    ),
}


@pytest.mark.parametrize("case", TYPOS)
def test_a_typo_is_named_with_its_place(case: str) -> None:
    values, named = TYPOS[case]
    done = template(values)
    assert done.returncode != 0
    assert all(word in done.stderr for word in named), done.stderr
    assert done.stdout == ""


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "open to all": ({}, "allowInsecure=true"),
    "encrypted, open to all": (
        {"tls": {"enabled": True, "existingSecret": "tls"}},
        "allowInsecure=true",
    ),
    "tokens in the clear": (
        {"auth": {"enabled": True, "existingSecret": "tokens"}},
        "allowInsecure=true",
    ),
    "no certificate": ({**OPEN, "tls": {"enabled": True}}, "tls.existingSecret, or"),
    "mutual without TLS": ({**OPEN, "tls": {"clientCa": {"enabled": True}}}, "needs tls.enabled"),
    "mutual without authorities": (
        {"tls": {"enabled": True, "certificate": PEM, "key": KEY, "clientCa": {"enabled": True}}},
        "tls.clientCa.enabled needs",
    ),
    "authorities in another's Secret": (
        {
            "tls": {
                "enabled": True,
                "existingSecret": "tls",
                "clientCa": {"enabled": True, "certificate": PEM},
            }
        },
        "use tls.clientCa.existingSecret",
    ),
    "no tokens": ({**OPEN, "auth": {"enabled": True}}, "auth.existingSecret or auth.tokens"),
    "no time to end": (
        one(drainSeconds=300, terminationGracePeriodSeconds=60),
        "terminationGracePeriodSeconds 60 would kill running calls: preStopSeconds 5 + "
        "drainSeconds 300 + 10 = 315 is the least",
    ),
    "a name for all": ({**OPEN, "defaults": {"name": "x"}}, "defaults.name: a name belongs to"),
    "two of a name": ({**OPEN, "models": [{"name": "a"}, {"name": "a"}]}, 'two are called "a"'),
    "a claim of one node": (
        one(replicas=2, cache={"enabled": True}),
        "several pods cannot share a ReadWriteOnce claim",
    ),
    "a claim of one node, scaled": (
        one(cache={"enabled": True}, autoscaling={"enabled": True, "query": "x"}),
        "several pods cannot share a ReadWriteOnce claim",
    ),
    "nothing to download": (one(download={"enabled": True}), "needs a Hub id"),
    "a folder to download": (
        one(model="/models/x", download={"enabled": True}),
        'needs a Hub id as model, not "/models/x"',
    ),
    "fewer than the least": (
        one(autoscaling={"enabled": True, "query": "x", "minReplicas": 9}),
        "maxReplicas is below",
    ),
    "scaling by nothing": (
        one(autoscaling={"enabled": True}),
        "metrics.serviceMonitor.enabled, or autoscaling.query",
    ),
    "a GPU and the default memory": (
        one(gpus=1),
        "models[m]: with GPUs, weights pass through the host's memory, and "
        "resources.limits.memory 4Gi kills",
    ),
    "a GPU and little memory, in bytes": (
        one(gpus=1, resources={"limits": {"memory": 17_179_869_183}}),
        "resources.limits.memory",
    ),
    "pushes by nobody": (one(liveWeights={"enabled": True}), "settings.allow_admin=true"),
    "pushes by no certificate": (
        {
            **one(liveWeights={"enabled": True}),
            "tls": {"enabled": True, "existingSecret": "tls", "clientCa": {"enabled": True}},
        },
        "settings.admin_names",
    ),
    "pushes by no token": (
        {
            **one(liveWeights={"enabled": True}),
            "auth": {
                "enabled": True,
                "tokens": [{"name": "a", "scopes": ["score"], "token": "x" * 16}],
            },
        },
        "no entry of auth.tokens has the scope admin",
    ),
    "workers without a GPU": (one(gpus=2, workers=3), "3 workers would share 2 GPUs"),
    "a long name": (
        {**OPEN, "fullnameOverride": "x" * 40, "models": [{"name": "y" * 20}]},
        "longer than 54 characters",
    ),
    "no memory asked for": (
        {**OPEN, "defaults": {"resources": {"requests": {"memory": None}, "limits": None}}},
        "resources.requests.memory is needed",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_cannot_work_is_explained(case: str) -> None:
    values, named = CONTRADICTIONS[case]
    done = template(values)
    assert done.returncode != 0
    assert named in done.stderr, done.stderr
    assert "nil pointer" not in done.stderr


def test_an_old_cluster_is_refused() -> None:
    done = template(OPEN, "--kube-version", "1.28.3")
    assert done.returncode != 0
    assert "1.29" in done.stderr


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path


def test_every_value_is_explained_where_it_stands() -> None:
    """A comment above each key, or above the block of short keys that it belongs to."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        key = line.lstrip().removeprefix("- ")
        if not key or key.startswith("#") or ":" not in key:
            continue
        above = lines[number - 1].strip()
        if not above:
            bare.append(line)  # the first line of a block
    assert not [line for line in bare if line.strip() not in UNEXPLAINED]


UNEXPLAINED = {"image:", "service:", "tls:", "auth:", "hub:", "metrics:", "test:"} | {
    "networkPolicy:",
    "serviceAccount:",
}
"""Headings; what is below each is explained."""


def test_the_schema_and_the_values_have_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def properties(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            node = {**node, **schema["$defs"][node["$ref"].rpartition("/")[2]]}
        return node.get("properties", {})

    def compare(node: dict[str, Any], value: dict[str, Any], path: str) -> None:
        known = properties(node)
        if not known or path in (".defaults.settings", ".defaults.strategy", ".defaults.affinity"):
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
