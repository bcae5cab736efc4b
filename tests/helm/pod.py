"""A rendered pod as processes of this machine.

Its files are laid out in a folder that stands for the container's root, and every path in its
command, environment and settings that lies in a mounted folder is turned into one below it. Ports
become free ones and the address loopback. All else is run as rendered.
"""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.served import BIN, Served
from tests.helm.charts import Manifest, of_kind, only
from tests.helm.dockerfile import instructions
from tests.ports import free_port

PORTS = ("50051", "50052", "9464")

Files = dict[str, dict[str, bytes]]
"""Secrets that the cluster would have: name -> key -> content."""


@dataclass
class Pod:
    """One container and its surroundings."""

    spec: Manifest
    container: Manifest
    root: Path
    ports: dict[str, int]
    """Those of the container -> those that stand for them here."""

    def here(self, text: str) -> str:
        """With paths and ports of this machine."""
        mounts = [re.escape(mount["mountPath"]) for mount in self.container["volumeMounts"]]
        if mounts:
            # In one pass: what replaces a path may hold another one.
            longest_first = "|".join(sorted(mounts, key=len, reverse=True))
            text = re.sub(rf"(?<![\w/])({longest_first})(?=/|$|\s)", rf"{self.root}\1", text)
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(ours), text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def environment(self) -> dict[str, str]:
        """The image's and the container's, without Secrets."""
        image = {
            name: value
            for name, value in instructions().environment.items()
            if name != "PATH"  # the image's virtual environment is this one
        }
        given = {v["name"]: v["value"] for v in self.container.get("env", []) if "value" in v}
        return {name: self.here(value) for name, value in (image | given).items()}

    def command(self) -> list[str]:
        """What the container runs: the image's entrypoint unless it says otherwise."""
        command = self.container.get("command") or instructions().entrypoint
        return [*command, *map(self.here, self.container.get("args", []))]

    def run(self, command: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
        """A command in the container, such as a hook."""
        program = BIN / command[0]
        return subprocess.run(
            [program if program.exists() else command[0], *command[1:]],
            env={"PATH": "/usr/bin:/bin", **self.environment(), **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def probe(self, name: str) -> bool:
        """Whether a probe succeeds, asked as kubelet does: plain, with its port and service."""
        probe = self.container[name]
        address = f"127.0.0.1:{self.ports[str(probe['grpc']['port'])]}"
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        with grpc.insecure_channel(address) as channel:
            try:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(request, timeout=probe["timeoutSeconds"])
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def wait_started(self, served: Served) -> None:
        """Asks the startup probe until it succeeds, for as long as kubelet would."""
        probe = self.container["startupProbe"]
        deadline = time.monotonic() + probe["periodSeconds"] * probe["failureThreshold"]
        while not self.probe("startupProbe"):
            said = "".join(served.out + served.err)
            assert served.process.poll() is None, said
            assert time.monotonic() < deadline, f"kubelet would have restarted it:\n{said}"
            time.sleep(0.2)


def laid_out(
    manifests: list[Manifest], spec: Manifest, name: str, root: Path, secrets: Files
) -> Pod:
    """A pod's container with its volumes in place.

    Args:
        manifests: where ConfigMaps and Secrets come from.
        spec: of the pod.
        name: of the container.
        root: a folder that stands for the container's `/`.
        secrets: those that the chart expects to exist.
    """
    (container,) = (
        c for c in (*spec.get("initContainers", []), *spec["containers"]) if c["name"] == name
    )
    pod = Pod(spec, container, root, {port: free_port() for port in PORTS})
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    container.setdefault("volumeMounts", [])
    for mount in container["volumeMounts"]:
        folder = Path(f"{root}{mount['mountPath']}")
        folder.mkdir(parents=True, exist_ok=True)
        volume = volumes[mount["name"]]
        for file, content in _files(volume, manifests, secrets).items():
            path = folder / file
            with contextlib.suppress(UnicodeDecodeError):
                content = pod.here(content.decode()).encode()
            path.write_bytes(content)
    return pod


def _files(volume: Manifest, manifests: list[Manifest], secrets: Files) -> dict[str, bytes]:
    if "configMap" in volume:
        data = only(manifests, "ConfigMap", volume["configMap"]["name"])["data"]
        return {key: text.encode() for key, text in data.items()}
    if "secret" not in volume:
        assert volume.keys() & {"emptyDir", "persistentVolumeClaim"}, volume
        return {}
    content = secret_of(manifests, volume["secret"]["secretName"], secrets)
    # A key that is missing is an error here, as it is for kubelet.
    return {item["path"]: content[item["key"]] for item in volume["secret"]["items"]}


def secret_of(manifests: list[Manifest], name: str, secrets: Files) -> dict[str, bytes]:
    """What a Secret holds: the chart's own, or one that the cluster has."""
    for manifest in of_kind(manifests, "Secret"):
        if manifest["metadata"]["name"] == name:
            plain = {k: v.encode() for k, v in manifest.get("stringData", {}).items()}
            coded = {k: base64.b64decode(v) for k, v in manifest.get("data", {}).items()}
            return plain | coded
    return secrets[name]


@contextmanager
def started(pod: Pod, launcher: Sequence[str] = ()) -> Iterator[Served]:
    """The server of a pod; killed if the test did not end it."""
    program, verb, *arguments = pod.command()
    assert (program, verb) == ("scoring-service", "serve")
    served = Served(arguments, pod.environment(), launcher)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()
