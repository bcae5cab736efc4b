"""How pods come, are replaced and go: volumes, spread, probes, what makes new ones."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest

from tests.helm.charts import of_kind, only, render, settings_of
from tests.helm.values import MATRIX, OPEN, one


def test_a_change_of_settings_replaces_the_pods_of_that_model_alone() -> None:
    models: list[dict[str, Any]] = [{"name": "a"}, {"name": "b"}]

    def annotations() -> list[dict[str, str]]:
        deployments = of_kind(render({**OPEN, "models": models}), "Deployment")
        return [d["spec"]["template"]["metadata"]["annotations"] for d in deployments]

    before = annotations()
    assert before == annotations()
    models[0]["settings"] = {"max_k": 10}
    after = annotations()
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_pods_that_answer_from_their_first_weights() -> None:
    manifests = render(MATRIX["live weights"])
    assert "await_weights" not in settings_of(manifests, "m")
    container = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["startupProbe"]["grpc"]["service"] == "scoring.v1.ScoringService"
    assert only(manifests, "Service", "-replicas")["spec"]["publishNotReadyAddresses"]


ONCE, MANY, READ = "ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"


@pytest.mark.parametrize("claim", ["", "weights"])
@pytest.mark.parametrize(
    ("modes", "model", "kind"),
    [
        ([ONCE], {}, "Recreate"),
        (["ReadWriteOncePod"], {}, "Recreate"),
        ([ONCE, READ], {}, "Recreate"),
        ([MANY], {}, "RollingUpdate"),
        ([ONCE, MANY], {}, "RollingUpdate"),
        # Whoever says how it is done has it so.
        ([MANY], {"replicas": 2}, "RollingUpdate"),
        ([ONCE], {"strategy": {"type": "RollingUpdate"}}, "RollingUpdate"),
    ],
)
def test_a_pod_that_has_a_claim_to_itself_goes_before_the_next_one_comes(
    claim: str, modes: list[str], model: dict[str, Any], kind: str
) -> None:
    cache = {"enabled": True, "accessModes": modes, "existingClaim": claim}
    manifests = render(one(cache=cache, **model))
    assert only(manifests, "Deployment")["spec"]["strategy"]["type"] == kind


@pytest.mark.parametrize(
    ("modes", "model"),
    [
        ([READ], {}),
        ([ONCE], {"replicas": 2}),
        ([ONCE], {"autoscaling": {"enabled": True, "query": "x"}}),
    ],
)
def test_pods_that_share_a_claim_of_yours_roll(modes: list[str], model: dict[str, Any]) -> None:
    cache = {"enabled": True, "existingClaim": "weights", "accessModes": modes}
    manifests = render(one(cache=cache, **model))
    assert only(manifests, "Deployment")["spec"]["strategy"]["type"] == "RollingUpdate"


def test_what_is_fetched_is_the_model_once() -> None:
    """Of a repository that has it also in its authors' forms, such as Llama's and GPT-OSS's."""
    manifests = render(MATRIX["a download"])
    (fetching,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["initContainers"]
    excluded = [a.removeprefix("--exclude=") for a in fetching["args"] if "--exclude=" in a]
    files = {
        "config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.model", "modeling.py",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "original/consolidated.00.pth", "original/model.safetensors", "metal/model.bin",
        "consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "model-Q4.gguf",
    }  # fmt: skip
    # As huggingface_hub chooses.
    left = {file for file in files if not any(fnmatch(file, pattern) for pattern in excluded)}
    assert left == {
        "config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.model", "modeling.py",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    }  # fmt: skip


def test_pods_are_spread_by_revision_unless_told_otherwise() -> None:
    common = {"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
    manifests = render(
        one(
            topologySpreadConstraints=[
                {**common, "topologyKey": "zone"},
                {**common, "topologyKey": "rack", "matchLabelKeys": ["tier"]},
                {**common, "topologyKey": "host", "labelSelector": {"matchLabels": {"a": "b"}}},
            ]
        )
    )
    deployment = only(manifests, "Deployment")["spec"]
    zone, rack, host = deployment["template"]["spec"]["topologySpreadConstraints"]
    for constraint, keys in ((zone, ["pod-template-hash"]), (rack, ["tier"])):
        assert constraint["labelSelector"] == deployment["selector"]
        assert constraint["matchLabelKeys"] == keys
    assert host["labelSelector"] == {"matchLabels": {"a": "b"}}
    assert "matchLabelKeys" not in host


def test_start_and_end_have_the_time_they_need() -> None:
    manifests = render(one(startupSeconds=1803, preStopSeconds=12, drainSeconds=600))
    deployment = only(manifests, "Deployment")["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 1803
    assert deployment["progressDeadlineSeconds"] > 1803
    grace = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    assert settings_of(manifests, "m")["drain_seconds"] == 600
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "12"]
    assert grace >= 12 + 600 + 10
