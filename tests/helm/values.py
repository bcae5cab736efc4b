"""Values of the chart, as tests give them."""

from __future__ import annotations

from typing import Any

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
    "another protocol": {**OPEN, "service": {"appProtocol": "tls"}},
    "a slice of a GPU": one(gpus=1, gpuResource="nvidia.com/mig-1g.10gb", resources=ROOMY),
    "no pods": {
        **one(replicas=0),
        "metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
    },
    "no account": {**OPEN, "serviceAccount": {"create": False}},
    "an open network": {**OPEN, "networkPolicy": {"enabled": False}},
    "a closed network": {
        **OPEN,
        "networkPolicy": {
            "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "metrics": [],
            "probes": [{"ipBlock": {"cidr": "10.0.0.0/16"}}],
            "ingress": [{"ports": [{"port": 15008}], "from": [{"podSelector": {}}]}],
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
