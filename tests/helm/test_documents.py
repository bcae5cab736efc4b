"""What docs/kubernetes.md and the examples tell people to type is typed, bar the cluster."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from scoring_service.rpc.interceptors.tokens import TokenFile
from tests.e2e.served import BIN, ROOT
from tests.helm.charts import (
    CHART,
    EXAMPLES,
    Manifest,
    example,
    of_kind,
    parse,
    pod_specs,
    render,
    tool_path,
)
from tests.helm.dockerfile import instructions

DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()
README = (CHART / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", DOCUMENT + README, re.DOTALL)
COMMANDS = [block for block in BLOCKS if block.startswith(("helm ", "TOKEN="))]


def shell(
    command: str, tmp_path: Path, folder: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """With the real helm and kubectl, in the repository or another folder."""
    (tmp_path / "bin").mkdir()
    for tool in ("helm", "kubectl"):
        (tmp_path / "bin" / tool).symlink_to(tool_path(tool))
    path = os.pathsep.join([str(tmp_path / "bin"), str(BIN), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": path, "KUBECONFIG": "/dev/null", **env},
    )


def without_cluster(command: str) -> str:
    """An installation becomes one that only says what it would do."""
    install = r"helm (upgrade --install|install) "
    return re.sub(install, "helm install --dry-run=client ", command)


def test_the_certificate_of_the_document_is_for_the_services_of_its_example() -> None:
    (text,) = re.findall(r"```yaml\n(apiVersion: cert-manager.*?)```", DOCUMENT, re.DOTALL)
    certificate = yaml.safe_load(text)
    assert certificate["kind"] == "Certificate"
    manifests = example(CHART / "examples" / "one-h200.yaml")
    spec = certificate["spec"]
    services = {m["metadata"]["name"] for m in of_kind(manifests, "Service")}
    named = {name.replace("release", "scoring", 1) for name in services}
    assert set(spec["dnsNames"]) == {f"{name}.ml.svc" for name in named}
    assert spec["secretName"] == certificate["metadata"]["name"] == "scoring-tls"
    assert "scoring-tls" in referred(manifests)


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_the_document_works(command: str, tmp_path: Path) -> None:
    assert command.startswith(("helm ", "TOKEN="))
    done = shell(without_cluster(command), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


def referred(manifests: list[Manifest]) -> dict[str, set[str]]:
    """Secrets that pods refer to and the chart does not make -> the keys that they want."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for spec in pod_specs(manifests):
        for volume in spec.get("volumes", []):
            if "secret" in volume:
                items = volume["secret"]["items"]
                wanted[volume["secret"]["secretName"]] |= {item["key"] for item in items}
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    wanted[reference["name"]].add(reference["key"])
    made = {secret["metadata"]["name"] for secret in of_kind(manifests, "Secret")}
    return {name: keys for name, keys in wanted.items() if name not in made}


def check_certificates(folder: Path) -> None:
    """Each is signed by the authority, for months, and the server's names what the chart makes."""
    # The model of the page is that of one example, and pushed to as that of the other.
    services = {
        m["metadata"]["name"].replace("release", "scoring", 1).replace(name, "qwen3-8b") + ".ml.svc"
        for path, name in (("one-h200", "qwen3-8b"), ("live-policy", "policy"))
        for m in of_kind(example(CHART / "examples" / f"{path}.yaml"), "Service")
    }
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    for name in ("server", "client", "trainer"):
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        assert certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(days=300)
        key = load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
        assert key.public_key() == certificate.public_key()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.DNSName)
        assert found == [name] if name != "server" else set(found) == services


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_the_secrets_of_the_document_are_what_the_examples_ask_for(tmp_path: Path) -> None:
    """Made by the real openssl and kubectl, which is asked to print them instead."""
    (block,) = (block for block in BLOCKS if block.startswith("kubectl"))
    (certificates,) = (block for block in BLOCKS if block.startswith("SERVICE="))
    printed = "kubectl create --dry-run=client --output yaml secret"
    script = block.replace("kubectl create secret", f"echo --- && {printed}")
    done = shell(f"{certificates}{script}", tmp_path, tmp_path, HF_TOKEN="hf_x")
    assert done.returncode == 0, done.stderr
    check_certificates(tmp_path)
    secrets = {
        manifest["metadata"]["name"]: {
            key: base64.b64decode(value) for key, value in manifest["data"].items()
        }
        for manifest in parse(done.stdout)
    }
    rows = re.findall(
        r"^\| `([\w-]+)` \| (`[^|]*`) \| [^|]+ \| `[\w.]+` \|$", DOCUMENT, re.MULTILINE
    )
    assert {name: set(re.findall(r"`([^`]+)`", keys)) for name, keys in rows} == {
        name: set(content) for name, content in secrets.items()
    }
    wanted = [referred(example(path)) for path in EXAMPLES]
    assert {name for names in wanted for name in names} == secrets.keys() - {"hub-token"}
    for names in wanted:
        for name, keys in names.items():
            assert keys <= secrets[name].keys()
    (tmp_path / "again").write_bytes(secrets["scoring-tokens"]["tokens"])
    tokens = TokenFile(tmp_path / "again")
    caller = tokens.find(secrets["scoring-test-token"]["token"].decode())
    assert caller is not None
    assert (caller.name, caller.scopes) == ("helm-test", {"score"})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_of_an_example_works(path: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^#\s+(helm install .*)$", path.read_text(), re.MULTILINE)
    assert f" -f {path.relative_to(ROOT)}" in command
    done = shell(without_cluster(command), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_renders_for_clusters_without_prometheus(path: Path, tmp_path: Path) -> None:
    (off,) = re.findall(r"`--set\n(metrics\.[^`]*)`", DOCUMENT)
    (alone,) = re.findall(r"`(models\[0\]\.autoscaling\.enabled=false)`", DOCUMENT)
    chosen = f"{off},{alone}" if path.stem == "autoscaled" else off
    (command,) = re.findall(r"^#\s+(helm install .*)$", path.read_text(), re.MULTILINE)
    done = shell(f"{without_cluster(command)} --set '{chosen}'", tmp_path)
    assert done.returncode == 0, done.stderr
    kinds = set(re.findall(r"^kind: (\w+)$", done.stdout, re.MULTILINE))
    assert "Deployment" in kinds
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "ScaledObject"}


def test_the_models_of_the_document_render() -> None:
    (block,) = re.findall(r"```yaml\n(defaults:.*?)```", DOCUMENT, re.DOTALL)
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
