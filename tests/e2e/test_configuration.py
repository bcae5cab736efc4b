"""Flag over environment over file over default; mistakes named without a traceback."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import socket
import subprocess
import urllib.error
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from scoring_client.proto import model_info_pb2
from scoring_service import cli
from scoring_service.config import _RANGES, ServeConfig, check_ranges
from scoring_service.plan.command import PlanConfig
from scoring_service.rpc.models import RequestLimits
from scoring_service.rpc.server import ServerConfig, _options
from scoring_service.serve import serve
from scoring_service.unknown_variables import warnings_of
from tests.e2e.calls import score_request, scores, stub_of
from tests.e2e.served import BIN, serving

FILES = {
    "toml": "max_model_len = 111\nweight_version = 1\nserved_model_name = 'from-file'\n",
    "yaml": "max_model_len: 111\nweight_version: 1\nserved_model_name: from-file\n",
    "json": json.dumps(
        {"max_model_len": 111, "weight_version": 1, "served_model_name": "from-file"}
    ),
}


ENVIRONMENT = {"SCORING_WEIGHT_VERSION": "2", "SCORING_SERVED_MODEL_NAME": "from-environment"}


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(FILES["toml"])
    env = ENVIRONMENT
    arguments = ("--config", str(file), "--served-model-name", "from-flag")
    with serving(*arguments, env=env) as server, stub_of(server.ready) as stub:
        info = stub.GetModelInfo(model_info_pb2.GetModelInfoRequest(), timeout=30)
    assert info.name == "from-flag"
    assert info.weight_version == 2
    assert info.limits.max_sequence_tokens == 111
    assert info.limits.max_k == info.vocab_size


def test_an_operator_may_refuse_calls_that_would_go_before_all_turns() -> None:
    request = score_request([1], [2, 3])
    with serving("--max-priority", "0") as server, stub_of(server.ready) as stub:
        for priority in (0, -100):
            request.context.priority = priority
            assert list(stub.Score(request, timeout=30))[-1].summary.items_ok == 1
        request.context.priority = 1
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Score(request, timeout=30))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "context.priority: 1 is not in [-100, 0]"


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_says_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"serve.{kind}"
    file.write_text(FILES[kind])
    run: list[ServeConfig] = []

    async def serve(_model: str | None, config: ServeConfig) -> int:
        run.append(config)
        return 0

    monkeypatch.setattr(cli, "run_server", serve)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="0"):
        cli.launch("serve", "--served-model-name", "from-flag", config=file)
    expected = ServeConfig(max_model_len=111, weight_version=2, served_model_name="from-flag")
    assert run == [expected]


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    return subprocess.run(
        [BIN / "scoring-service", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"SCORING_PORT": "0", **os.environ, **env},
    )


def assert_named(ended: subprocess.CompletedProcess[str], *names: str) -> None:
    """It ended with an error for people, which names what is wrong."""
    written = ended.stdout + ended.stderr
    assert ended.returncode in (1, 2)
    assert all(name in written for name in names), written
    assert "Traceback" not in written


def compact(text: str) -> str:
    """What was written in a frame that breaks long words over lines, without frame and blanks."""
    return re.sub(r"[\s│╭╮╰╯─]+", "", text)


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """The command in this process, with settings that are refused before there is a server."""

    async def never(_model: str | None, _config: ServeConfig) -> int:
        raise AssertionError("the settings were taken")

    def refused(*arguments: str, named: str, **env: str) -> None:
        monkeypatch.setattr(cli, "run_server", never)
        # The command leaves its sources of settings there.
        monkeypatch.setattr(cli.app, "config", cli.app.config)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(cli.app.meta(["serve", *arguments]))
        written = "".join(capsys.readouterr())
        assert ended.value.code in (1, 2)
        assert compact(named) in compact(written)
        assert "Traceback" not in written

    return refused


MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing folder": (["./no/such/folder"], "no/such/folder"),
    "missing gguf": (["no-such.gguf"], "no-such.gguf"),
    "too long": (["--max-model-len", "100000"], "4096"),
    "unknown flag": (["--max-modle-len", "10"], "max-modle-len"),
    "device": (["--device", "cuda:77"], "cuda:77"),
    "address": (["--host", "192.0.2.1", "--allow-insecure"], "cannot listen on 192.0.2.1:0"),
    "exposed": (["--host", "0.0.0.0"], "0.0.0.0 can be reached by others"),
    "key alone": (["--tls-key", "key.pem"], "tls_certificate and tls_key go together"),
    "no token": (["--auth-tokens", "/dev/null"], "/dev/null holds no token"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_without_a_traceback(case: str) -> None:
    arguments, named = MISTAKES[case]
    assert_named(run(*arguments), named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["one", "two"], "two"),
        (["--dtype", "float8"], "float8"),
        (["--max-model-len", "-3"], "max_model_len must be from 1"),
        (["--port", "70000"], "65535"),
        (["--port", "http"], "http"),
        (["--drain-seconds", "nan"], "drain_seconds"),
        (["--max-connection-age", "inf"], "max_connection_age must be from 1 to"),
        (["--max-connection-age", "1e7"], "max_connection_age must be from 1 to"),
        (["--config", "no-such.toml"], "no-such.toml"),
    ],
)
def test_a_mistake_in_the_flags_is_named(
    refuse: Callable[..., None], arguments: list[str], named: str
) -> None:
    refuse(*arguments, named=named)


async def test_the_largest_settings_are_such_that_grpc_takes_them() -> None:
    config = ServeConfig(**{name: bounds[1] for name, bounds in _RANGES.items() if "max" in name})
    check_ranges(config)
    options = _options(
        ServerConfig(
            "127.0.0.1",
            0,
            RequestLimits(config.max_request_bytes, 1, 1),
            drain_seconds=0,
            max_concurrent_streams=config.max_concurrent_streams,
            max_connection_age=config.max_connection_age,
            keepalive_seconds=_RANGES["keepalive_seconds"][1],
        ),
        config.max_request_bytes,
    )
    grpc.aio.server(options=options, maximum_concurrent_rpcs=config.max_concurrent_calls)


@pytest.mark.parametrize("model", ["./no/such/folder", "no-such.gguf"])
def test_a_model_that_is_not_there_is_told_before_a_worker_is_started(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which takes as long as the import of torch."""

    def never(_channel: socket.socket) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("scoring_service.pool.workers.process._spawn", never)
    assert asyncio.run(serve(model, ServeConfig(port=0))) == 1
    assert re.fullmatch(rf"error: there is no (folder|file) {model}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("SCORING_PORT", "tcp://10.0.0.1:50051", "SCORING_PORT"),
        ("SCORING_LOG_LEVEL", "loud", "SCORING_LOG_LEVEL"),
        ("SCORING_MAX_K", "0", "max_k"),
        ("SCORING_CONFIG", "no-such.yaml", "no-such.yaml"),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    refuse: Callable[..., None], name: str, value: str, named: str
) -> None:
    refuse(named=named, **{name: value})


