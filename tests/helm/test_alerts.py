"""Alerts, scaling and dashboard ask for metrics that the server has, in PromQL that can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import promql_parser
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scoring_service.engine.events import ROWS_BUCKETS, WorkerStats
from scoring_service.errors import Code, Reason
from scoring_service.telemetry.metrics import Metrics
from scoring_service.types import Usage
from tests.helm.charts import CHART, Manifest, example, of_kind, only, render
from tests.helm.values import OPEN

OBSERVED = {
    **OPEN,
    "models": [{"name": "a"}, {"name": "b", "autoscaling": {"enabled": True}}],
    "metrics": {"prometheusRule": {"enabled": True}, "serviceMonitor": {"enabled": True}},
}


class OneWorker:
    index = 0
    stats = WorkerStats(rows_per_step=(1,) * (len(ROWS_BUCKETS) + 1))
    is_ready = True


class OnePool:
    name = "a"
    waiting_calls = running_calls = queued_tokens = taken_tokens = unread_bytes = 0
    weight_version = 0
    takes_calls = True
    workers = (OneWorker(),)


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Names of series -> their labels, as /metrics shows them once everything happened."""
    metrics = Metrics()
    metrics.watch(OnePool())
    metrics.rpc_started("unary_stream", "scoring.v1.ScoringService", "Score")
    metrics.rpc_handled("unary_stream", "scoring.v1.ScoringService", "Score", Code.INTERNAL, 1.0)
    metrics.answered("Score", "", (), Usage(), 1)
    metrics.cut_short("Score", "", (), Usage(), 1, begun=False)
    metrics.audited("equal", 0.0)
    metrics.refused(Reason.QUEUE_FULL)
    metrics.retried()
    metrics.worker_died(0)
    metrics.worker_ready(0, 1.0)
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    found: dict[str, set[str]] = {}
    for sample in (s for family in families for s in family.samples):
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of an expression.

    Raises:
        ValueError: it is no PromQL.
    """
    waiting = [promql_parser.parse(expression)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield node
        for name in ("expr", "lhs", "rhs", "vector_selector", "vs", "args", "param"):
            inner = getattr(node, name, None)
            waiting += inner if isinstance(inner, list) else [inner] if inner is not None else []


ADDED = {"namespace", "service", "pod", "instance"}
"""Labels that the Prometheus operator adds to what it scrapes; any Prometheus adds the last."""


def check(expression: str, known: dict[str, set[str]]) -> None:
    found = list(selectors(expression))
    assert len(found) == len(re.findall(r"(?:scoring|grpc_server)_\w+", expression))
    for selector in found:
        assert selector.name in known, expression
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[selector.name] | ADDED, expression
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        labels = set.union(*(known[s.name] for s in found))
        assert set(grouped.replace(" ", "").split(",")) <= labels | ADDED, expression


def rules(manifests: list[Manifest]) -> list[Manifest]:
    (group,) = only(manifests, "PrometheusRule")["spec"]["groups"]
    return group["rules"]


def test_alerts_ask_for_what_there_is(known: dict[str, set[str]]) -> None:
    found = rules(render(OBSERVED))
    assert len(found) >= 10
    for rule in found:
        check(rule["expr"], known)
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]
        assert len(rule["annotations"]["runbook"]) > 80
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in rule["expr"]
    services = {
        s["metadata"]["name"]
        for s in of_kind(render(OBSERVED), "Service")
        if s["metadata"]["name"].endswith("-headless")
    }
    assert len(services) == 2
    # Each model has its own, because a metric that is absent has no labels.
    alone = {
        matcher.value
        for rule in found
        if rule["alert"] == "ScoringNoPodReady"
        for selector in selectors(rule["expr"])
        for matcher in selector.matchers.matchers
        if matcher.name == "service"
    }
    assert alone == services
    pattern = next(
        matcher.value
        for rule in found
        if rule["alert"] == "ScoringCallsRefused"
        for selector in selectors(rule["expr"])
        for matcher in selector.matchers.matchers
        if matcher.name == "service"
    )
    assert all(re.fullmatch(pattern, service) for service in services)


def test_nobody_is_alarmed_while_a_start_may_still_go_on() -> None:
    """And what is asked is whether calls are taken: loaded workers may wait for weights."""
    download = {"model": "a/b", "download": {"enabled": True, "seconds": 3601}}
    models = [{"name": "quick", "startupSeconds": 60}, {"name": "slow", "startupSeconds": 1800}]
    values = {**OBSERVED, "models": [*models, {**models[1], "name": "far", **download}]}
    manifests = render(values)
    found = [rule for rule in rules(manifests) if rule["alert"] == "ScoringNoPodReady"]
    assert [rule["for"] for rule in found] == ["10m", "30m", "91m"]
    for rule in found:
        assert {selector.name for selector in selectors(rule["expr"])} == {"scoring_ready"}
        (name,) = set(re.findall(r'service="([\w-]+)-headless"', rule["expr"]))
        deployment = only(manifests, "Deployment", name)["spec"]
        assert int(rule["for"][:-1]) * 60 >= deployment["progressDeadlineSeconds"] - 300


def test_nobody_is_alarmed_where_no_pod_is_wanted() -> None:
    """Nor is there anything that `helm test` could ask; the other models are watched and asked."""
    scaled = {"replicas": 0, "autoscaling": {"enabled": True}}
    models = [{"name": "off", "replicas": 0}, {"name": "on"}, {"name": "scaled", **scaled}]
    manifests = render({**OBSERVED, "models": models})
    found = [rule for rule in rules(manifests) if rule["alert"] == "ScoringNoPodReady"]
    alone = [
        re.findall(r'service="release-scoring-service-(\w+)-headless"', r["expr"]) for r in found
    ]
    assert alone == [["on", "on"], ["scaled", "scaled"]]
    asked = [pod["metadata"]["name"] for pod in of_kind(manifests, "Pod")]
    assert asked == [f"release-scoring-service-{name}-test" for name in ("on", "scaled")]
    assert len(of_kind(manifests, "Deployment")) == 3


def test_each_alert_links_to_its_place_on_the_page() -> None:
    """Names are headings there; `make chart` writes them, and no link is made up without a page."""
    page = (CHART.parents[1] / "docs" / "operating.md").read_text()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert not any("runbook_url" in rule["annotations"] for rule in rules(render(OBSERVED)))
    linked = {**OBSERVED["metrics"]["prometheusRule"], "runbookUrl": "https://x.org/operating.md"}
    found = rules(
        render({**OBSERVED, "metrics": {**OBSERVED["metrics"], "prometheusRule": linked}})
    )
    assert {rule["alert"] for rule in found} == set(headings)
    for rule in found:
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook_url"] == f"https://x.org/operating.md#{anchor}"


def test_reasons_and_statuses_in_alerts_exist() -> None:
    expressions = "\n".join(rule["expr"] for rule in rules(render(OBSERVED)))
    named = re.findall(r'grpc_code=~"([^"]*)"', expressions)
    codes = {code for alternatives in named for code in alternatives.split("|")}
    reasons = set(re.findall(r'reason="([^"]*)"', expressions))
    assert codes
    assert codes <= {*Code, "UNKNOWN", "DATA_LOSS"}
    assert reasons
    assert reasons <= set(Reason)


def test_a_metric_that_is_not_there_would_be_noticed(known: dict[str, set[str]]) -> None:
    with pytest.raises(AssertionError):
        check("sum(rate(scoring_nothing_total[5m])) > 0", known)
    with pytest.raises(AssertionError):
        check('scoring_worker_ready{model="a"} == 0', known)
    with pytest.raises(ValueError, match=r"."):
        check("sum(scoring_worker_ready", known)


def test_scaling_asks_for_waiting_tokens_of_its_own_model(known: dict[str, set[str]]) -> None:
    for manifests in (render(OBSERVED), example(CHART / "examples" / "autoscaled.yaml")):
        (scaled,) = of_kind(manifests, "ScaledObject")
        (trigger,) = scaled["spec"]["triggers"]
        query = trigger["metadata"]["query"]
        check(query, known)
        (selector,) = selectors(query)
        assert selector.name == "scoring_queue_tokens"
        labels = {m.name: m.value for m in selector.matchers.matchers}
        name = scaled["spec"]["scaleTargetRef"]["name"]
        assert labels == {"namespace": "scoring", "service": f"{name}-headless"}
        assert "replicas" not in only(manifests, "Deployment", name)["spec"]


def test_the_dashboard_is_the_repositorys(known: dict[str, set[str]]) -> None:
    manifests = render({**OPEN, "metrics": {"dashboard": {"enabled": True}}})
    config = only(manifests, "ConfigMap", "-dashboard")
    packed = json.loads(config["data"]["scoring-service.json"])
    path = CHART.parents[1] / "dashboards" / "scoring-service.json"
    assert packed == json.loads(path.read_text())
    expressions = [t["expr"] for panel in packed["panels"] for t in panel.get("targets", [])]
    assert len(expressions) > 20
    for expression in expressions:
        check(expression.replace("$__rate_interval", "5m"), known)


def test_the_dashboard_tells_releases_models_and_pods_apart() -> None:
    """By labels of the ServiceMonitor's; a Prometheus that has none of them shows all the same."""
    board = json.loads((CHART / "dashboards" / "scoring-service.json").read_text())
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables.keys() == {"datasource", "namespace", "service"}
    for name in ("namespace", "service"):
        assert name in ADDED
        assert re.fullmatch(rf"label_values\(.*, {name}\)", variables[name]["query"]["query"])
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
        # What Grafana writes for All would not match a series without the label.
        assert variables[name]["allValue"] == ".*"
    panels = {panel["title"]: panel for panel in board["panels"]}
    for target in (target for panel in panels.values() for target in panel["targets"]):
        found = list(selectors(target["expr"].replace("$__rate_interval", "5m")))
        assert found
        for selector in found:
            chosen = {m.name: (str(m.op), m.value) for m in selector.matchers.matchers}
            for name in ("namespace", "service"):
                assert chosen[name] == ("MatchOp.Re", f"${name}"), target["expr"]
    (tokens,) = panels["Tokens/s by pod"]["targets"]
    assert tokens["expr"].count("sum by (pod, instance) (rate(") == 3
    for text in ((CHART / "examples" / "autoscaled.yaml"), CHART / "values.yaml"):
        assert '"Tokens/s by pod"' in text.read_text()
