"""The Dockerfile, as far as it can be tried without Docker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.e2e.served import BIN, ROOT
from tests.helm.charts import CHART, only, render
from tests.helm.dockerfile import instructions, is_ignored

RULES = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
]


def tracked() -> list[Path]:
    """Files of the repository, or of its archive."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return [
            path
            for line in done.stdout.splitlines()
            if (path := Path(line)) and (ROOT / path).is_file()
        ]
    return [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]


def context() -> list[Path]:
    """What goes to the builder."""
    return [path for path in tracked() if not is_ignored(path, RULES)]


def test_hadolint_finds_nothing() -> None:
    if not (BIN / "hadolint").exists():
        pytest.skip("hadolint has no wheel for this platform")
    done = subprocess.run(
        [BIN / "hadolint", "--failure-threshold", "style", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    there = context()
    copied = [Path(source) for source in instructions().copied]
    assert copied
    for source in copied:
        assert any(path == source or source in path.parents for path in there), source
    for path in there:
        assert any(path == source or source in path.parents for source in copied), path
    assert is_ignored(Path(".git/config"), RULES)
    assert is_ignored(Path("tests/conftest.py"), RULES)
    assert is_ignored(Path("scoring_service/__pycache__/cli.cpython-313.pyc"), RULES)


def test_the_image_is_what_the_chart_counts_on() -> None:
    file = instructions()
    (pod,) = (
        render({"allowInsecure": True}, "--show-only", "templates/deployment.yaml")[0]["spec"][
            "template"
        ]["spec"],
    )
    (container,) = pod["containers"]
    assert file.entrypoint == ["scoring-service"]
    assert container["args"][0] == "serve"
    security = pod["securityContext"]
    assert file.all("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    assert {port["containerPort"] for port in container["ports"]} == {
        int(port) for port in file.all("EXPOSE")[0].split()
    }
    ours = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    for name in ours.keys() & file.environment.keys():
        assert ours[name] == file.environment[name]
    (command,) = file.all("HEALTHCHECK")
    assert json.loads(command.partition("CMD ")[2]) == ["scoring-service", "health"]
    written = {mount["mountPath"] for mount in container["volumeMounts"]}
    for value in (file.environment["XDG_CACHE_HOME"], file.environment["HOME"]):
        assert value in written


def test_bases_are_pinned() -> None:
    bases = [base.partition(" AS ") for base in instructions().all("FROM")]
    stages = {stage for _, _, stage in bases}
    arguments = dict(a.partition("=")[::2] for a in instructions().all("ARG"))
    for base, _, _ in bases:
        name = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)
        assert name in stages or re.fullmatch(
            r"[\w./-]+:\d+\.\d+\.\d+-[\w-]+@sha256:[0-9a-f]{64}", name
        )
    labels = " ".join(instructions().all("LABEL"))
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels


def test_the_wheel_is_built_from_the_context_alone_and_starts(tmp_path: Path) -> None:
    """With the Dockerfile's own command, in a folder that holds what the builder would get."""
    source = tmp_path / "src"
    for path in context():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, source / path)
    (command,) = (json.loads(run) for run in instructions().all("RUN") if '"wheel"' in run)
    wheels = tmp_path / "wheels"
    command = [sys.executable, *command[1:]]
    command = [str(wheels) if word == "/wheels" else word for word in command]
    done = subprocess.run(
        [*command, "--quiet"], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    shipped = {p for p in context() if p.parts[0] == "scoring_service"}
    assert {str(path) for path in shipped} <= names
    assert "scoring_client/cli/app.py" in names
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]
    # What came out is what runs: the checkout's own package is not on its path.
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        "import scoring_service, scoring_service.cli;"
        "assert scoring_service.__file__.startswith(sys.path[0]), scoring_service.__file__;"
        "sys.argv[0] = 'scoring-service'; scoring_service.cli.main()"
    )
    started = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "site", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    version = re.search(r'appVersion: "([^"]+)"', (CHART / "Chart.yaml").read_text())
    assert version
    assert started.stdout.strip() == version[1]


def test_the_server_in_the_image_wants_to_be_told_who_may_call() -> None:
    """`docker run IMAGE` listens for others, so it asks for TLS and tokens, or for leave."""
    done = subprocess.run(
        [BIN / "scoring-service", *json.loads(instructions().all("CMD")[0])],
        env={"PATH": "/usr/bin:/bin", "SCORING_HOST": instructions().environment["SCORING_HOST"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "--allow-insecure" in done.stderr


def test_the_chart_uses_the_images_names_for_settings() -> None:
    """A setting of the image's environment would win over the chart's file: they must agree."""
    config = only(render({"allowInsecure": True}), "ConfigMap")["data"]["serve.yaml"]
    for name, value in instructions().environment.items():
        if name.startswith("SCORING_"):
            assert f"{name.removeprefix('SCORING_').lower()}: {value}\n" in config
