"""What the documents and the banner tell people to type is typed here, with the real grpcurl."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scoring_service.banner import ListenAddress, client_line, grpcurl_line
from tests.e2e.served import BIN, ROOT, Served, serving
from tests.ports import free_port
from tests.rpc.authorities import Authority, write_pair

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *(ROOT / name for name in ("benchmarks/README.md", "helm/scoring-service/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ADDRESS = "localhost:50051"

needs_grpcurl = pytest.mark.skipif(
    not (BIN / "grpcurl").exists() and shutil.which("grpcurl") is None,
    reason="grpcurl has no wheel for this platform",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str
    comment: str
    """What the HTML comment right before it says, if there is one."""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks() -> list[Block]:
    found = []
    pattern = re.compile(
        r"(?:<!-- ([^\n]*?) -->\n)?^ *```([^\n]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE
    )
    for document in DOCUMENTS:
        text = document.read_text()
        for match in pattern.finditer(text):
            line = text[: match.start(2)].count("\n") + 1
            name = str(document.relative_to(ROOT))
            found.append(Block(name, line, match[2], match[3], match[1] or ""))
    return found


SESSIONS = {
    name: "\n".join(b.text for b in blocks() if b.document == name and b.comment == "session")
    for name in ("docs/operating.md", "docs/security.md")
}
SECURED = [b for b in blocks() if b.comment.startswith("secured")]
"""Typed against a server with mutual TLS and tokens, beside the files of docs/security.md."""
GRPCURL = [
    b
    for b in blocks()
    if b.language == "bash"
    and "grpcurl -plaintext" in b.text
    and not b.comment.startswith(("session", "secured"))
]
CLIENT = [b for b in blocks() if b.language == "sh" and "scoring-client" in b.text]
SCRIPTS = {
    name: "\n".join(b.text for b in blocks() if b.document == name and b.language == "python")
    for name in (
        "README.md",
        "docs/adapters.md",
        "docs/client.md",
        "docs/concepts.md",
        "docs/recipes.md",
        "docs/training.md",
        "docs/weights.md",
    )
}
PLANS = [b for b in blocks() if b.comment == "plan"]
_FETCHES = "fetches models from the package registry or the Hub"
_GPU = "needs a GPU"
_HELM = "typed in tests/helm/test_documents.py, with the real helm and kubectl"
_MEASURES = "measures for minutes to hours; its programs have tests in tests/benchmarks"
NOT_RUN = {
    "README.md": {
        "make serve": "typed in tests/e2e/test_quickstart.py",
        ".venv/bin/scoring-client score": "the banner's line, which has a test below",
        "pip install torch": "changes the environment",
    },
    "CONTRIBUTING.md": {"make install": "what CI runs, and what takes longer; see below"},
    "examples/README.md": {
        ".venv/bin/python examples/": "run in tests/e2e/test_examples.py, shortened",
        "make build/models/smollm2": _FETCHES,
    },
    "benchmarks/README.md": {
        "make bench": _MEASURES,
        "OUT=${OUT:-build/gpu}": _GPU,
        "python -m benchmarks --model": _MEASURES,
    },
    "helm/scoring-service/README.md": {"helm ": _HELM},
    "docs/kubernetes.md": {
        "helm ": _HELM,
        "TOKEN=": _HELM,
        "kubectl create secret": _HELM,
        "SERVICE=": _HELM,
        "docker ": "needs a Docker daemon; its arguments are looked at in tests/helm",
        "import time\n\nfrom scoring_client import (": "run in tests/helm/test_pod.py",
    },
    "docs/kernels.md": {
        "python -m benchmarks.gpu_kernels": _GPU,
        "python -m pytest -c": _GPU,
    },
    "docs/quickstart.md": {"make serve MODEL=smollm2": _FETCHES},
    "docs/adapters.md": {
        "# served_teacher.py": "Ray actors of verl; what they call of ours has tests",
        "from prime_rl.": "runs inside prime-rl; what it calls of ours has tests",
        "class ReferenceServer": "runs inside OpenRLHF; what it calls of ours has tests",
    },
    "docs/recipes.md": {
        "from scoring_client.adapters.trl": "TRL and a teacher of its own: `make test-adapters`",
    },
    "docs/weights.md": {
        "if rank == 0": "several processes; gather_weights is in tests/client/test_push_sharded.py",
        "model.merge_adapter()": "PEFT is not installed; tests/client/test_push_names.py has a "
        "model with its names",
        "from scoring_client import AdminClient, push_to_all": "run in tests/helm/test_pod.py",
    },
}
"""First words of blocks that are code and that no test here types, by document, with the reason."""

SHOWN = {
    "docs/api.md": ("  INVALID_ARGUMENT ",),
    "docs/kubernetes.md": (
        "- at '/models/0'",
        "defaults:\n  gpus: 1",
        "apiVersion: cert-manager.io/v1",  # its names are compared in tests/helm/test_documents.py
    ),
    "docs/models.md": ("path: MODEL_PATH_PACKED",),
    "docs/training.md": ('{"token_ids": ',),
}
"""First words of blocks that nobody types: answers, files."""


@dataclass(frozen=True)
class Secured:
    """A server as docs/security.md starts one, and the folder that it was started in."""

    server: Served
    folder: Path
    token: str

    @property
    def env(self) -> dict[str, str]:
        """What the banner of such a server wants to be set."""
        files = {"CA": "ca.pem", "CERT": "trainer.pem", "KEY": "trainer.key"}
        return {"TOKEN": self.token, **{n: str(self.folder / f) for n, f in files.items()}}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One server with mutual TLS and tokens."""
    folder, token = tmp_path_factory.mktemp("secured"), "t" * 48
    authority = Authority()
    certificate, key = authority.server_files(folder / "server")
    for source, name in zip(
        write_pair(authority.issue("trainer"), folder), ("trainer.pem", "trainer.key"), strict=True
    ):
        source.rename(folder / name)
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "tokens").write_text(f"trainer score {token}\n")
    files = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    clients = ("--tls-client-ca", str(folder / "ca.pem"), "--auth-tokens", str(folder / "tokens"))
    with serving(*files, *clients, "--health-port", "0") as running:
        assert running.ready
        yield Secured(running, folder, token)