def test_a_typo_in_the_environment_is_warned_of() -> None:
    """No refusal: others name variables so, too. Its value may be a secret."""
    ended = run("no-such.gguf", SCORING_MAX_MODLE_LEN="535", SCORING_COLOUR="blue")
    assert ended.stderr == (
        "warning: SCORING_COLOUR is no setting and is ignored.\n"
        "warning: SCORING_MAX_MODLE_LEN is no setting and is ignored. "
        "Did you mean SCORING_MAX_MODEL_LEN?\n"
        "error: there is no file no-such.gguf\n"
    )


SERVICE_LINKS = {
    name.replace("NAME", service): value
    for service in ("SCORING", "SCORING_SERVICE", "SCORING_SCORING_SERVICE_QWEN3_8B_HEADLESS")
    for name, value in {
        "NAME_SERVICE_HOST": "10.0.0.1",
        "NAME_SERVICE_PORT": "50051",
        "NAME_SERVICE_PORT_GRPC": "50051",
        "NAME_PORT": "tcp://10.0.0.1:50051",
        "NAME_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "NAME_PORT_50051_TCP_PROTO": "tcp",
        "NAME_PORT_50051_TCP_PORT": "50051",
        "NAME_PORT_50051_TCP_ADDR": "10.0.0.1",
    }.items()
}
"""What Kubernetes sets in a pod for three Services of its namespace."""


