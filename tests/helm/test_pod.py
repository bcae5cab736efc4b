"""A rendered pod is started here, probed as kubelet probes, and ended as kubelet ends it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from safetensors.torch import load_file

from scoring_client import AdminClient, ScoringClient, UnavailableError
from scoring_client.proto import service_pb2_grpc
from scoring_service.config import ServeConfig
from scoring_service.models import tiny_model_path
from scoring_service.serving.settings import server_config
from scoring_service.types import EngineConfig
from tests.e2e.calls import sample_request, score_request
from tests.e2e.processes import frozen
from tests.e2e.served import BIN
from tests.helm.charts import EXAMPLES, Manifest, example, notes, of_kind, only, render, settings_of
from tests.helm.cluster import TOKEN, Cluster
from tests.helm.hub import serving_hub
from tests.helm.page_trainer import Trainer, check_pushes_of_the_pages
from tests.helm.pod import Files, Pod, laid_out, secret_of, started
from tests.rpc.authorities import credentials

GRPCURL = shutil.which("grpcurl", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")

MODEL = {
    "name": "tiny",
    "preStopSeconds": 1,
    "drainSeconds": 60,
    "startupSeconds": 240,
    # What is compiled is the same in all of these tests: one of them does it.
    "settings": {"cpu_kernels": "off"},
    # One core, so one thread: two would wait for one another on a busy machine.
    "resources": {"requests": {"cpu": "1"}},
}
SHA = hashlib.sha256(TOKEN.encode()).hexdigest()
PLAIN: dict[str, Any] = {"allowInsecure": True, "models": [MODEL]}

LIVE: dict[str, Any] = {
    "liveWeights": {"enabled": True},
    "settings": {**MODEL["settings"], "allow_admin": True},
}
AWAITING: dict[str, Any] = {"allowInsecure": True, "models": [{**MODEL, **LIVE}]}

EXISTING = {
    "enabled": True,
    "existingSecret": "server-tls",
    "clientCa": {"enabled": True, "existingSecret": "client-ca"},
}

SECURED: dict[str, Any] = {
    "models": [{**MODEL, "liveWeights": {"enabled": True}}],
    "tls": EXISTING,
    "auth": {
        "enabled": True,
        "tokens": [{"name": "trainer", "scopes": ["score", "admin"], "sha256": SHA}],
    },
    "test": {"tokenSecret": {"name": "test-token"}, "clientCertificateSecret": "test-client"},
}


def server_pod(manifests: list[Manifest], root: Path, secrets: Files) -> Pod:
    spec = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return laid_out(manifests, spec, "server", root, secrets)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "mutual TLS and tokens"])
def test_a_pod_that_awaits_weights_lives_and_ends_as_kubelet_has_it(
    tmp_path: Path, secured: bool
) -> None:
    cluster = Cluster()
    manifests = render({**SECURED, "tls": cluster.inline} if secured else AWAITING)
    pod = server_pod(manifests, tmp_path / "server", cluster.secrets)
    metadata = [("authorization", f"Bearer {TOKEN}")] if secured else []
    with ThreadPoolExecutor(1) as aside, contextlib.ExitStack() as running_pod:
        trainer = Trainer(cluster, pod, tmp_path / "trainer")
        # Nobody listens yet, and whoever waits for the pod to be ready waits for this loop.
        loop = aside.submit(trainer.run, "kubernetes.md") if secured else None
        served = running_pod.enter_context(started(pod))
        assert served.listening
        assert pod.probe("livenessProbe"), "alive while it loads"
        pod.wait_started(served)
        if loop is not None:
            assert loop.result(120)["version"] == 1
        else:
            check_first_push(pod)
        wait_ready(pod)
        with cluster.channel(pod.ports["50051"], secured=secured) as channel:
            stub = service_pb2_grpc.ScoringServiceStub(channel)
            if secured:
                with pytest.raises(grpc.RpcError) as refused:
                    list(stub.Score(score_request([1], [2]), timeout=20))
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                check_others_are_turned_away(cluster, pod)
                check_pushes_of_the_pages(trainer)
            check_helm_test(manifests, tmp_path / "test", cluster, pod)
            if secured:
                check_helm_test(render(SECURED), tmp_path / "existing", cluster, pod)
            running = stub.Sample(sample_request(100), timeout=120, metadata=metadata)
            next(running)
            told = time.monotonic()
            with frozen(served.worker_pid):
                check_pre_stop(pod)
                served.process.send_signal(signal.SIGTERM)
                served.wait_for('"draining"', served.err)
                # No new calls, but no restart either, while the running one ends.
                assert not pod.probe("readinessProbe")
                assert pod.probe("livenessProbe")
            assert list(running)[-1].summary.usage.sampled_tokens == 100
        left = pod.spec["terminationGracePeriodSeconds"] - (time.monotonic() - told)
        assert served.process.wait(left) == 0
        served.join()
        assert "Traceback" not in "".join(served.err)


def check_first_push(pod: Pod) -> None:
    """It is started, but not ready: nobody gave it weights. Then somebody does."""
    assert not pod.probe("readinessProbe")
    assert pod.probe("livenessProbe")
    target = f"localhost:{pod.ports['50051']}"
    with ScoringClient(target, max_attempts=1) as client, AdminClient(target) as admin:
        with pytest.raises(UnavailableError, match="waits for weights"):
            client.score([([1], [[2]])])
        assert admin.takes_updates()
        admin.push_weights(load_file(tiny_model_path() / "model.safetensors"), version=1)
        assert client.score([([1], [[2]])])[0][0].weight_version == 1


def check_pre_stop(pod: Pod) -> None:
    """The hook waits, and the server serves on meanwhile."""
    before = time.monotonic()
    hook = pod.run(pod.container["lifecycle"]["preStop"]["exec"]["command"])
    assert hook.returncode == 0, hook.stderr
    assert time.monotonic() - before >= MODEL["preStopSeconds"]
    assert pod.probe("readinessProbe")


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl has no wheel for this platform")
def test_the_grpcurl_line_of_the_notes(tmp_path: Path) -> None:
    """It works as it stands, once the port is forwarded."""
    assert GRPCURL is not None
    said = notes(PLAIN)
    assert "port-forward service/release-scoring-service-tiny 50051:50051" in said
    (line,) = (line.strip() for line in said.splitlines() if "grpcurl" in line)
    pod = server_pod(render(PLAIN), tmp_path, {})
    with started(pod) as served:
        pod.wait_started(served)
        done = subprocess.run(
            ["bash", "-c", pod.here(line).replace("grpcurl", GRPCURL, 1)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert '" np"' in done.stdout
        assert served.end() == 0


def check_others_are_turned_away(cluster: Cluster, pod: Pod) -> None:
    """Who shows no certificate does not get as far as being asked for a token."""
    address = f"localhost:{pod.ports['50051']}"
    for channel in (
        grpc.insecure_channel(address),
        grpc.secure_channel(address, credentials(cluster.authority.pem)),
    ):
        with channel:
            stub = service_pb2_grpc.ScoringServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Score(score_request([1], [2]), timeout=20))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def wait_ready(pod: Pod) -> None:
    """Asks the readiness probe until it succeeds."""
    deadline = time.monotonic() + 60
    while not pod.probe("readinessProbe"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def check_helm_test(manifests: list[Manifest], root: Path, cluster: Cluster, pod: Pod) -> None:
    """The hook's pod scores its sentence, with the Service's name resolved to this machine."""
    hook = only(manifests, "Pod")
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "test"
    client = laid_out(manifests, hook["spec"], "client", root, cluster.secrets)
    (service,) = (s for s in of_kind(manifests, "Service") if "clusterIP" not in s["spec"])
    (port,) = service["spec"]["ports"]
    name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc:{port['port']}"
    command = client.container["command"] + client.container["args"]
    assert f"--target={name}" in command
    there = f"--target=localhost:{pod.ports['50051']}"
    command = [there if c.startswith("--target=") else client.here(c) for c in command]
    env = {
        v["name"]: secret_of(manifests, v["valueFrom"]["secretKeyRef"]["name"], cluster.secrets)[
            v["valueFrom"]["secretKeyRef"]["key"]
        ].decode()
        for v in client.container.get("env", [])
    }
    done = client.run(command, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "' np' is" in done.stdout
    assert "banana" in done.stdout


def test_weights_are_downloaded_first_and_served_without_the_hub(tmp_path: Path) -> None:
    with serving_hub("owner/small", tiny_model_path()) as hub:
        model = {**MODEL, "model": "owner/small", "download": {"enabled": True}}
        manifests = render(
            {**PLAIN, "models": [model], "hub": {"endpoint": hub.endpoint, "token": "hf_secret"}}
        )
        spec = only(manifests, "Deployment")["spec"]["template"]["spec"]
        first = laid_out(manifests, spec, "download", tmp_path, {})
        (token,) = (v for v in first.container["env"] if v["name"] == "HF_TOKEN")
        reference = token["valueFrom"]["secretKeyRef"]
        secret = secret_of(manifests, reference["name"], {})[reference["key"]].decode()
        done = first.run(first.command(), HF_TOKEN=secret)
        assert done.returncode == 0, done.stderr
        listed = [whose for path, whose in hub.asked if path.startswith("/api/models/owner/small")]
        assert set(listed) == {"Bearer hf_secret"}
        files = {path.name for path in (tmp_path / "models").rglob("*")}
        assert "model.safetensors" in files
        assert "original.pth" not in files
    assert "HF_TOKEN" not in str(spec["containers"])
    # The Hub is gone now, and its address with it.
    pod = laid_out(manifests, spec, "server", tmp_path, {})
    with started(pod) as served:
        pod.wait_started(served)
        assert served.end() == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="pod-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def launcher_of(root: Path) -> tuple[int, list[str]]:
    """A user, and what runs a program as that user, on a file system that nobody can write.

    All of it but `root` is read-only, and no capability is left. The user is the image's, or root
    (without what makes root mighty) where the image's cannot reach the interpreter of the tests.
    Skips where this machine does not allow any of it.
    """
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("needs root, unshare and setpriv")
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    isolated = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root)]
    code = "import subprocess, sys, grpc; subprocess.run([sys.executable, '-c', ''], check=True)"
    for uid in (10001, 0):
        who = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs")
        launcher = [*isolated, *who, "--bounding-set=-all", "--inh-caps=-all"]
        tried = subprocess.run(
            [*launcher, sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        if tried.returncode == 0:
            return uid, launcher
    pytest.skip(f"not possible here: {tried.stderr.strip()[-200:]}")


def test_it_runs_as_its_user_on_a_root_file_system_that_is_read_only(open_folder: Path) -> None:
    """All that it writes, compiled kernels too, goes to the volumes."""
    model = {**MODEL, "settings": {}}
    manifests = render({**PLAIN, "models": [model]})
    pod = server_pod(manifests, open_folder, {})
    security = pod.spec["securityContext"]
    assert security["runAsUser"] == security["fsGroup"] == 10001
    writable = [
        mount["mountPath"] for mount in pod.container["volumeMounts"] if not mount.get("readOnly")
    ]
    uid, launcher = launcher_of(open_folder)
    for folder in writable:
        shutil.chown(f"{open_folder}{folder}", uid, uid)
    with started(pod, launcher) as served:
        pod.wait_started(served)
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        assert f"\nUid:\t{uid}\t" in status
        assert "\nCapEff:\t0000000000000000" in status
        with Cluster().channel(pod.ports["50051"], secured=False) as channel:
            stub = service_pb2_grpc.ScoringServiceStub(channel)
            assert list(stub.Score(score_request([1], [2, 3]), timeout=60))
        assert served.end() == 0
        written = "".join(served.err + served.out)
        assert "Read-only file system" not in written
        assert "Traceback" not in written
    if shutil.which("c++"):
        kernels = open_folder / "var" / "cache" / "scoring-service" / "scoring-service"
        assert list(kernels.glob("*.so"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_server_accepts_an_examples_settings(path: Path, tmp_path: Path) -> None:
    """All but the model: names, types and ranges, and whether it may listen on all addresses."""
    manifests = example(path)
    for deployment in of_kind(manifests, "Deployment"):
        name = deployment["metadata"]["labels"]["scoring-service/model"]
        settings = settings_of(manifests, name)
        config = ServeConfig(
            **{k: Path(v) if k.startswith(("tls_", "auth_")) else v for k, v in settings.items()}
        )
        engine = EngineConfig("tiny")
        assert server_config(config, engine).host == "0.0.0.0"
        file = tmp_path / f"{name}.yaml"
        file.write_text(only(manifests, "ConfigMap", f"-{name}-settings")["data"]["serve.yaml"])
        done = subprocess.run(
            # A port that nobody has, whatever runs on this machine.
            [BIN / "scoring-service", "health", "--config", file, "--health-port", "1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        # Nobody answers; a setting that is not known would have ended it before.
        assert (done.returncode, "UNAVAILABLE" in done.stderr) == (1, True), done.stderr
