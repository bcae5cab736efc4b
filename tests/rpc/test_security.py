"""TLS, mutual TLS, tokens and limits, against a real server with real certificates."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from structlog.testing import capture_logs

from scoring_client.proto import context_pb2, model_info_pb2, score_pb2, service_pb2_grpc
from scoring_service.engine.events import Command, Credit, Submit
from scoring_service.errors import ConfigurationError
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.rpc.interceptors.tokens import TokenFile
from scoring_service.rpc.tls import TlsFiles, _RotatingFiles, is_public, server_credentials
from scoring_service.types import Call, EngineConfig
from tests.rpc.authorities import Authority, credentials, write_pair
from tests.rpc.calls import collect, failure, group, reason
from tests.rpc.conftest import RunningServer, run_server

ONE = score_pb2.ScoreRequest(groups=[group([1], [2, 3])])
GOOD, ADMIN, HASHED = "g" * 20, "a" * 20, "h" * 20
TOKENS = f"""# clients
trainer score {GOOD}
operator admin,score {ADMIN}
only-admin admin {"o" * 20}
hidden score sha256:{sha256(HASHED.encode()).hexdigest()}
"""


@dataclass
class Secured:
    """A server with mutual TLS and tokens, and how to be let in."""

    server: RunningServer
    authority: Authority
    files: TlsFiles
    tokens: Path
    executor: RecordingExecutor

    @property
    def submitted(self) -> list[Call]:
        """Calls that were computed so far."""
        return self.executor.submitted

    def channel(self, leaf: Any = "good", trusted: bytes | None = None) -> grpc.aio.Channel:
        own = self.authority.issue("trainer.example") if leaf == "good" else leaf
        return grpc.aio.secure_channel(
            self.server.target.replace("127.0.0.1", "localhost"),
            credentials(trusted or self.authority.pem, own),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )


class RecordingExecutor(LocalExecutor):
    """Keeps what it was given, and calls from going on while it is told to."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.submitted: list[Call] = []
        self.stops_calls = False
        """Whether calls that come now stop at their first results."""
        self._stopped: dict[int, list[Credit]] = {}

    def send(self, command: Command) -> None:
        if isinstance(command, Submit):
            self.submitted.append(command.call)
            if self.stops_calls:
                self._stopped[command.call.call_id] = []
                command = replace(command, credit=1)
        if isinstance(command, Credit) and command.call_id in self._stopped:
            self._stopped[command.call_id].append(command)
        else:
            super().send(command)

    def let_go_on(self) -> None:
        """Calls that were stopped go on."""
        stopped, self._stopped = self._stopped, {}
        for credit in itertools.chain(*stopped.values()):
            self.send(credit)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority()
    certificate, key = authority.server_files(folder)
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "tokens").write_text(TOKENS)
    files = TlsFiles(certificate, key, folder / "ca.pem")
    executor = RecordingExecutor(EngineConfig(model=str(tiny_model_path())))
    async with run_server(
        lambda _index: executor,
        tls=files,
        tokens=folder / "tokens",
        health_port=0,
        max_concurrent_streams=8,
    ) as running:
        yield Secured(running, authority, files, folder / "tokens", executor)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def score(channel: grpc.aio.Channel, token: str | None = GOOD) -> list[Any]:
    stub = service_pb2_grpc.ScoringServiceStub(channel)
    return await collect(stub.Score(ONE, timeout=30, metadata=bearer(token) if token else ()))


@pytest.mark.parametrize("token", [GOOD, ADMIN, HASHED])
async def test_the_right_certificate_and_token_get_in(secured: Secured, token: str) -> None:
    async with secured.channel() as channel:
        messages = await score(channel, token)
    assert messages[-1].summary.items_ok == 1


