"""Every example and a matrix of values: rendered, judged by the schemas of Kubernetes, and read."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from scoring_service import __version__
from tests.e2e.served import ROOT
from tests.helm.charts import (
    CHART,
    EXAMPLES,
    Manifest,
    example,
    helm,
    notes,
    of_kind,
    only,
    parse,
    pod_specs,
    render,
    settings_of,
)
from tests.helm.schemas import VERSIONS, faults

PEM = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"
OPEN: dict[str, Any] = {"allowInsecure": True}
SHARED = {"enabled": True, "accessModes": ["ReadWriteMany"]}

ROOMY = {"limits": {"memory": "64Gi"}}
"""What a pod with a GPU needs."""


def one(**model: Any) -> dict[str, Any]:
    return {**OPEN, "models": [{"name": "m", **model}]}


MATRIX: dict[str, dict[str, Any]] = {
    "defaults": OPEN,
    "names": {**OPEN, "nameOverride": "scores", "commonLabels": {"team": "a"}},
    "full name": {**OPEN, "fullnameOverride": "teachers"},
    "image": {**OPEN, "image": {"digest": "sha256:" + "0" * 64, "repository": "example.org/s"}},
    "pull secrets": {**OPEN, "imagePullSecrets": [{"name": "registry"}]},
    "TLS in the values": {
        "tls": {"enabled": True, "certificate": PEM, "key": KEY},
        "auth": {
            "enabled": True,
            "tokens": [{"name": "a", "scopes": ["score"], "token": "x" * 16}],
        },
        "hub": {"token": "hf_x"},
    },
    "mutual TLS of existing Secrets": {
        "tls": {
            "enabled": True,
            "existingSecret": "tls",
            "clientCa": {"enabled": True, "existingSecret": "clients"},
        },
        "test": {"clientCertificateSecret": "client"},
    },
    "everything asked for": {
        "tls": {
            "enabled": True,
            "certificate": PEM,
            "key": KEY,
            "serverCa": PEM,
            "clientCa": {"enabled": True, "certificate": PEM},
        },
        "auth": {"enabled": True, "existingSecret": "tokens", "key": "file"},
        "test": {"clientCertificateSecret": "client", "tokenSecret": {"name": "t"}},
        "hub": {"existingSecret": "hub", "endpoint": "https://hub.example.org"},
    },
    "words that YAML takes for others": {
        **one(
            name="yes",
            model="1234",
            revision="1e3",
            servedName="a: b # c",
            cache={"enabled": True, "existingClaim": "77"},
            priorityClassName="0",
            env=[{"name": "A", "value": "off"}],
            settings={"cpu_kernels": "off", "usage_tag": "null"},
        ),
        "auth": {"enabled": True, "existingSecret": "1e3", "key": "y"},
        "hub": {"existingSecret": "10", "key": "on"},
        "test": {
            "prompt": 'He said: "no" # not yes',
            "completions": ["{}", "- a"],
            "tokenSecret": {"name": "5", "key": "no"},
        },
        "commonLabels": {"a": "true"},
    },
    "large numbers": one(
        settings={"max_queue_tokens": 8_388_608, "max_request_bytes": 134_217_728}
    ),
    "four workers": one(
        gpus=4, workers=2, resources={"requests": {"cpu": 16}, "limits": {"memory": "16Gi"}}
    ),
    "another device": one(
        gpus=1, gpuResource="amd.com/gpu", runtimeClassName="nvidia", resources=ROOMY
    ),
    "live weights": {
        **one(liveWeights={"enabled": True, "await": False}),
        "auth": {"enabled": True, "existingSecret": "tokens"},
    },
    "live weights of everybody": one(liveWeights={"enabled": True}, settings={"allow_admin": True}),
    "millicores": one(resources={"requests": {"cpu": "2500m"}, "limits": {"cpu": "3500m"}}),
    "other resources": one(
        resources={
            "requests": {"ephemeral-storage": "50Gi", "hugepages-2Mi": "1Gi", "example.com/nic": 1},
            "limits": {"hugepages-2Mi": "1Gi", "example.com/nic": 1},
        }
    ),
    "a claim": one(cache={"enabled": True, "storageClass": "10"}),
    "a claim of yours": one(cache={"enabled": True, "existingClaim": "weights"}, replicas=3),
    "a download": one(model="a/b", revision="0123456", cache=SHARED, download={"enabled": True}),
    "scaling": {
        **one(
            autoscaling={"enabled": True, "minReplicas": 2, "authenticationRef": "prometheus"},
            drainSeconds=3600,
        ),
        "metrics": {"serviceMonitor": {"enabled": True}},
    },
    "a query of yours": one(autoscaling={"enabled": True, "query": "sum(up)"}),
    "placement": one(
        nodeSelector={"disk": "ssd"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        affinity={
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}
                    ]
                }
            }
        },
        topologySpreadConstraints=[],
        priorityClassName="high",
        podLabels={"a": "b"},
        podAnnotations={"c": "d"},
    ),
    "volumes": one(
        extraVolumes=[{"name": "nfs", "nfs": {"server": "s", "path": "/"}}],
        extraVolumeMounts=[{"name": "nfs", "mountPath": "/models/shared"}],
        env=[
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        ],
    ),
    "strategy": one(strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "50%"}}),
    "no budget": one(podDisruptionBudget={"enabled": False}),
    "service": {
        **OPEN,
        "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
    },
    "no account": {**OPEN, "serviceAccount": {"create": False}},
    "an open network": {**OPEN, "networkPolicy": {"enabled": False}},
    "a closed network": {
        **OPEN,
        "networkPolicy": {
            "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "metrics": [],
            "probes": [{"ipBlock": {"cidr": "10.0.0.0/16"}}],
            "egress": {"enabled": True, "rules": [{"ports": [{"port": 443}]}]},
        },
    },
    "observed": {
        **OPEN,
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "p"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "p"}},
            "dashboard": {"enabled": True, "annotations": {"folder": "models"}},
        },
    },
    "OpenShift": {
        **OPEN,
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    },
    "three models": {
        **OPEN,
        "models": [
            {"name": "a"},
            {"name": "b", "replicas": 2},
            {"name": "c", "gpus": 1, "resources": ROOMY},
        ],
    },
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_good_for_every_version_of_kubernetes(path: Path) -> None:
    # A version that is not there would pass everything.
    assert [version.rpartition(".")[0] for version in VERSIONS] == [
        f"1.{minor}" for minor in range(29, 38)
    ]
    manifests = example(path)
    assert len(manifests) > 5
    wrong = [fault for m in manifests for version in VERSIONS for fault in faults(m, version)]
    assert not wrong


@pytest.mark.parametrize("case", MATRIX)
def test_values_give_manifests_that_are_good(case: str) -> None:
    manifests = render(MATRIX[case])
    assert not [fault for m in manifests for version in VERSIONS for fault in faults(m, version)]
    check_pods(manifests)
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(set(names)) == len(names)


def test_the_schemas_would_notice() -> None:
    manifests = example(CHART / "examples" / "autoscaled.yaml")
    for kind in ("Deployment", "ScaledObject", "ServiceMonitor", "PrometheusRule", "NetworkPolicy"):
        manifest = json.loads(json.dumps(only(manifests, kind)))
        manifest["spec"]["replica"] = 1
        assert all("replica" in "".join(faults(manifest, version)) for version in VERSIONS)


def test_examples_are_as_reviewed() -> None:
    """`make chart` writes the renders again; then the difference is what a reviewer reads."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "update_chart.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n`make chart` brings it up to date"


