"""Who reaches which pods: selectors, policies, what the notes say, the test that helm runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.charts import CHART, example, notes, of_kind, only, render, settings_of
from tests.helm.values import KEY, MATRIX, OPEN, PEM, one


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


@pytest.mark.parametrize(
    ("values", "protocol"),
    [
        (MATRIX["live weights of everybody"], "kubernetes.io/h2c"),
        # Of a port that is called grpc and says no more, Istio's sidecars expect plaintext.
        (MATRIX["mutual TLS of existing Secrets"], None),
        ({**MATRIX["mutual TLS of existing Secrets"], "service": {"appProtocol": "tls"}}, "tls"),
        ({**MATRIX["live weights of everybody"], "service": {"appProtocol": "grpc"}}, "grpc"),
    ],
)
def test_all_services_say_what_the_pods_speak(values: dict[str, Any], protocol: str | None) -> None:
    services = of_kind(render(values), "Service")
    assert len(services) >= 2
    for service in services:
        ports = {port["name"]: port.get("appProtocol") for port in service["spec"]["ports"]}
        assert ports.pop("grpc") == protocol
        assert set(ports.values()) <= {None}


def test_a_mesh_may_bring_what_it_has_wrapped() -> None:
    """A policy is enforced outside of the pod, where all that is seen is the mesh's own port."""
    rule = {"ports": [{"port": 15008}], "from": [{"podSelector": {}}]}
    before = only(render(OPEN), "NetworkPolicy")["spec"]["ingress"]
    after = only(render({**OPEN, "networkPolicy": {"ingress": [rule]}}), "NetworkPolicy")["spec"]
    assert after["ingress"] == [*before, rule]
