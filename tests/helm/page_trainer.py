"""The trainers of the pages, which push to a pod's address."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from scoring_client import AdminClient, InvalidRequestError, UnavailableError, push_to_all
from scoring_service.models import tiny_model_path
from tests.e2e.served import ROOT
from tests.helm.cluster import TOKEN, Cluster
from tests.helm.pod import Pod


class Trainer:
    """Runs what the pages' trainers do: push to pods' addresses, whose certificates name Services.

    The pages' host becomes the name that the certificate has, its address and port the pod's, and
    as this pod asks for both, a token goes beside the client's certificate and the other way round.
    """

    def __init__(self, cluster: Cluster, pod: Pod, folder: Path) -> None:
        pair = cluster.pair(cluster.client)
        folder.mkdir()
        trusted = cluster.authority.pem
        for name, content in {**pair, "ca.crt": trusted, "ca.pem": trusted}.items():
            (folder / name).write_bytes(content)
        self.folder = folder
        self.target = f"127.0.0.1:{pod.ports['50051']}"
        tensors = load_file(tiny_model_path() / "model.safetensors")
        # As trainers hold it; the pod serves bfloat16.
        self.policy = {name: tensor.float() for name, tensor in tensors.items()}
        self.admin = AdminClient(
            f"localhost:{pod.ports['50051']}",
            token=TOKEN,
            root_certificates=trusted,
            client_certificate=pair["tls.crt"],
            client_key=pair["tls.key"],
        )

    def run(
        self, page: str, *, service: str = "localhost", timeout: int = 240, **names: Any
    ) -> dict[str, Any]:
        """Run the block of a page, and return the names that it leaves behind."""
        text = (ROOT / "docs" / page).read_text()
        blocks = re.findall(r"^```py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        (code,) = (block for block in blocks if "wait_for_replicas" in block)
        count = {"kubernetes.md": "count = 4 ", "weights.md": '50051", 4,'}[page]
        own = {
            "kubernetes.md": '"token": token,',
            "weights.md": '"client_certificate": "tls.crt", "client_key": "tls.key",',
        }[page]
        for part, here in (
            ('"scoring-scoring-service-policy-replicas.ml.svc"', repr(service)),
            (count, count.replace("4", "1")),
            ('f"{host}:50051"', repr(self.target)),
            ("timeout=1800", f"timeout={timeout}"),
            ("tls = {", f"tls = {{{own}"),
            ("push_to_all(", "pushing(" if "pushing" in names else "push_to_all("),
        ):
            assert code.count(part) == 1, part
            code = code.replace(part, here)
        code = re.sub(r'"((?:ca|tls)\.\w+)"', rf'"{self.folder}/\1"', code)
        names = {"token": TOKEN, "policy": self.policy, **names}
        names["training"] = lambda policy=names["policy"]: iter([policy])
        exec(code, names)
        for client in names.get("clients", ()):
            client.close()
        return names


def check_pushes_of_the_pages(trainer: Trainer) -> None:
    """The first one was made while the pod loaded."""
    # Whoever looks for another name than the certificate's pushes to nobody.
    for page in ("kubernetes.md", "weights.md"):
        with pytest.raises(UnavailableError, match=r"0 of 1 servers.* for another name than"):
            trainer.run(page, service="other.example", timeout=1, step=9)
    # By a trainer that was started again.
    assert trainer.run("kubernetes.md")["version"] == trainer.admin.get_weights().version == 2
    trainer.run("weights.md", step=3)
    assert trainer.admin.get_weights().version == 3
    check_a_push_that_failed_is_done_again(trainer)
    check_a_push_of_another_model_is_not_done_again(trainer)
    trainer.admin.close()


def check_a_push_that_failed_is_done_again(trainer: Trainer) -> None:
    """The loop's first try meets the update of somebody else, who gives up then."""
    given_up, tried = threading.Event(), []

    def half() -> Iterator[tuple[str, Any]]:
        yield next(iter(sorted(trainer.policy.items())))
        given_up.wait(60)
        raise LookupError

    def pushing(pods: list[AdminClient], policy: Any, version: int, **options: Any) -> None:
        tried.append(version)
        try:
            push_to_all(pods, policy, version=version, **options)
        finally:
            given_up.set()
            wait([other])

    with ThreadPoolExecutor(1) as aside:
        push = trainer.admin.push_weights
        other = aside.submit(push, half(), version=99, convert_dtypes=True)
        while trainer.admin.get_weights().update is None:
            assert not other.done()
        trainer.run("kubernetes.md", pushing=pushing)
    assert isinstance(other.exception(), LookupError)
    assert tried[:2] == [4, 5]
    assert trainer.admin.get_weights().version == tried[-1]


def check_a_push_of_another_model_is_not_done_again(trainer: Trainer) -> None:
    """It would be refused each time."""
    tried = []

    def pushing(pods: list[AdminClient], policy: Any, version: int, **options: Any) -> None:
        tried.append(version)
        push_to_all(pods, policy, version=version, **options)

    name, tensor = next(iter(trainer.policy.items()))
    with pytest.raises(InvalidRequestError, match="has shape"):
        trainer.run("kubernetes.md", policy=trainer.policy | {name: tensor[1:]}, pushing=pushing)
    assert len(tried) == 1
