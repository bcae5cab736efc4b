"""The chart, rendered by the real helm."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.served import ROOT

CHART = ROOT / "helm" / "scoring-service"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
NAMESPACE = "scoring"

Manifest = dict[str, Any]


@functools.cache
def tool_path(name: str) -> Path:
    """The executable that tools/fetch_helm.py keeps; skips where there is none for this machine."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fetch_helm.py", "--tool", name],
        capture_output=True,
        text=True,
        check=False,
    )
    if "alone" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def helm(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """What came of a helm command."""
    return subprocess.run(
        [tool_path("helm"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        input=given,
        # No cluster and no settings of whoever runs this.
        env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "KUBECONFIG": "/dev/null"},
    )


def template(
    values: dict[str, Any] | None = None, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """`helm template` with these values."""
    options = ("--namespace", NAMESPACE, "--values", "-", *arguments)
    return helm("template", "release", CHART, *options, given=json.dumps(values or {}))


def render(values: dict[str, Any] | None = None, *arguments: str | Path) -> list[Manifest]:
    """The manifests; helm must say nothing beside them."""
    done = template(values, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return parse(done.stdout)


def notes(values: dict[str, Any], *arguments: str | Path) -> str:
    """What helm prints after an installation, as a dry run shows it."""
    options = ("--dry-run=client", "--namespace", NAMESPACE, "--values", "-", *arguments)
    done = helm("install", "release", CHART, *options, given=json.dumps(values))
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def example(path: Path) -> list[Manifest]:
    """An example's manifests."""
    return render({}, "--values", path)


def parse(text: str) -> list[Manifest]:
    """What a stream of documents holds, without empty ones."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Those of one kind."""
    return [m for m in manifests if m["kind"] == kind]


def only(manifests: list[Manifest], kind: str, name_ends: str = "") -> Manifest:
    """The one of a kind whose name ends so."""
    (found,) = (m for m in of_kind(manifests, kind) if m["metadata"]["name"].endswith(name_ends))
    return found


def pod_specs(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Specs of all pods: those of Deployments and those of hooks."""
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            yield manifest["spec"]["template"]["spec"]
        elif manifest["kind"] == "Pod":
            yield manifest["spec"]


def settings_of(manifests: list[Manifest], model: str) -> dict[str, Any]:
    """A model's settings file."""
    config = only(manifests, "ConfigMap", f"-{model}-settings")
    return yaml.safe_load(config["data"]["serve.yaml"])
