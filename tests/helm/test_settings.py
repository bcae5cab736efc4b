"""What values make of the settings that a server reads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.charts import of_kind, only, render, settings_of
from tests.helm.values import MATRIX, OPEN, ROOMY, one


def test_an_entry_overrides_the_defaults_with_what_is_false_or_nought_too() -> None:
    manifests = render(
        {
            **OPEN,
            "defaults": {"cache": {"enabled": True}, "preStopSeconds": 7, "settings": {"max_k": 5}},
            "models": [
                {"name": "a"},
                {
                    "name": "b",
                    "cache": {"enabled": False},
                    "preStopSeconds": 0,
                    "replicas": 0,
                    "settings": {"trust_remote_code": False, "self_audit_rate": 0},
                },
            ],
        }
    )
    assert [c["metadata"]["name"] for c in of_kind(manifests, "PersistentVolumeClaim")] == [
        "release-scoring-service-a-cache"
    ]
    second = only(manifests, "Deployment", "-b")["spec"]
    assert second["replicas"] == 0
    assert settings_of(manifests, "b")["max_k"] == 5
    assert settings_of(manifests, "b")["trust_remote_code"] is False
    assert second["template"]["spec"]["terminationGracePeriodSeconds"] == 0 + 120 + 15


@pytest.mark.parametrize("place", ["defaults", "entry"])
def test_a_setting_is_unset_by_null_in_either_place(place: str) -> None:
    """Also one that the chart would compute."""
    assert settings_of(render(one()), "m").keys() >= {"max_connection_age", "threads"}
    settings = {"settings": {"max_connection_age": None, "threads": None, "max_k": 5}}
    values = one(**settings) if place == "entry" else {**one(), "defaults": settings}
    found = settings_of(render(values), "m")
    assert not found.keys() & {"max_connection_age", "threads"}
    assert found["max_k"] == 5


@pytest.mark.parametrize(
    ("model", "threads"),
    [
        ({"resources": {"requests": {"cpu": "4"}}}, 4),
        ({"resources": {"limits": {"cpu": "3500m"}}}, 3),
        ({"resources": {"requests": {"cpu": 0.5}}}, 1),
        ({"resources": {"requests": {"cpu": "8"}}, "workers": 4}, 2),
        ({"resources": {"requests": {"cpu": 32}, **ROOMY}, "gpus": 8}, 4),
        ({"resources": {"requests": {"cpu": "8"}}, "settings": {"threads": 5}}, 5),
    ],
)
def test_threads_are_the_cores_of_the_pod(model: dict[str, Any], threads: int) -> None:
    assert settings_of(render(one(**model)), "m")["threads"] == threads


def test_a_pod_has_a_worker_for_each_gpu_unless_told_otherwise() -> None:
    assert "num_workers" not in settings_of(render(one()), "m")
    assert settings_of(render(one(workers=3)), "m")["num_workers"] == 3
    for model, workers in (({"gpus": 8}, 8), ({"gpus": 8, "workers": 4}, 4)):
        manifests = render(one(**model, resources=ROOMY))
        settings = settings_of(manifests, "m")
        assert (settings["device"], settings["num_workers"]) == ("cuda", workers)
        pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
        for kind in ("limits", "requests"):
            assert pod["containers"][0]["resources"][kind]["nvidia.com/gpu"] == 8


def test_words_are_taken_literally() -> None:
    manifests = render(MATRIX["words that YAML takes for others"])
    settings = settings_of(manifests, "yes")
    assert settings["revision"] == "1e3"
    assert settings["served_model_name"] == "a: b # c"
    assert (settings["cpu_kernels"], settings["usage_tag"]) == ("off", "null")
    (client,) = only(manifests, "Pod")["spec"]["containers"]
    assert '--prompt=He said: "no" # not yes' in client["args"]
    assert "--model=a: b # c" in client["args"]