def shell(
    command: str, folder: Path = ROOT, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NO_COLOR": "1", **(variables or {})}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env=env,
        cwd=folder,
        timeout=120,
        check=False,
    )


def test_the_documents_show_grpcurl_and_python() -> None:
    assert len([b for b in GRPCURL if b.document == "docs/grpcurl.md"]) >= 5
    assert len(SECURED) >= 4
    assert all(SCRIPTS.values())
    assert CLIENT


def excuse(block: Block) -> str | None:
    """The first words by which a block is listed as one that is not run."""
    listed = NOT_RUN.get(block.document, {})
    return next((words for words in listed if block.text.startswith(words)), None)


def is_typed(block: Block) -> bool:
    """Whether a test types it: those below, or tests/e2e/test_quickstart.py."""
    if block.comment.startswith("follow") and "quickstart" in block.document:
        return True
    if block.language == "python" and block.document in SCRIPTS:
        return True
    in_session = block.comment == "session" and block.document in SESSIONS
    return in_session or block in (*GRPCURL, *SECURED, *CLIENT, *PLANS)


def test_every_command_of_the_documents_is_run() -> None:
    """Code that is called text, or nothing at all, would be seen by nobody."""
    for block in blocks():
        if block.language in ("bash", "sh", "python", "py"):
            assert is_typed(block) or excuse(block), f"{block} is typed by no test"
        else:
            assert block.language in ("text", "json", "yaml"), f"{block} does not say what it is"
            shown = SHOWN.get(block.document, ())
            assert block.text.startswith(shown), f"{block}: is this no code? Then add it to SHOWN"


def test_no_excuse_outlives_its_block() -> None:
    found = {(block.document, excuse(block)) for block in blocks() if not is_typed(block)}
    assert {(name, words) for name, listed in NOT_RUN.items() for words in listed} == found - {
        (name, None) for name, _ in found
    }


def test_make_and_benchmarks_have_what_the_documents_name() -> None:
    """Also where it is not run."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    targets.add("build/models/smollm2/config.json")
    code = "\n".join(b.text for b in blocks() if b.language in ("bash", "sh"))
    typed = re.findall(r"^make ([\w/.-]+)", code, re.MULTILINE)
    assert len(set(typed)) > 10
    assert set(typed) <= targets
    modules = set(re.findall(r"python -m (benchmarks[\w.]*)", code))
    assert len(modules) > 4
    for name in modules:
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("block", PLANS, ids=str)
def test_each_plan_is_made(block: Block) -> None:
    ended = shell(block.text)
    assert ended.returncode == 0, ended.stderr
    assert "replicas" in ended.stdout


@needs_grpcurl
@pytest.mark.parametrize("block", GRPCURL, ids=str)
def test_each_grpcurl_line_works(server: Served, block: Block) -> None:
    assert ADDRESS in block.text
    ended_as_announced(block, shell(block.text.replace(ADDRESS, server.ready)))


@needs_grpcurl
@pytest.mark.parametrize("block", SECURED, ids=str)
def test_each_line_for_tls_and_a_token_works(secured: Secured, block: Block) -> None:
    ports = {
        "50051": secured.server.ready.rpartition(":")[2],
        "50052": secured.server.wait_for(r'"health_port": (\d+)', secured.server.err)[1],
    }
    typed = re.sub(r"\b5005[12]\b", lambda port: ports[port[0]], block.text)
    ended_as_announced(block, shell(typed, secured.folder, secured.env))


def ended_as_announced(block: Block, ended: subprocess.CompletedProcess[str]) -> None:
    """With answers that have no fault, or with the status that the block's comment names."""
    expected = re.search(r"expect: (\w+)", block.comment)
    if expected:
        assert ended.returncode != 0
        # grpcurl writes InvalidArgument for INVALID_ARGUMENT.
        code = expected[1].title().replace("_", "")
        assert re.search(rf"[Cc]ode(:| =) {code}\b", ended.stderr), ended.stderr
        return
    assert ended.returncode == 0, ended.stderr
    if block.comment == "words":
        assert "scoring.v1.ScoringService" in ended.stdout
        return
    answers = list(parse_all(ended.stdout))
    assert answers
    for answer in answers:
        assert all("status" not in result for result in answer.get("results", []))


