"""What the documents and the banner tell people to type is typed here, with the real grpcurl."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.served import BIN, ROOT, Served, serving

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    pattern = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
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
GRPCURL = [
    b
    for b in blocks()
    if b.language == "bash" and "grpcurl -plaintext" in b.text and b.comment != "session"
]
CLIENT = [b for b in blocks() if b.language == "sh" and "scoring-client" in b.text]
SCRIPTS = {
    name: "\n".join(b.text for b in blocks() if b.document == name and b.language == "python")
    for name in (
        "README.md",
        "docs/client.md",
        "docs/concepts.md",
        "docs/recipes.md",
        "docs/training.md",
        "docs/weights.md",
    )
}
PLANS = [b for b in blocks() if b.comment == "plan"]
NOT_RUN = {
    # The client's line is the banner's, which has a test below.
    "README.md": ("make serve", "pip install torch", ".venv/bin/scoring-client score"),
    # The real helm of tests/helm.
    "docs/kubernetes.md": ("helm ",),
    # Need a GPU.
    "docs/kernels.md": ("python -m benchmarks.gpu_kernels", "python -m pytest -c"),
    # Fetches models from the package registry and the Hub.
    "docs/quickstart.md": ("make serve MODEL=smollm2",),
    # Ray actors of verl, prime-rl and OpenRLHF; what they call of ours has tests.
    "docs/training.md": ("# served_teacher.py", "from prime_rl.", "class ReferenceServer"),
    # TRL and a teacher of its own: what `make test-adapters` runs.
    "docs/recipes.md": ("from scoring_client.adapters.trl",),
}
"""First words of blocks that no test types, by document."""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One server for all documents."""
    with serving() as running:
        assert running.ready
        yield running


def shell(command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=120,
        check=False,
    )


def test_the_documents_show_grpcurl_and_python() -> None:
    assert len([b for b in GRPCURL if b.document == "docs/grpcurl.md"]) >= 5
    assert all(SCRIPTS.values())
    assert CLIENT


def test_every_command_of_the_documents_is_run() -> None:
    typed = {str(b) for b in (*GRPCURL, *CLIENT, *PLANS)}
    for block in blocks():
        if block.language not in ("bash", "sh", "python", "py") or str(block) in typed:
            continue
        followed = block.comment == "session" and block.document in SESSIONS
        # tests/e2e/test_quickstart.py
        followed |= block.comment.startswith("follow") and "quickstart" in block.document
        followed |= block.language == "python" and block.document in SCRIPTS
        excused = block.text.startswith(NOT_RUN.get(block.document, ()))
        assert followed or excused, f"{block} is typed by no test"


@pytest.mark.parametrize("block", PLANS, ids=str)
def test_each_plan_is_made(block: Block) -> None:
    ended = shell(block.text)
    assert ended.returncode == 0, ended.stderr
    assert "replicas" in ended.stdout


@needs_grpcurl
@pytest.mark.parametrize("block", GRPCURL, ids=str)
def test_each_grpcurl_line_works(server: Served, block: Block) -> None:
    assert ADDRESS in block.text
    ended = shell(block.text.replace(ADDRESS, server.ready))
    expected = re.match(r"expect: (\w+)", block.comment)
    if expected:
        assert ended.returncode != 0
        # grpcurl writes InvalidArgument for INVALID_ARGUMENT.
        assert f"Code: {expected[1].title().replace('_', '')}" in ended.stderr
        return
    assert ended.returncode == 0, ended.stderr
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parse_all(text: str) -> Iterator[dict]:
    """The JSON values that stand one after another."""
    decoder = json.JSONDecoder()
    place = 0
    while text[place:].strip():
        place += len(text[place:]) - len(text[place:].lstrip())
        value, place = decoder.raw_decode(text, place)
        yield value


def banner_line(server: Served, word: str) -> str:
    assert server.ready
    return server.wait_for(rf"^\s+(\S*{word}\s.*)$", server.out)[1]


@needs_grpcurl
def test_the_grpcurl_line_of_the_banner_contrasts_two_words(server: Served) -> None:
    ended = shell(banner_line(server, "grpcurl"))
    assert ended.returncode == 0, ended.stderr
    results = [r for answer in parse_all(ended.stdout) for r in answer.get("results", [])]
    totals = {"".join(r["tokens"]): sum(r["logprobs"]) for r in results}
    assert totals[" np"] > totals[" banana"] + 3
    assert {r["completion_index"] for r in results} == {0, 1}, "JSON shows zeros"


def test_the_client_line_of_the_banner_contrasts_two_words(server: Served) -> None:
    ended = shell(banner_line(server, "scoring-client"))
    assert ended.returncode == 0, ended.stderr
    times = re.search(r"' np' is ([\d,.e+]+) times as likely as ' banana'", ended.stdout)
    assert times, ended.stdout
    assert float(times[1].replace(",", "")) > 20


@needs_grpcurl
def test_reflection_and_health_serve_grpcurl(server: Served) -> None:
    listed = shell(f"grpcurl -plaintext {server.ready} list")
    assert "scoring.v1.ScoringService" in listed.stdout.split()
    assert "grpc.health.v1.Health" in listed.stdout.split()
    described = shell(f"grpcurl -plaintext {server.ready} describe scoring.v1.ScoreRequest")
    assert "groups" in described.stdout
