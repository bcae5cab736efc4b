"""Channels: targets, tokens, TLS, limits, and whose they are."""

import asyncio
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time

import grpc
import pytest
from opentelemetry import propagate
from opentelemetry.propagators.textmap import TextMapPropagator, default_setter
from opentelemetry.sdk.trace import TracerProvider

from scoring_client import (
    AdminClient,
    AsyncAdminClient,
    AsyncScoringClient,
    NoTlsError,
    ScoringClient,
    ScoringError,
    UnavailableError,
)
from scoring_client.connection.channel import channel_options
from scoring_client.connection.target import checked_target, full_target
from tests.client.toy_server import ToyServer
from tests.client.toy_weights import WeightsServer
from tests.client.truth import assert_scores

ONE = [([1, 2], [[3, 4]])]


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("localhost:50051", "dns:///localhost:50051"),
        ("scoring", "dns:///scoring"),
        ("10.0.0.1:5", "dns:///10.0.0.1:5"),
        ("[::1]:5", "dns:///[::1]:5"),
        ("dns:///a:5", "dns:///a:5"),
        ("dns://8.8.8.8/a:5", "dns://8.8.8.8/a:5"),
        ("unix:/tmp/s", "unix:/tmp/s"),
        ("ipv4:10.0.0.1:5,10.0.0.2:5", "ipv4:10.0.0.1:5,10.0.0.2:5"),
    ],
)
def test_targets(given, full):
    assert full_target(given) == full