# Before pages whose Python pushes other weights: one line compares with the packaged model's.
@pytest.mark.parametrize("block", CLIENT, ids=str)
def test_each_line_for_the_terminal_works(server: Served, block: Block) -> None:
    ended = shell(f"export SCORING_TARGET={server.ready}\n{block.text}")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("document", SCRIPTS)
def test_the_python_of_a_document_runs_from_top_to_bottom(
    server: Served, document: str, tmp_path: Path
) -> None:
    script = tmp_path / "document.py"
    script.write_text(SCRIPTS[document].replace(ADDRESS, server.ready))
    command = [sys.executable, "-W", "error", script]
    # What is seen first is what is run again, against the server that is there.
    for _ in range(2 if document == "README.md" else 1):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert ended.returncode == 0, ended.stderr


@needs_grpcurl
@pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("curl")), reason="needs openssl and curl"
)
@pytest.mark.parametrize("document", SESSIONS)
def test_the_commands_of_a_document_run_one_after_another(document: str, tmp_path: Path) -> None:
    script = SESSIONS[document]
    assert script.count("scoring-client") >= 1
    for port in ("50051", "50052", "9464"):
        script = script.replace(port, str(free_port()))
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p)' EXIT\n{script}"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def parse_all(text: str) -> Iterator[dict]:
    """The JSON values that stand one after another."""
    decoder = json.JSONDecoder()
    place = 0
    while text[place:].strip():
        place += len(text[place:]) - len(text[place:].lstrip())
        value, place = decoder.raw_decode(text, place)
        yield value


def banner_line(server: Served, word: str) -> str:
    return server.wait_for(rf"^\s+(\S*{word}\s.*)$", server.out)[1]


def typed_from_banner(
    name: str, word: str, request: pytest.FixtureRequest
) -> subprocess.CompletedProcess[str]:
    """What a line of the banner of the server `name`, a fixture, gives."""
    if name == "server":
        return shell(banner_line(request.getfixturevalue(name), word))
    secured = request.getfixturevalue(name)
    return shell(banner_line(secured.server, word), variables=secured.env)


@needs_grpcurl
@pytest.mark.parametrize("name", ["server", "secured"])
def test_the_grpcurl_line_of_the_banner_contrasts_two_words(
    name: str, request: pytest.FixtureRequest
) -> None:
    ended = typed_from_banner(name, "grpcurl", request)
    assert ended.returncode == 0, ended.stderr
    results = [r for answer in parse_all(ended.stdout) for r in answer.get("results", [])]
    totals = {"".join(r["tokens"]): sum(r["logprobs"]) for r in results}
    assert totals[" np"] > totals[" banana"] + 3
    assert {r["completion_index"] for r in results} == {0, 1}, "JSON shows zeros"


@pytest.mark.parametrize("name", ["server", "secured"])
def test_the_client_line_of_the_banner_contrasts_two_words(
    name: str, request: pytest.FixtureRequest
) -> None:
    ended = typed_from_banner(name, "scoring-client", request)
    assert ended.returncode == 0, ended.stderr
    times = re.search(r"' np' is ([\d,.e+]+) times as likely as ' banana'", ended.stdout)
    assert times, ended.stdout
    assert float(times[1].replace(",", "")) > 20


def test_the_banner_says_what_its_lines_lack(secured: Secured) -> None:
    said = secured.server.wait_for(r"^Set (.*):$", secured.server.out)[1]
    assert set(re.findall(r"\b[A-Z]{2,}\b", said)) == secured.env.keys()


def test_the_lines_of_the_banner_have_the_flags_that_the_server_wants() -> None:
    tokens, tls = ListenAddress("127.0.0.1:1", tokens=True), ListenAddress("[::]:1", tls=True)
    assert "-plaintext -H" in grpcurl_line(tokens, {})
    assert "127.0.0.1:1 " in client_line(tokens)
    assert "--root-certificates" not in client_line(tokens)
    assert '-cacert "$CA" -d' in grpcurl_line(tls, {})
    assert '--target localhost:1 --root-certificates "$CA" --prompt' in client_line(tls)
    assert "--target host.example:1 " in client_line(ListenAddress("host.example:1", tls=True))


def test_a_server_whose_logs_are_json_prints_nothing_else() -> None:
    with serving("--log-format", "json") as server:
        assert server.ready
        assert server.end() == 0
    assert not server.out
    assert all(json.loads(line)["event"] for line in server.err)


@needs_grpcurl
def test_reflection_and_health_serve_grpcurl(server: Served) -> None:
    listed = shell(f"grpcurl -plaintext {server.ready} list")
    assert "scoring.v1.ScoringService" in listed.stdout.split()
    assert "grpc.health.v1.Health" in listed.stdout.split()
    described = shell(f"grpcurl -plaintext {server.ready} describe scoring.v1.ScoreRequest")
    assert "groups" in described.stdout
