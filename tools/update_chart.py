#!/usr/bin/env python3
"""Bring what the Helm chart derives from elsewhere up to date: `make chart`.

* what values.schema.json knows: settings, from `scoring_service.config`, and types of Kubernetes;
* the dashboard, from `dashboards/` (helm follows a link, but says so at every command);
* the alerts on the operators' page, docs/operating.md, from the chart's PrometheusRule;
* the renders of the examples that tests compare with, in `tests/helm/golden/`.

With `--check` nothing is written, and what is not up to date is named.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_types
import yaml
from fetch_helm import fetch

from scoring_service import config

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "scoring-service"
GOLDEN = ROOT / "tests" / "helm" / "golden"
NAMESPACE = "scoring"

BY_THE_CHART = {
    "host",
    "port",
    "health_port",
    "metrics_port",
    "metrics_host",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "auth_tokens",
    "allow_insecure",
    "served_model_name",
    "await_weights",
    "revision",
    "num_workers",
    "drain_seconds",
    "log_format",
}
"""Settings that other values or the chart itself decide; under `settings` they are refused."""

_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    try:
        stale = [path for path, text in derived() if update(path, text, check=check)]
    except subprocess.CalledProcessError as error:
        print(error.stderr or error, file=sys.stderr)
        return 1
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'not up to date' if check else 'written'}")
    return 1 if check and stale else 0


def derived() -> Iterator[tuple[Path, str]]:
    """Each derived file with what it should hold.

    Raises:
        subprocess.CalledProcessError: helm cannot be had, or does not render an example.
    """
    schema = CHART / "values.schema.json"
    yield schema, with_definitions(schema.read_text())
    dashboard = "dashboards/scoring-service.json"
    yield CHART / dashboard, (ROOT / dashboard).read_text()
    helm = fetch()
    page = ROOT / "docs" / "operating.md"
    yield page, with_alerts(page.read_text(), alerts(helm))
    for example in sorted((CHART / "examples").glob("*.yaml")):
        yield GOLDEN / example.name, rendered(helm, example)


def update(path: Path, text: str, *, check: bool) -> bool:
    """Whether the file did not hold the text; it does afterwards unless `check`."""
    if path.exists() and path.read_text() == text:
        return False
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return True


def alerts(helm: Path) -> str:
    """The alerts of a release as sections of a page, without what restricts them to the release."""
    shown = ("--show-only", "templates/prometheusrule.yaml", "--set", "allowInsecure=true")
    enabled = ("--set", "metrics.prometheusRule.enabled=true")
    command = [helm, "template", "release", CHART, "--namespace", NAMESPACE, *shown, *enabled]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (group,) = yaml.safe_load(done.stdout)["spec"]["groups"]
    return "\n".join(map(alert_section, group["rules"]))


def alert_section(rule: dict[str, Any]) -> str:
    """An alert for people: its name is the heading, so that links reach it."""
    lasting = f", for {rule['for']}" if "for" in rule else ""
    condition = re.sub(r'\s*(namespace|service)=~?"[^"]*",?\s*', "", rule["expr"]).replace("{}", "")
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"the \1", rule["annotations"]["summary"])
    summary = re.sub(r"\brelease-[\w-]+-headless\b", "a Service", summary)
    text = f"{summary[0].upper()}{summary[1:]} {rule['annotations']['runbook']}"
    return "\n".join([
        f"### {rule['alert']}\n",
        f"{rule['labels']['severity'].capitalize()}{lasting}: `{condition}`\n",
        f"{textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)}\n",
    ])  # fmt: skip


def with_alerts(text: str, sections: str) -> str:
    """The page with these alerts."""
    before, begin, rest = text.partition("<!-- alerts -->\n")
    _, end, after = rest.partition("<!-- end of alerts -->\n")
    return f"{before}{begin}\n{sections}\n{end}{after}"


def rendered(helm: Path, example: Path) -> str:
    """An example as `helm template` prints it."""
    command = [helm, "template", "release", CHART, "--namespace", NAMESPACE, "--values", example]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def with_definitions(text: str) -> str:
    """The schema with the settings of this version of the server, and types of Kubernetes."""
    schema = json.loads(text)
    ours = {k: v for k, v in schema["$defs"].items() if not k.startswith(kubernetes_types.PREFIX)}
    ours["settings"] = settings_schema()
    schema["$defs"] = ours
    ours |= kubernetes_types.definitions(schema)
    return json.dumps(schema, indent=2) + "\n"


def settings_schema() -> dict[str, Any]:
    """JSON schema of the settings that users may give."""
    types_of = typing.get_type_hints(config.ServeConfig)
    explained = descriptions()
    properties = {}
    for field in dataclasses.fields(config.ServeConfig):
        if field.name in BY_THE_CHART:
            continue
        least, largest = config._RANGES.get(field.name, (None, None))
        bounds = {"minimum": least, "maximum": largest}
        properties[field.name] = {
            **json_type(types_of[field.name]),
            **{key: bound for key, bound in bounds.items() if bound not in (None, float("inf"))},
            "description": explained[field.name],
        }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def json_type(hint: Any) -> dict[str, Any]:
    """What JSON schema calls the type of a setting."""
    if typing.get_origin(hint) is typing.Literal:
        return {"enum": list(typing.get_args(hint))}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": json_type(typing.get_args(hint)[0])}
    if isinstance(hint, types.UnionType):
        (some,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
        return or_null(json_type(some))
    return {"type": _JSON_TYPES[hint]}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a setting that may be left unset, where another place has set it."""
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


def descriptions() -> dict[str, str]:
    """The docstring below each setting, in one line."""
    tree = ast.parse(Path(config.__file__).read_text())
    (body,) = (n.body for n in tree.body if getattr(n, "name", "") == config.ServeConfig.__name__)
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            found[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


if __name__ == "__main__":
    sys.exit(main())