def test_options():
    options = dict(channel_options("host:1", [("grpc.keepalive_time_ms", 5)]))
    assert options["grpc.keepalive_time_ms"] == 5
    assert "grpc.enable_http_proxy" not in options
    assert dict(channel_options("localhost:1"))["grpc.enable_http_proxy"] == 0
    assert dict(channel_options("localhost.example:1")).get("grpc.enable_http_proxy") is None
    assert dict(channel_options("dns:///localhost:1"))["grpc.enable_http_proxy"] == 0
    two = "ipv4:127.0.0.1:1,127.0.0.2:1"
    assert dict(channel_options(two))["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in dict(channel_options("ipv4:127.0.0.1:1,10.0.0.2:1"))
    config = json.loads(options["grpc.service_config"])
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    retried = {entry["method"] for entry in config["methodConfig"][0]["name"]}
    assert retried == {"ListModels", "GetModelInfo", "Tokenize"}


def test_calls_are_spread_over_all_addresses():
    with ToyServer() as one, ToyServer() as two:
        target = f"ipv4:{one.target},{two.target}"
        with ScoringClient(target) as client:
            client.wait_ready(5)
            for _ in range(20):
                client.score(ONE)
        assert len(one.requests) + len(two.requests) == 20
        assert one.requests
        assert two.requests


def test_the_other_server_answers_when_one_is_gone():
    with ToyServer() as one, ToyServer() as two:
        target = f"ipv4:{one.target},{two.target}"
        with ScoringClient(target) as client:
            client.score(ONE)
            one.__exit__()
            for _ in range(4):
                assert_scores(client.score(ONE)[0][0], [1, 2], [3, 4])


def test_tokens(ask):
    with ToyServer() as server:
        ask(server.target, "score", ONE, client={"token": "secret"})
        ask(server.target, "list_models", client={"token": "secret"})
        ask(server.target, "score", ONE)
        assert [m.get("authorization") for m in server.metadata] == [
            "Bearer secret",
            "Bearer secret",
            None,
        ]


def test_the_callers_trace_goes_along():
    tracer = TracerProvider().get_tracer("test")

    async def asynchronous(target):
        async with AsyncScoringClient(target) as client:
            with tracer.start_as_current_span("training step") as span:
                await client.score(ONE)
                return span

    with ToyServer() as server, ScoringClient(server.target) as client:
        client.score(ONE)
        with tracer.start_as_current_span("training step") as blocking:
            client.score(ONE)
        spans = [blocking, asyncio.run(asynchronous(server.target))]
        without, *within = (m.get("traceparent") for m in server.metadata)
    assert without is None
    traces = [f"{span.get_span_context().trace_id:032x}" for span in spans]
    assert [header.split("-")[1] for header in within] == traces


class OtherHeaders(TextMapPropagator):
    """As those of Amazon, B3 and others: names with capitals, and any text for a value."""

    fields = frozenset({"X-Amzn-Trace-Id", "baggage", "x y", "trace-bin"})

    def extract(self, carrier, context=None, getter=None):
        return context

    def inject(self, carrier, context=None, setter=default_setter):
        setter.set(carrier, "X-Amzn-Trace-Id", "Root=1-2-3;Sampled=1")
        setter.set(carrier, "baggage", "who=Zoë\n")
        setter.set(carrier, "x y", "a name that is none")
        setter.set(carrier, "trace-bin", "text")


def test_any_propagators_headers_go_along_and_harm_no_call(ask):
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(OtherHeaders())
    try:
        with ToyServer() as server:
            ask(server.target, "score", ONE)
            ask(server.target, "model_info")
    finally:
        propagate.set_global_textmap(before)
    assert len(server.metadata) == 2
    for sent in server.metadata:
        assert sent["x-amzn-trace-id"] == "Root=1-2-3;Sampled=1"
        assert not {"baggage", "x y", "trace-bin"} & set(sent)


def test_a_channel_that_was_handed_in_stays_open(runner):
    with ToyServer() as server:
        with grpc.insecure_channel(server.target) as channel:
            for _ in range(2):
                with ScoringClient(channel=channel) as client:
                    assert_scores(client.score(ONE)[0][0], [1, 2], [3, 4])

        async def main():
            async with grpc.aio.insecure_channel(server.target) as channel:
                for _ in range(2):
                    async with AsyncScoringClient(channel=channel) as client:
                        results = await client.score(ONE)
                        assert_scores(results[0][0], [1, 2], [3, 4])

        runner.run(main())


def test_an_async_client_can_be_made_outside_a_loop(runner):
    with ToyServer() as server:
        client = AsyncScoringClient(server.target)

        async def main():
            assert_scores((await client.score(ONE))[0][0], [1, 2], [3, 4])
            await client.close()

        runner.run(main())
        runner.run(AsyncScoringClient(server.target).close())


def test_an_async_client_serves_one_loop_after_the_other():
    """Each ``asyncio.run`` has a loop of its own; a trainer calls it step by step."""
    with ToyServer() as server:
        client = AsyncScoringClient(server.target)

        async def step(others=0):
            assert_scores((await client.score(ONE))[0][0], [1, 2], [3, 4])
            if others:
                await asyncio.to_thread(asyncio.run, step(others - 1))
                assert_scores((await client.score(ONE))[0][0], [1, 2], [3, 4])

        for others in (0, 0, 1):
            asyncio.run(step(others))

        async def end():
            await step()
            await client.close()
            await client.close()
            with pytest.raises(ValueError, match="closed"):
                await client.score(ONE)

        asyncio.run(end())


def test_a_client_shows_where_it_asks_and_no_token():
    with ScoringClient("127.0.0.1:1", token="secret") as client:
        assert repr(client) == "ScoringClient('127.0.0.1:1')"
        again = ScoringClient(channel=client._channel)
        assert repr(again) == "ScoringClient(channel=…)"
    assert repr(AsyncScoringClient("127.0.0.1:1")) == "AsyncScoringClient('127.0.0.1:1')"


def test_a_client_that_was_closed_opens_no_channel():
    async def main(client):
        await client.close()
        with pytest.raises(ValueError, match="closed"):
            await client.score(ONE)

    asyncio.run(main(AsyncScoringClient("127.0.0.1:1")))
    client = ScoringClient("127.0.0.1:1")
    client.close()
    with pytest.raises(ValueError, match=r"(?i)closed"):
        client.score(ONE)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    subprocess.run(
        [*command.split(), "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
    )
    return key, cert


@pytest.mark.parametrize("given", ["path", "bytes", "text", "credentials"])
def test_tls(ask, certificate, given):
    key, cert = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    client = {
        "path": {"root_certificates": cert},
        "bytes": {"root_certificates": cert.read_bytes()},
        "text": {"root_certificates": cert.read_text()},
        "credentials": {"credentials": grpc.ssl_channel_credentials(cert.read_bytes())},
    }[given]
    with ToyServer(credentials=credentials) as server:
        results = ask(server.target, "score", ONE, client={**client, "token": "t"})
        assert_scores(results[0][0], [1, 2], [3, 4])
        assert server.metadata[0]["authorization"] == "Bearer t"
        with pytest.raises(UnavailableError, match="hangs up: it may want TLS"):
            ask(server.target, "score", ONE, client={"max_attempts": 1}, timeout=5)
        assert len(server.requests) == 1


def test_tls_with_a_public_authority(certificate):
    """gRPC's roots are read once a process, from where the environment says."""
    key, cert = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    code = (
        "import sys; from scoring_client import ScoringClient\n"
        "with ScoringClient(sys.argv[1], tls=True, token='t', max_attempts=1) as client:\n"
        "    client.score([([1, 2], [[3, 4]])], timeout=20)\n"
    )
    with ToyServer(credentials=credentials) as server:
        done = subprocess.run(
            [sys.executable, "-c", code, server.target],
            env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(cert)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        # No public authority signed it.
        with (
            ScoringClient(server.target, tls=True, token="t", max_attempts=1) as client,
            pytest.raises(UnavailableError, match="signed by nobody whom this client trusts"),
        ):
            client.score(ONE, timeout=20)
        assert [m["authorization"] for m in server.metadata] == ["Bearer t"]


def test_a_server_without_tls_is_named(ask, certificate):
    with ToyServer() as server:
        with pytest.raises(NoTlsError) as raised:
            ask(
                server.target, "score", ONE,
                client={"root_certificates": certificate[1]}, timeout=20,
            )  # fmt: skip
        # Waiting would not help either.
        with ScoringClient(server.target, root_certificates=certificate[1]) as client:
            began = time.monotonic()
            with pytest.raises(NoTlsError):
                client.wait_ready(60)
            assert time.monotonic() - began < 30
    port = server.target.rpartition(":")[2]
    assert re.search(rf"the server at \S+:{port} speaks no TLS: connect without", str(raised.value))
    assert not raised.value.retryable
    assert isinstance(raised.value, UnavailableError)


PUBLIC = "trainer.example.org:50051"


@pytest.mark.parametrize("make", [ScoringClient, AsyncScoringClient, AdminClient, AsyncAdminClient])
def test_no_token_leaves_the_machine_in_plain_text(make):
    with pytest.raises(ValueError, match=r"in plain text to trainer.example.org.*service mesh"):
        make(PUBLIC, token="secret")
    with pytest.raises(ValueError, match="plain text"):
        make("ipv4:127.0.0.1:1,10.0.0.2:1", token="secret")
    make(PUBLIC)
    make(PUBLIC, token="secret", tls=True)
    make(PUBLIC, token="secret", root_certificates=b"any")
    make(PUBLIC, token="secret", allow_plaintext_token=True)
    for local in ("localhost:1", "127.0.0.1:1", "[::1]:1", "dns:///localhost:1", "unix:/tmp/s"):
        make(local, token="secret")


@pytest.mark.parametrize("make", [ScoringClient, AsyncScoringClient, AdminClient, AsyncAdminClient])
@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("http://localhost:50051", "a URL; gRPC takes host:port, such as 'localhost:50051'"),
        ("https://scoring/", "such as 'scoring:50051'"),
        ("grpcs://scoring:443/", "such as 'scoring:443'"),
        # gRPC would connect to port 34463.
        ("localhost:99999", "no port between 1 and 65535"),
        ("dns:///[::1]:0", "no port between 1 and 65535"),
        # gRPC would connect to port 443.
        ("scoring", "has no port: write 'scoring:50051'"),
        ("scoring:", "has no port: write 'scoring:50051'"),
        ("[::1]", "has no port: write '[::1]:50051'"),
        ("dns:///scoring.ns.svc", "has no port: write 'scoring.ns.svc:50051'"),
        ("dns://8.8.8.8/scoring", "has no port: write 'scoring:50051'"),
        ("ipv4:10.0.0.1:5,10.0.0.2", "has no port: write '10.0.0.2:50051'"),
        ("::1:50051", "an IPv6 address stands in brackets, as in"),
        ("a:5,b:5", "is not host:port"),
        ("scoring:http", "is not host:port"),
        ("scoring :50051", "is not host:port"),
        ("", "expected host:port"),
        (50051, "expected host:port"),
        (None, "expected host:port"),
    ],
)
def test_targets_that_are_none(make, target, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        make(target)


@pytest.mark.parametrize(
    "target",
    [
        "dns:scoring:5",
        "dns:///scoring:5",
        "dns://8.8.8.8:53/scoring:5",
        "scoring-0.scoring_x.ns.svc.cluster.local:5",
        "ipv6:[::1]:5,[::2]:6",
        "ipv6:///[::1]:5",
        # They have no port.
        "unix:relative/path",
        "unix:///tmp/s",
        "unix-abstract:name",
        "xds:///scoring",
        "google-c2p:///scoring",
    ],
)
def test_every_way_to_name_a_server_is_taken(target):
    assert checked_target(target) == target
    plain = target.startswith("scoring")
    assert full_target(target) == (f"dns:///{target}" if plain else target)


@pytest.mark.parametrize("make", [ScoringClient, AsyncScoringClient, AdminClient, AsyncAdminClient])
def test_a_token_that_no_header_can_carry(make):
    """Above all the line break at the end of a file's content."""
    with pytest.raises(ValueError, match=r"character 6 is '\\n'.*strip\(\)") as raised:
        make("localhost:1", token="secret\n")
    assert "secret" not in str(raised.value)
    for token in ("s\u00e9same", "two words", b"bytes"):
        with pytest.raises(ValueError, match="token: "):
            make("localhost:1", token=token)


def test_an_empty_token_is_none(ask):
    """As an environment gives it where the variable is set to nothing."""
    ScoringClient(PUBLIC, token="").close()
    with ToyServer() as server:
        ask(server.target, "score", ONE, client={"token": ""})
        assert "authorization" not in server.metadata[0]


@pytest.mark.parametrize("make", [ScoringClient, AsyncScoringClient, AdminClient, AsyncAdminClient])
def test_a_pickled_client_opens_connections_of_its_own(make, runner):
    """As it goes to the workers of a DataLoader that are spawned."""
    with pytest.raises(TypeError, match="credentials= cannot be pickled"):
        pickle.dumps(make("localhost:1", credentials=grpc.ssl_channel_credentials()))
    admin = make in (AdminClient, AsyncAdminClient)
    given = {"token": "secret", "channel_options": [("grpc.primary_user_agent", "a worker")]}

    def call(model):
        client = pickle.loads(pickle.dumps(make(server.target, model=model, **given)))
        assert type(client) is make
        if make in (ScoringClient, AdminClient):
            with client:
                return client.get_weights() if admin else client.score(ONE)

        async def main():
            async with client:
                return await (client.get_weights() if admin else client.score(ONE))

        return runner.run(main())

    with WeightsServer({}, version=3) if admin else ToyServer() as server:
        answer = call("toy")
        with pytest.raises(ScoringError, match="there is: toy"):
            call("another model")
    if admin:
        assert answer.version == 3
    else:
        assert_scores(answer[0][0], [1, 2], [3, 4])
    assert server.metadata[0]["authorization"] == "Bearer secret"
    assert server.metadata[0]["user-agent"].startswith("a worker ")


def test_tls_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="not both"):
        ScoringClient(credentials=grpc.ssl_channel_credentials(), root_certificates=b"x")
    with pytest.raises(OSError, match="nowhere"):
        ScoringClient(root_certificates="/nowhere.pem")
