"""Values that are wrong are refused, with a message that names the place and what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from scoring_service.config import ServeConfig
from tests.helm.charts import CHART, helm, template
from tests.helm.values import KEY, OPEN, PEM, one

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
    "a digest that is none": (
        {
            **OPEN,
            "auth": {
                "enabled": True,
                "tokens": [{"name": "a", "scopes": ["score"], "token": "SHA256:" + "g" * 64}],
            },
        },
        ("/auth/tokens/0/token",),
    ),
    "scaling to nought": (one(autoscaling={"minReplicas": 0}), ("minReplicas", "1")),
    "a budget of nought": (one(podDisruptionBudget={"maxUnavailable": 0}), ("maxUnavailable", "1")),
    "a field of a pod": ({**OPEN, "podSecurityContext": {"runAsUsr": 1}}, ("'runAsUsr'",)),
    "a field of a container": (
        {**OPEN, "containerSecurityContext": {"capabilities": {"dorp": ["ALL"]}}},
        ("/containerSecurityContext/capabilities", "'dorp'"),
    ),
    "a field of another type": (
        {**OPEN, "podSecurityContext": {"runAsUser": "10001"}},
        ("/podSecurityContext/runAsUser", "integer"),
    ),
    "a resource": (
        one(resources={"requests": {"memori": "1Gi"}}),
        ("/models/0/resources/requests", "'memori'"),
    ),
    "a resource for the download": (
        one(download={"resources": {"limits": {"CPU": 1}}}),
        ("/models/0/download/resources/limits", "'CPU'"),
    ),
    "a kind of volume": (
        one(extraVolumes=[{"name": "x", "nfss": {"server": "s", "path": "/"}}]),
        ("/models/0/extraVolumes/0", "'nfss'"),
    ),
    "a mount": (
        one(extraVolumeMounts=[{"name": "x", "mountPat": "/x"}]),
        ("/models/0/extraVolumeMounts/0", "'mountPat'", "'mountPath'"),
    ),
    "a reference to a Secret": (
        one(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"nam": "x", "key": "y"}}}]),
        ("/models/0/env/0/valueFrom/secretKeyRef", "'nam'"),
    ),
    "an affinity": (
        one(affinity={"podAntiAffinity": {"requiredDuringScheduling": []}}),
        ("/models/0/affinity/podAntiAffinity", "'requiredDuringScheduling'"),
    ),
    "a constraint of topology": (
        one(
            topologySpreadConstraints=[
                {
                    "maxSkew": 1,
                    "topologyKey": "zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabel": {}},
                }
            ]
        ),
        ("/topologySpreadConstraints/0/labelSelector", "'matchLabel'"),
    ),
    "a peer": (
        {**OPEN, "networkPolicy": {"clients": [{"podSelektor": {}}]}},
        ("/networkPolicy/clients/0", "'podSelektor'"),
    ),
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


def scaled(tokens: int = 200_000, **settings: Any) -> dict[str, Any]:
    """A model that is scaled by so many tokens a pod."""
    values = one(autoscaling={"enabled": True, "tokensPerReplica": tokens}, settings=settings)
    return {**values, "metrics": {"serviceMonitor": {"enabled": True}}}


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
    "an authority in another's Secret": (
        {**OPEN, "tls": {"enabled": True, "existingSecret": "tls", "serverCa": PEM}},
        "use test.serverCaSecret",
    ),
    "an authority in no Secret": (
        {
            **OPEN,
            "tls": {"enabled": True, "certificate": PEM, "key": KEY},
            "test": {"serverCaKey": "authority.pem"},
        },
        'has no key "authority.pem": name the Secret that has it in test.serverCaSecret',
    ),
    "no tokens": ({**OPEN, "auth": {"enabled": True}}, "auth.existingSecret or auth.tokens"),
    "no time to end": (
        one(drainSeconds=300, terminationGracePeriodSeconds=60),
        "terminationGracePeriodSeconds 60 would kill running calls: preStopSeconds 5 + "
        "drainSeconds 300 + 10 = 315 is the least",
    ),
    "a name for all": ({**OPEN, "defaults": {"name": "x"}}, "defaults.name: a name belongs to"),
    "two of a name": ({**OPEN, "models": [{"name": "a"}, {"name": "a"}]}, 'two are called "a"'),
    "a Service of two": (
        {**OPEN, "models": [{"name": "a"}, {"name": "a-headless"}]},
        'models: "a" and "a-headless" would both have a Service release-scoring-service-a-headless',
    ),
    "a Service of two, for pushes": (
        {
            **OPEN,
            "models": [
                {"name": "a-replicas"},
                {
                    "name": "a",
                    "liveWeights": {"enabled": True},
                    "settings": {"allow_admin": True},
                },
            ],
        },
        '"a-replicas" and "a" would both have a Service',
    ),
    "scaling when calls are refused already": (
        scaled(max_queue_tokens=200_000),
        "tokensPerReplica 200000 is never reached: beyond settings.max_queue_tokens, 200000,",
    ),
    "scaling beyond the server's own queue": (
        scaled(tokens=ServeConfig().max_queue_tokens),
        f"beyond settings.max_queue_tokens, {ServeConfig().max_queue_tokens}, calls are refused",
    ),
    "a device that is not there": (
        one(settings={"device": "cuda:0"}),
        "models[m]: settings.device cuda:0, on pods without GPUs",
    ),
    "a claim that nobody can fill": (
        one(cache={"enabled": True, "accessModes": ["ReadOnlyMany"]}),
        "nobody could write weights to one that is ReadOnlyMany alone",
    ),
    "a claim that one node may write": (
        one(replicas=2, cache={"enabled": True, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}),
        "several pods cannot share a ReadWriteOnce, ReadOnlyMany claim",
    ),
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
    "a label that finds pods": (
        one(podLabels={"scoring-service/model": "x"}),
        "models[m]: podLabels: scoring-service/model is a label of the chart's own",
    ),
    "a label of every object": (
        {**OPEN, "commonLabels": {"app.kubernetes.io/managed-by": "us"}},
        "commonLabels: app.kubernetes.io/managed-by is a label of the chart's own",
    ),
    "a label that is there": (
        {**one(podLabels={"team": "a"}), "commonLabels": {"team": "b"}},
        "models[m]: podLabels: team is a label of the chart's own, or among commonLabels",
    ),
    "a label of a monitor that is there": (
        {
            **OPEN,
            "commonLabels": {"release": "a"},
            "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "b"}}},
        },
        "metrics.serviceMonitor.labels: release is a label",
    ),
    "a scrape beyond the next one": (
        {**OPEN, "metrics": {"serviceMonitor": {"enabled": True, "interval": "5s"}}},
        "metrics.serviceMonitor: scrapeTimeout 10s is longer than interval 5s",
    ),
    "a scrape of another unit": (
        {**OPEN, "metrics": {"serviceMonitor": {"enabled": True, "scrapeTimeout": "2m"}}},
        "scrapeTimeout 2m is longer than interval 30s",
    ),
    "a mount where one is": (
        one(
            extraVolumes=[{"name": "x", "emptyDir": {}}],
            extraVolumeMounts=[{"name": "x", "mountPath": "/models/"}],
        ),
        "models[m]: extraVolumeMounts: something is mounted at /models already; mount yours below "
        "it, such as at /models/x",
    ),
    "a mount over the certificates": (
        {
            **one(extraVolumeMounts=[{"name": "tmp", "mountPath": "/etc/scoring-service/tls"}]),
            "tls": {"enabled": True, "existingSecret": "tls"},
        },
        "something is mounted at /etc/scoring-service/tls already",
    ),
    "two mounts at one place": (
        one(extraVolumeMounts=[{"name": "tmp", "mountPath": "/x", "subPath": s} for s in "ab"]),
        "something is mounted at /x already",
    ),
    "more memory than the default's limit": (
        {**OPEN, "defaults": {"resources": {"requests": {"memory": "8Gi"}}}},
        "models[tiny]: resources.requests.memory 8Gi is more than limits.memory 4Gi",
    ),
    "fewer cores than the default asks for": (
        one(resources={"limits": {"cpu": 1}}),
        "models[m]: resources.requests.cpu 2 is more than limits.cpu 1, which Kubernetes",
    ),
    "more of a disk than there may be": (
        one(
            resources={
                "requests": {"ephemeral-storage": "50G"},
                "limits": {"ephemeral-storage": "40Gi"},
            }
        ),
        "resources.requests.ephemeral-storage 50G is more than",
    ),
    "more for the download than it may have": (
        one(
            model="a/b",
            download={"enabled": True, "resources": {"requests": {"cpu": "2.5", "memory": "8Gi"}}},
        ),
        "models[m]: download.resources.requests.memory 8Gi is more than",
    ),
    "a variable of the chart's": (
        one(env=[{"name": "HF_HOME", "value": "/x"}]),
        "models[m]: env: the chart sets HF_HOME itself",
    ),
    "a token beside the chart's": (
        {**one(env=[{"name": "HF_TOKEN", "value": "x"}]), "hub": {"existingSecret": "hub"}},
        "the chart sets HF_TOKEN itself",
    ),
    "online after a download": (
        one(
            model="a/b", download={"enabled": True}, env=[{"name": "HF_HUB_OFFLINE", "value": "0"}]
        ),
        "the chart sets HF_HUB_OFFLINE itself",
    ),
    "updates from the Hub after a download": (
        one(model="a/b", download={"enabled": True}, settings={"weights_hub": ["a/b", "a/c"]}),
        "models[m]: settings.weights_hub a/b, a/c: with download.enabled the server is offline",
    ),
    "a setting in the environment": (
        one(env=[{"name": "SCORING_MAX_K", "value": "1"}]),
        "models[m]: env: SCORING_MAX_K is for the server's settings, which settings.max_k",
    ),
    "a volume that is there": (
        one(extraVolumes=[{"name": "tmp", "emptyDir": {}}]),
        'models[m]: extraVolumes: the pod has a volume "tmp" already',
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
    "several slices of GPUs": (
        one(gpus=2, gpuResource="nvidia.com/mig-1g.10gb"),
        "models[m]: 2 of nvidia.com/mig-1g.10gb: a process sees one slice",
    ),
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


def test_what_just_works_is_not_refused() -> None:
    """One token, a letter and a GPU away from what is."""
    for values in (
        scaled(tokens=ServeConfig().max_queue_tokens - 1),
        scaled(max_queue_tokens=200_001),
        {**OPEN, "models": [{"name": "a"}, {"name": "a-replicas"}, {"name": "b-headless"}]},
        {**OPEN, "metrics": {"serviceMonitor": {"interval": "1m", "scrapeTimeout": "60s"}}},
        {**OPEN, "metrics": {"serviceMonitor": {"interval": "1h", "scrapeTimeout": "900ms"}}},
        one(
            resources={
                "requests": {"cpu": "1500m", "memory": "4096Mi", "ephemeral-storage": "1Gi"},
                "limits": {"cpu": "1.5", "memory": "4Gi", "ephemeral-storage": 1_073_741_824},
            }
        ),
        one(settings={"device": "cuda:0"}, gpus=1, resources={"limits": {"memory": "16Gi"}}),
        one(cache={"enabled": True, "accessModes": ["ReadOnlyMany"], "existingClaim": "weights"}),
    ):
        assert template(values).returncode == 0


@pytest.mark.parametrize("release", ["8b", "a.b"])
def test_a_release_whose_name_no_service_may_have_is_refused(release: str) -> None:
    """helm takes both, and Kubernetes before 1.34 neither for a Service."""
    arguments = ("template", release, CHART, "--set", "allowInsecure=true")
    done = helm(*arguments)
    assert done.returncode != 0
    assert f"{release}-scoring-service-tiny can be no Service's name" in done.stderr
    assert "set fullnameOverride" in done.stderr
    assert helm(*arguments, "--set", "fullnameOverride=b8").returncode == 0


def test_an_old_cluster_is_refused() -> None:
    done = template(OPEN, "--kube-version", "1.28.3")
    assert done.returncode != 0
    assert "1.29" in done.stderr