@pytest.mark.parametrize("path", [None, *EXAMPLES], ids=lambda path: path.stem if path else "none")
def test_lint_finds_nothing(path: Path | None) -> None:
    done = helm("lint", "--strict", CHART, *(("--values", path) if path else ()))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


def test_the_package_holds_the_chart_whole(tmp_path: Path) -> None:
    done = helm("package", CHART, "--destination", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    there = {str(p.relative_to(CHART)) for p in CHART.rglob("*") if p.is_file()}
    assert packed == there - {".helmignore"} or packed == there
    path = CHART / "examples" / "one-h200.yaml"
    again = helm("template", "release", package, "--namespace", "scoring", "--values", path)
    assert parse(again.stdout) == example(path)


def test_the_chart_is_of_this_version_of_the_server() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def check_pods(manifests: list[Manifest]) -> None:
    """What the restricted profile of Pod Security asks of a pod, and what a reviewer would."""
    for spec in pod_specs(manifests):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            names = [variable["name"] for variable in container.get("env", [])]
            assert len(set(names)) == len(names)


def test_selectors_meet_their_pods() -> None:
    manifests = example(CHART / "examples" / "teacher-and-reference.yaml")
    deployments = of_kind(manifests, "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        pod = deployment["spec"]["template"]["metadata"]["labels"].items()
        name = deployment["metadata"]["name"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= pod
        services = [
            s for s in of_kind(manifests, "Service") if s["spec"]["selector"].items() <= pod
        ]
        assert {s["metadata"]["name"] for s in services} == {name, f"{name}-headless"}
        headless = [s["spec"].get("clusterIP") for s in services]
        assert headless == [None, "None"]
        (budget,) = (
            b
            for b in of_kind(manifests, "PodDisruptionBudget")
            if b["spec"]["selector"]["matchLabels"].items() <= pod
        )
        assert budget["metadata"]["name"] == name
        ports = {
            p["name"]: p["containerPort"]
            for p in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
        }
        for service in services:
            for port in service["spec"]["ports"]:
                assert port["targetPort"] in ports
        policy = only(manifests, "NetworkPolicy")["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= pod
        assert {p["ports"][0]["port"] for p in policy["ingress"]} <= ports.keys()
    monitor = only(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    scraped = [
        s for s in of_kind(manifests, "Service") if monitor <= s["metadata"]["labels"].items()
    ]
    assert len(scraped) == 2
    assert all(s["spec"]["clusterIP"] == "None" for s in scraped)


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


def test_pods_that_await_weights_are_found_by_whoever_pushes_alone() -> None:
    """Started, they are not ready, and the Services of clients leave them out until they are."""
    manifests = render(MATRIX["live weights of everybody"])
    assert settings_of(manifests, "m")["await_weights"] is True
    container = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    services = {
        name: container[name]["grpc"].get("service")
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert services == {
        "startupProbe": "scoring.v1.AdminService",
        "readinessProbe": "scoring.v1.ScoringService",
        "livenessProbe": None,
    }
    found = of_kind(manifests, "Service")
    names = {s["metadata"]["name"]: s["spec"].get("publishNotReadyAddresses") for s in found}
    assert [name for name, all_pods in names.items() if all_pods] == [
        "release-scoring-service-m-replicas"
    ]
    assert len(names) == 3
    pushes = only(manifests, "Service", "-replicas")
    # Prometheus would ask each pod twice.
    assert "scoring-service/headless" not in pushes["metadata"]["labels"]
    assert pushes["spec"]["selector"] == only(manifests, "Service", "-headless")["spec"]["selector"]
    assert "release-scoring-service-m-replicas.scoring.svc:50051" in notes(
        MATRIX["live weights of everybody"]
    )


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        ({"model": "a/b", "replicas": 2}, True),
        ({"model": "a/b", "replicas": 2, "revision": "main"}, True),
        ({"model": "a/b", "autoscaling": {"enabled": True, "query": "x"}}, True),
        ({"model": "a/b", "replicas": 2, "revision": "0" * 40}, False),
        ({"model": "a/b"}, False),
        ({"model": "/models/a", "replicas": 2}, False),
    ],
)
def test_replicas_of_a_branch_are_warned_about(model: dict[str, Any], warned: bool) -> None:
    assert ("revision names no commit" in notes(one(**model))) is warned


@pytest.mark.parametrize(
    ("clients", "warned"),
    [([{"podSelector": {}}], True), ([{"ipBlock": {"cidr": "203.0.113.0/24"}}], False)],
)
def test_a_policy_that_keeps_out_who_comes_by_a_load_balancer_is_warned_about(
    clients: list[dict[str, Any]], warned: bool
) -> None:
    values = {**one(), "service": {"type": "LoadBalancer"}, "networkPolicy": {"clients": clients}}
    assert ("admits pods alone" in notes(values)) is warned


def test_the_hub_models_of_the_examples_are_commits() -> None:
    for path in EXAMPLES:
        for model in yaml.safe_load(path.read_text())["models"]:
            if "model" in model:
                assert len(model["revision"]) == 40, path.name
                assert "has not been run end to end on a device" in path.read_text()


def test_pods_that_answer_from_their_first_weights() -> None:
    manifests = render(MATRIX["live weights"])
    assert "await_weights" not in settings_of(manifests, "m")
    container = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["startupProbe"]["grpc"]["service"] == "scoring.v1.ScoringService"
    assert only(manifests, "Service", "-replicas")["spec"]["publishNotReadyAddresses"]


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


def test_words_are_taken_literally() -> None:
    manifests = render(MATRIX["words that YAML takes for others"])
    settings = settings_of(manifests, "yes")
    assert settings["revision"] == "1e3"
    assert settings["served_model_name"] == "a: b # c"
    assert (settings["cpu_kernels"], settings["usage_tag"]) == ("off", "null")
    (client,) = only(manifests, "Pod")["spec"]["containers"]
    assert '--prompt=He said: "no" # not yes' in client["args"]
    assert "--model=a: b # c" in client["args"]


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


def test_notes_tell_how_to_call() -> None:
    plain = notes(OPEN)
    assert "release-scoring-service-tiny.scoring.svc:50051" in plain
    assert "dns:///release-scoring-service-tiny-headless.scoring.svc:50051" in plain
    assert "helm test release --namespace scoring" in plain
    assert "allowInsecure is set" in plain
    secured = notes(MATRIX["everything asked for"])
    assert '-cacert ca.crt -cert client.crt -key client.key -H "authorization: Bearer' in secured
    assert "-authority release-scoring-service-tiny.scoring.svc" in secured
    assert "allowInsecure" not in secured
    without = notes({**MATRIX["everything asked for"], "test": {}})
    assert "set test.tokenSecret and test.clientCertificateSecret" in without
    assert not of_kind(render({**MATRIX["everything asked for"], "test": {}}), "Pod")


MUTUAL = {"enabled": True, "certificate": PEM}


@pytest.mark.parametrize(
    ("tls", "test", "trusted"),
    [
        ({"existingSecret": "own"}, {}, ("own", "ca.crt")),
        ({"existingSecret": "own"}, {"serverCaSecret": "x", "serverCaKey": "y"}, ("x", "y")),
        ({"certificate": PEM, "key": KEY}, {"serverCaSecret": "x"}, ("x", "ca.crt")),
        ({"certificate": PEM, "key": KEY, "serverCa": PEM}, {}, (MADE := "made", "server-ca.crt")),
        ({"certificate": PEM, "key": KEY}, {"serverCaKey": "tls.crt"}, (MADE, "tls.crt")),
        ({"certificate": PEM, "key": KEY}, {}, None),
        # What signs clients says nothing of who signed the server.
        ({"certificate": PEM, "key": KEY, "clientCa": MUTUAL}, {}, None),
    ],
)
def test_the_test_pod_trusts_who_signed_the_server(
    tls: dict[str, Any], test: dict[str, Any], trusted: tuple[str, str] | None
) -> None:
    client = {"clientCertificateSecret": "client"} if "clientCa" in tls else {}
    values = {**OPEN, "tls": {"enabled": True, **tls}, "test": {**client, **test}}
    manifests = render(values)
    if trusted is None:
        assert not of_kind(manifests, "Pod")
        assert "There is no `helm test` until it may call: set tls.serverCa." in notes(values)
        return
    volumes = {v["name"]: v for v in only(manifests, "Pod")["spec"]["volumes"]}
    secret = volumes["server-ca"]["secret"]
    (item,) = secret["items"]
    assert item["path"] == "ca.crt"
    name = secret["secretName"].replace("release-scoring-service-tls", MADE)
    assert (name, item["key"]) == trusted
    if name == MADE:
        assert only(manifests, "Secret", "-tls")["stringData"][item["key"]] == PEM


def test_the_test_pod_sends_its_token_in_plain_text_only_where_a_mesh_encrypts_it() -> None:
    auth = {"enabled": True, "existingSecret": "tokens"}
    plain = render({**OPEN, "auth": auth, "test": {"tokenSecret": {"name": "t"}}})
    secured = render(MATRIX["everything asked for"])
    for manifests, expected in ((plain, True), (secured, False), (render(OPEN), False)):
        (pod,) = of_kind(manifests, "Pod")
        (client,) = pod["spec"]["containers"]
        assert ("--allow-plaintext-token" in client["args"]) is expected
