"""Flag over environment over file over default; mistakes named without a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from scoring_client.proto import model_info_pb2
from tests.e2e.served import BIN, serving, stub_of

FILES = {
    "toml": "max_model_len = 111\nweight_version = 1\nserved_model_name = 'from-file'\n",
    "yaml": "max_model_len: 111\nweight_version: 1\nserved_model_name: from-file\n",
    "json": json.dumps(
        {"max_model_len": 111, "weight_version": 1, "served_model_name": "from-file"}
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_flag_over_environment_over_file_over_default(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"serve.{kind}"
    file.write_text(FILES[kind])
    env = {"SCORING_WEIGHT_VERSION": "2", "SCORING_SERVED_MODEL_NAME": "from-environment"}
    arguments = ("--config", str(file), "--served-model-name", "from-flag")
    with serving(*arguments, env=env) as server, stub_of(server.ready) as stub:
        info = stub.GetModelInfo(model_info_pb2.GetModelInfoRequest(), timeout=30)
    assert info.name == "from-flag"
    assert info.weight_version == 2
    assert info.limits.max_sequence_tokens == 111
    assert info.limits.max_k == info.vocab_size


def run(*arguments: str, port: str = "0") -> subprocess.CompletedProcess[str]:
    command = [BIN / "scoring-service", "serve", "--port", port, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing folder": (["./no/such/folder"], "no/such/folder"),
    "missing gguf": (["no-such.gguf"], "no-such.gguf"),
    "dtype": (["--dtype", "float8"], "float8"),
    "too long": (["--max-model-len", "100000"], "4096"),
    "unknown flag": (["--max-modle-len", "10"], "max-modle-len"),
    "missing file": (["--config", "no-such.toml"], "no-such.toml"),
    "device": (["--device", "cuda:77"], "cuda:77"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_without_a_traceback(case: str) -> None:
    arguments, named = MISTAKES[case]
    ended = run(*arguments)
    assert ended.returncode not in (0, None)
    assert named in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("max_modle_len = 10\n")
    ended = run("--config", str(file))
    assert ended.returncode != 0
    assert "modle" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run(port=port)
    assert ended.returncode == 1
    assert port in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_hub_token_is_never_printed() -> None:
    secret = "hf_" + os.urandom(12).hex()
    with serving("--log-level", "debug", env={"HF_TOKEN": secret}) as server:
        assert server.ready
        assert server.end() == 0
        assert secret not in "".join(server.out + server.err)