@pytest.mark.parametrize("which", ["none", "expired", "another authority's", "plain"])
async def test_no_other_certificate_does(secured: Secured, which: str) -> None:
    target = secured.server.target.replace("127.0.0.1", "localhost")
    leaf = {
        "none": None,
        "expired": secured.authority.issue("trainer.example", expired=True),
        "another authority's": Authority().issue("trainer.example"),
        "plain": None,
    }[which]
    channel = grpc.aio.insecure_channel(target) if which == "plain" else secured.channel(leaf)
    before = len(secured.submitted)
    async with channel:
        stub = service_pb2_grpc.ScoringServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collect(stub.Score(ONE, timeout=5, metadata=bearer(GOOD)))
    allowed = {grpc.StatusCode.UNAVAILABLE}
    if which != "plain":
        # TLS ends the connection right after the handshake: the client may still be connecting.
        allowed.add(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert refused.value.code() in allowed
    assert len(secured.submitted) == before


async def test_a_client_refuses_a_server_of_another_authority(secured: Secured) -> None:
    async with secured.channel(trusted=Authority().pem) as channel:
        stub = service_pb2_grpc.ScoringServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collect(stub.Score(ONE, timeout=5, metadata=bearer(GOOD)))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer("x" * 20),
        bearer(GOOD[:-1]),
        bearer(GOOD + "g"),
        bearer(""),
        (("authorization", GOOD),),
        (("authorization", f"Basic {GOOD}"),),
    ],
)
async def test_no_other_token_gets_in(secured: Secured, metadata: Any) -> None:
    before = len(secured.submitted)
    async with secured.channel() as channel:
        stub = service_pb2_grpc.ScoringServiceStub(channel)
        code, status = await failure(stub.Score(ONE, timeout=30, metadata=metadata))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert reason(status) == "UNAUTHENTICATED"
        assert GOOD not in str(status)
        request = model_info_pb2.GetModelInfoRequest()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetModelInfo(request, timeout=30, metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        # Nothing is asked: a message that crosses the refusal may become gRPC's own INTERNAL.
        listing = reflection.ServerReflectionInfo(metadata=metadata)
        assert await listing.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(secured.submitted) == before


async def test_scopes(secured: Secured) -> None:
    async with secured.channel() as channel:
        stub = service_pb2_grpc.ScoringServiceStub(channel)
        code, status = await failure(stub.Score(ONE, timeout=30, metadata=bearer("o" * 20)))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert reason(status) == "PERMISSION_DENIED"


async def test_health_is_exempt_from_tokens_and_has_a_plain_port(secured: Secured) -> None:
    request = health_pb2.HealthCheckRequest(service="scoring.v1.ScoringService")
    async with secured.channel() as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    plain = f"127.0.0.1:{secured.server.health_port}"
    async with grpc.aio.insecure_channel(plain) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await score(channel)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_identity_separates_cached_prefixes(secured: Secured) -> None:
    async with secured.channel() as channel:
        stub = service_pb2_grpc.ScoringServiceStub(channel)
        forged = score_pb2.ScoreRequest(
            groups=[group([1], [2])],
            context=context_pb2.RequestContext(cache_salt="identity trainer"),
        )
        salts = []
        for request, token in ((ONE, GOOD), (ONE, ADMIN), (forged, ADMIN), (ONE, GOOD)):
            await collect(stub.Score(request, metadata=bearer(token)))
            salts.append(secured.submitted[-1].cache_salt)
    assert salts[0] == salts[3]
    assert len(set(salts)) == 3


async def test_rotated_certificates_are_taken_up_without_a_dropped_call(secured: Secured) -> None:
    new = Authority()
    async with secured.channel() as old_channel:
        stub = service_pb2_grpc.ScoringServiceStub(old_channel)
        # Few tokens, so that the worker has room for the calls that come meanwhile.
        long = score_pb2.ScoreRequest(groups=[group([1], [2] * 5) for _ in range(20)])
        secured.executor.stops_calls = True
        running = stub.Score(long, timeout=120, metadata=bearer(GOOD))
        messages = [await running.read() for _ in range(2)]
        secured.executor.stops_calls = False
        assert messages[0].HasField("provenance")
        assert messages[1].results
        client_ca = secured.files.client_ca
        assert client_ca is not None
        # Half-way: a certificate that does not belong to the key is not used.
        secured.files.certificate.write_bytes(new.issue("localhost").cert_chain_pems[0].bytes())
        async with secured.channel() as channel:
            assert await score(channel)
        client_ca.write_bytes(secured.authority.pem + new.pem)
        write_pair(new.issue("localhost"), secured.files.certificate.parent)
        async with secured.channel(trusted=new.pem) as channel:
            assert await score(channel), "the old client with the new server"
        async with secured.channel(leaf=new.issue("trainer"), trusted=new.pem) as channel:
            assert await score(channel), "a client of the new authority"
        async with secured.channel() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asyncio.wait_for(score(channel), 10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, "it trusts the old authority"
        assert not running.done()
        secured.executor.let_go_on()
        while (message := await running.read()) is not grpc.aio.EOF:
            messages.append(message)
        assert messages[-1].summary.items_ok == 20
        assert await score(old_channel), "a connection that stands is left alone"
    write_pair(secured.authority.issue("localhost"), secured.files.certificate.parent)


async def test_rotated_tokens_are_taken_up(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoring_service.rpc.interceptors.tokens._LOOK_SECONDS", 0.1)
    new = "n" * 20
    secured.tokens.write_text(TOKENS.replace(GOOD, new))
    async with secured.channel() as channel:
        await asyncio.sleep(0.15)
        assert await score(channel, new)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await score(channel, GOOD)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        secured.tokens.write_text("nonsense")
        await asyncio.sleep(0.15)
        assert await score(channel, new), "the last good ones stay in force"
        secured.tokens.write_text(TOKENS)
        await asyncio.sleep(0.15)
        assert await score(channel, GOOD)


def test_a_token_file_that_was_unusable_is_read_until_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights that are set late, and what a coarse clock does not tell apart, change no time."""
    monkeypatch.setattr("scoring_service.rpc.interceptors.tokens._LOOK_SECONDS", 0.0)
    old, new, path = "o" * 20, "n" * 20, tmp_path / "tokens"
    path.write_text(f"trainer score {old}\n")
    tokens = TokenFile(path)
    good = f"trainer score {new}\n"
    for text in ("x" * len(good), good):
        path.write_text(text)
        os.utime(path, ns=(1, 1))
        found = tokens.find(new)
    assert found is not None
    assert tokens.find(old) is None, "it was taken away"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no token"),
        ("trainer score", "line 1"),
        ("\n\ntrainer score short", "line 3"),
        ("trainer everything 12345678901234567890", "admin, score"),
        ("tra/iner score 12345678901234567890", "line 1"),
        ("trainer score sha256:1234567890abcdef", "64 hex digits"),
        (f"trainer score SHA256:{'g1234567890abcde' * 4}", "64 hex digits"),
    ],
)
def test_a_token_file_that_cannot_be_used_is_named_without_its_secrets(
    tmp_path: Path, text: str, named: str
) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        TokenFile(tmp_path / "tokens")
    assert named in str(refused.value)
    assert "1234567890" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["sha256:", "SHA256:"])
@pytest.mark.parametrize("write", [str.lower, str.upper])
def test_a_digest_is_no_token_however_it_is_written(
    tmp_path: Path, scheme: str, write: Callable[[str], str]
) -> None:
    digest = scheme + write(sha256(HASHED.encode()).hexdigest())
    (tmp_path / "tokens").write_text(f"hidden score {digest}\n")
    tokens = TokenFile(tmp_path / "tokens")
    principal = tokens.find(HASHED)
    assert principal is not None
    assert principal.name == "hidden"
    assert tokens.find(digest) is None


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    certificate, key = Authority().server_files(tmp_path)
    _, other_key = Authority().server_files(tmp_path / "other")
    with pytest.raises(ConfigurationError, match=r"key\.pem"):
        server_credentials(TlsFiles(certificate, other_key))
    with pytest.raises(ConfigurationError, match=r"nowhere\.pem"):
        server_credentials(TlsFiles(tmp_path / "nowhere.pem", key))


def test_files_that_stay_unusable_are_told_once(tmp_path: Path) -> None:
    """gRPC asks at each connection, which anybody may open."""
    certificate, key = Authority().server_files(tmp_path)
    files = _RotatingFiles(TlsFiles(certificate, key))
    good = key.read_bytes()
    with capture_logs() as logs:
        for _ in range(2):
            key.write_text("no key")
            assert [files.fetch() for _ in range(5)] == [None] * 5
            key.write_bytes(good)
            files.fetch()
    events = [line["event"] for line in logs]
    assert events == ["tls_files_unusable", "tls_files_reloaded"] * 2


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("localhost", False),
        ("::1", False),
        ("[::1]", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.1", True),
        ("example.org", True),
    ],
)
def test_which_addresses_others_reach(host: str, public: bool) -> None:
    assert is_public(host) is public
