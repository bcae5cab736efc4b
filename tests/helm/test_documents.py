"""What docs/kubernetes.md and the examples tell people to type is typed, bar the cluster."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.served import BIN, ROOT
from tests.helm.charts import CHART, EXAMPLES, helm_path, render
from tests.helm.dockerfile import instructions

DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()
README = (CHART / "README.md").read_text()
COMMANDS = re.findall(r"```bash\n(.*?)```", DOCUMENT + README, re.DOTALL)


def shell(command: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """With the real helm as `helm`, in the repository."""
    (tmp_path / "helm").symlink_to(helm_path())
    path = os.pathsep.join([str(tmp_path), str(BIN), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PATH": path, "KUBECONFIG": "/dev/null"},
    )


def without_cluster(command: str) -> str:
    """An installation becomes one that only says what it would do."""
    install = r"helm (upgrade --install|install) "
    return re.sub(install, "helm install --dry-run=client ", command)


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_the_document_works(command: str, tmp_path: Path) -> None:
    assert command.startswith("helm ")
    done = shell(without_cluster(command), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_of_an_example_works(path: Path, tmp_path: Path) -> None:
    commands = re.findall(r"^#\s+(helm install .*)$", path.read_text(), re.MULTILINE)
    for command in commands:
        assert path.name in command
        done = shell(without_cluster(command), tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_models_of_the_document_render() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    manifests = render({"allowInsecure": True, **yaml.safe_load(block)})
    assert sum(m["kind"] == "Deployment" for m in manifests) == 2


def test_every_example_is_in_the_document() -> None:
    assert set(re.findall(r"^\| `([\w-]+\.yaml)`", DOCUMENT, re.MULTILINE)) == {
        path.name for path in EXAMPLES
    }


def test_images_are_built_with_arguments_that_there_are() -> None:
    built = re.findall(r"--build-arg (\w+)=", DOCUMENT + (ROOT / "Dockerfile").read_text())
    assert built
    assert set(built) <= {a.partition("=")[0] for a in instructions().all("ARG")}
