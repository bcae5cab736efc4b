"""Every example and a matrix of values: rendered, judged by the schemas of Kubernetes, and read."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
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
    only,
    parse,
    pod_specs,
    render,
    template,
)
from tests.helm.schemas import VERSIONS, faults
from tests.helm.values import MATRIX


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


def together(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Values of one model or none each, laid over one another as helm does with files."""
    found: dict[str, Any] = {}
    for path, value in (pair for one in values for pair in leaves({**one, "models": one_of(one)})):
        place = found
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return {**found, "models": [{"name": "m", **found.get("models", {})}]}


def one_of(values: dict[str, Any]) -> dict[str, Any]:
    return next((m for m in values.get("models", [])), {})


def leaves(values: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, *path, key)
        else:
            yield (*path, key), value


@pytest.mark.parametrize("seed", range(4))
def test_values_that_meet_are_good_or_refused_in_words(seed: int) -> None:
    chosen = random.Random(seed)
    names = [name for name, values in MATRIX.items() if len(values.get("models", [])) < 2]
    rendered = 0
    for _ in range(8):
        cases = chosen.sample([name for name in names if name != "OpenShift"], 4)
        done = template(together([MATRIX[name] for name in cases]))
        if done.returncode:
            # Not "executing …: error calling …", where a template met what it did not expect.
            assert re.match(r"Error: execution error at \(\S+\): \w", done.stderr), cases
            continue
        rendered += 1
        manifests = parse(done.stdout)
        for version in (VERSIONS[0], VERSIONS[-1]):
            assert not [fault for m in manifests for fault in faults(m, version)], cases
        check_pods(manifests)
    assert rendered >= 4


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


def test_the_hub_models_of_the_examples_are_commits() -> None:
    for path in EXAMPLES:
        for model in yaml.safe_load(path.read_text())["models"]:
            if "model" in model:
                assert len(model["revision"]) == 40, path.name
                assert "has not been run end to end on a device" in path.read_text()
