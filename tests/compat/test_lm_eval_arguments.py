"""What lm-eval's model takes of ``--model_args``, where lm-eval is not installed.

In its place stand the few names that the adapter imports. The real package is in
tests/compat/lm_eval.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from scoring_client import AccessDeniedError, DeadlineError, Expect, PreconditionFailedError
from scoring_service.models import tiny_model_path
from tests.compat.conftest import Plain
from tests.e2e.served import serving
from tests.rpc.authorities import Authority, write_pair

LM_EVAL = {
    "__init__": "",
    "api/__init__": "",
    "api/instance": "class Instance: ...\n",
    "api/model": "class LM: ...\n",
    "api/registry": "def register_model(name):\n    return lambda cls: cls\n",
    "models/__init__": "",
    "models/utils": "def maybe_truncate(): ...\ndef normalize_gen_kwargs(): ...\n",
}
OF_LM_EVAL = {"batch_size": 1, "max_batch_size": 64, "device": "cpu", "trust_remote_code": True}
"""What lm-eval hands in itself, the last where the option is given."""
ADAPTER = "scoring_client.adapters.lm_eval"
TOKEN = "t" * 48


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The adapter's class."""
    for name, text in LM_EVAL.items():
        path = tmp_path / "lm_eval" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = {name: module for name, module in sys.modules.items() if name.startswith("lm_eval")}
    for name in (*before, ADAPTER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        yield importlib.import_module(ADAPTER).ScoringServiceLM
    finally:
        for name in [n for n in sys.modules if n.startswith("lm_eval") or n == ADAPTER]:
            del sys.modules[name]


@dataclass
class Request:
    args: tuple[str, str]


@dataclass
class Secured:
    """A server with mutual TLS and a token, and how to be let in."""

    target: str
    arguments: dict[str, Any]
    """All but the token."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority()
    certificate, key = authority.server_files(folder / "server")
    own_certificate, own_key = write_pair(authority.issue("trainer"), folder)
    ca, tokens = folder / "ca.pem", folder / "tokens"
    ca.write_bytes(authority.pem)
    tokens.write_text(f"trainer score {TOKEN}\n")
    files = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    clients = ("--tls-client-ca", str(ca), "--auth-tokens", str(tokens), "--health-port", "0")
    with serving("--dtype", "float32", *files, *clients) as running:
        port = running.ready.rpartition(":")[2]
        # Text, as they come from a command line.
        arguments = {
            "root_certificates": str(ca),
            "client_certificate": str(own_certificate),
            "client_key": str(own_key),
        }
        yield Secured(f"localhost:{port}", arguments)


def loglikelihood(model: Any, **arguments: Any) -> float:
    made = model(**arguments, **OF_LM_EVAL)
    ((logprob, _),) = made.loglikelihood([Request(("import numpy", " as np"))])
    return logprob


@pytest.mark.parametrize("place", ["argument", "environment"])
def test_a_server_with_tls_and_tokens(
    model: Any, secured: Secured, plain: Plain, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    ids, context = (tokenizer.encode(text) for text in ("import numpy as np", "import numpy"))
    expected = plain.realised(ids)[len(context) - 1 :].sum().item()
    token = {"token": TOKEN} if place == "argument" else {}
    monkeypatch.setenv("SCORING_TOKEN", "another" if token else TOKEN)
    found = loglikelihood(model, target=secured.target, **secured.arguments, **token)
    assert found == pytest.approx(expected, abs=1e-4)


def test_no_token(model: Any, secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORING_TOKEN", raising=False)
    with pytest.raises(AccessDeniedError):
        loglikelihood(model, target=secured.target, **secured.arguments)


def test_a_token_does_not_travel_in_plain_text(model: Any) -> None:
    with pytest.raises(ValueError, match="the token would travel in plain text to teacher:1"):
        model(target="teacher:1", token=TOKEN)


def test_a_misspelt_argument_is_refused(model: Any, target: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'tokn'"):
        model(target=target, tokn=TOKEN)


def test_the_timeout_is_that_of_the_calls(model: Any, target: str) -> None:
    made = model(target=target, timeout=1e-6)
    with pytest.raises(DeadlineError):
        made.loglikelihood([Request(("import numpy", " as np"))])


def test_an_expectation_holds_for_every_call(model: Any, target: str) -> None:
    made = model(target=target, expect=Expect(weight_version=99))
    with pytest.raises(PreconditionFailedError, match="weight_version is 99"):
        made.loglikelihood([Request(("import numpy", " as np"))])


def test_chat_templates_are_refused_in_words(model: Any, target: str) -> None:
    """Of the two, lm-eval asks for the tokenizer's name first."""
    made = model(target=target)
    with pytest.raises(ValueError, match="run without --apply_chat_template"):
        print(made.tokenizer_name)
    with pytest.raises(ValueError, match="run without --apply_chat_template"):
        made.apply_chat_template([{"role": "user", "content": "?"}])