def test_variables_of_others_are_not_warned_of() -> None:
    settings = {
        f"SCORING_{field.name.upper()}"
        for config in (ServeConfig, PlanConfig)
        for field in dataclasses.fields(config)
    }
    own = {*settings, "SCORING_MODEL", "SCORING_CONFIG", "SCORING_TARGET", "SCORING_TOKEN"}
    others = dict.fromkeys({*own, "SCORING_TLS", "HF_TOKEN", "XSCORING_PORT"}, "1")
    assert list(warnings_of({**SERVICE_LINKS, **others}, cli._VARIABLES)) == []
    # Not all that ends so is a link.
    (warned,) = warnings_of({"SCORING_METRIC_PORT": "9464"}, cli._VARIABLES)
    assert warned.endswith("Did you mean SCORING_METRICS_PORT?")


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("serve.toml", "max_modle_len = 10", "max_modle_len"),
        ("serve.yaml", "max_modle_len: 10", "max_modle_len"),
        ("serve.json", '{"max_modle_len": 10}', "max_modle_len"),
        ("serve.toml", "max_model_len = 'long'", "long"),
        ("serve.yaml", "max_model_len: -1", "max_model_len must be from 1"),
        ("serve.toml", "[[", "serve.toml"),
        ("serve.json", "{", "serve.json"),
        ("serve.yaml", "- max_model_len", "serve.yaml"),
        ("serve.ini", "max_model_len = 10", "serve.ini"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    refuse: Callable[..., None], tmp_path: Path, file: str, text: str, named: str
) -> None:
    path = tmp_path / file
    path.write_text(text)
    refuse("--config", str(path), named=named)


def test_a_model_may_be_named_in_the_file_and_in_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("model: ./no/such/folder")
    assert_named(run("--config", str(path)), "no/such/folder")
    assert_named(run(SCORING_MODEL="./no/such/folder"), "no/such/folder")


@pytest.mark.parametrize(
    "flags", [["--port"], ["--port", "0", "--health-port"], ["--port", "0", "--metrics-port"]]
)
def test_a_port_in_use_is_named(flags: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run(*flags, port)
    assert ended.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_metrics_may_have_an_address_of_their_own() -> None:
    flags = ("--metrics-port", "0", "--metrics-host", "127.0.0.2")
    with serving(*flags, metrics_host="127.0.0.2") as server:
        assert "scoring_worker_ready" in server.metrics
        server.metrics_host = None  # where it listens
        with pytest.raises(urllib.error.URLError):
            _ = server.metrics


def test_the_hub_token_is_never_printed() -> None:
    secret = "hf_" + os.urandom(12).hex()
    with serving("--log-level", "debug", env={"HF_TOKEN": secret}) as server:
        with stub_of(server.ready) as stub:
            assert scores(stub)
        assert server.end() == 0
        assert server.out
        assert secret not in "".join(server.out + server.err)


def test_the_hub_token_is_not_printed_for_a_model_that_cannot_be_had() -> None:
    secret = "hf_" + os.urandom(12).hex()
    ended = run(
        "no-such-owner/no-such-model", "--log-level", "debug", HF_TOKEN=secret, HF_HUB_OFFLINE="1"
    )
    assert_named(ended, "error: cannot load the model 'no-such-owner/no-such-model'")
    assert secret not in ended.stdout + ended.stderr
