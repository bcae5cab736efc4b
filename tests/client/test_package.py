"""The package as a whole: light to import, and its two clients are twins."""

import inspect
import pickle
import subprocess
import sys
from importlib import metadata
from typing import get_args, get_type_hints

import pytest

import scoring_client
from scoring_client import (
    AdminClient,
    AsyncAdminClient,
    AsyncScoringClient,
    ScoringClient,
    command,
    lm_eval_command,
)
from scoring_client.cli import app
from scoring_client.values.options import SampleOptions, ScoreOptions, TopKOptions
from tests.client.toy_server import ToyServer


def test_importing_the_client_imports_nothing_heavy():
    heavy = {"torch", "rich", "cyclopts", "scoring_service", "tokenizers", "transformers"}
    heavy |= {"lm_eval", "tinker", "trl", "verl"}
    code = f"import sys, scoring_client; sys.exit(str({heavy!r} & sys.modules.keys() or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    # The check itself: what is imported is found.
    found = subprocess.run(
        [sys.executable, "-c", code.replace("scoring_client;", "scoring_client, rich;")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "rich" in found.stderr


def test_lm_evals_command_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(lm_eval_command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install 'lm-eval"):
        lm_eval_command.main()


def test_the_command_says_what_it_needs(monkeypatch):
    real = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "rich" else real(name)
    )
    with pytest.raises(SystemExit, match=r"^scoring-client needs rich: pip install '\.\[cli\]'"):
        command.main()


def test_the_command_ends_with_the_status_of_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scoring-client", "topk"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "give a prompt" in capsys.readouterr().err


def test_the_types_of_arguments_are_there_for_whoever_annotates_a_wrapper():
    groups = get_type_hints(ScoringClient.score, include_extras=True)["groups"]
    prompts = get_type_hints(ScoringClient.sample, include_extras=True)["prompts"]
    assert get_args(groups) == (scoring_client.GroupLike,)
    assert get_args(prompts) == (scoring_client.PromptLike,)


def public_methods(cls):
    return {
        name: function
        for name, function in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("one", "other"), [(ScoringClient, AsyncScoringClient), (AdminClient, AsyncAdminClient)]
)
def test_the_clients_are_twins(one, other):
    blocking, asynchronous = public_methods(one), public_methods(other)
    assert blocking.keys() == asynchronous.keys()
    for name, function in blocking.items():
        ours = inspect.signature(function).parameters
        theirs = inspect.signature(asynchronous[name]).parameters
        assert list(ours.values()) == list(theirs.values()), name
        is_iterator = name.endswith(("_iter", "_slices"))
        assert inspect.iscoroutinefunction(asynchronous[name]) is not is_iterator, name
    assert list(inspect.signature(one).parameters) == list(inspect.signature(other).parameters)


def test_docstrings_name_every_option():
    for method, options in (
        (ScoringClient.score, ScoreOptions),
        (ScoringClient.topk_logprobs, TopKOptions),
        (ScoringClient.sample, SampleOptions),
    ):
        documented = f"{method.__doc__} {ScoringClient.score.__doc__}"
        for name in options.__required_keys__ | options.__optional_keys__:
            assert f"``{name}``" in documented, (method.__name__, name)


def test_the_version_is_that_of_the_distribution(capsys):
    assert scoring_client.__version__ == metadata.version("scoring-service")
    with pytest.raises(AttributeError, match="no attribute 'versoin'"):
        _ = scoring_client.versoin
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("scoring-service")


@pytest.mark.parametrize("package", ["scoring_client", "scoring_service"])
def test_a_package_is_a_command(package):
    command = [sys.executable, "-m", package, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == metadata.version("scoring-service")


def test_all_names_exist():
    for name in scoring_client.__all__:
        assert getattr(scoring_client, name) is not None


def test_results_travel_between_processes():
    with ToyServer() as server, ScoringClient(server.target) as client:
        scores = client.topk_logprobs(
            [([1], [[2, 3], [999]])], 3, on_error="return", next_token=True
        )
        samples = client.sample([[1]], max_tokens=3)
        info = client.model_info()
    again = pickle.loads(pickle.dumps(scores))
    assert again[0][0].logprobs.tolist() == scores[0][0].logprobs.tolist()
    assert (
        again[0][0].next_token.top_logprobs.tolist()
        == scores[0][0].next_token.top_logprobs.tolist()
    )
    assert again[0][0].processing == scores[0][0].processing
    assert str(again[0][1].error) == str(scores[0][1].error)
    assert pickle.loads(pickle.dumps(samples))[0][0].seed == samples[0][0].seed
    assert pickle.loads(pickle.dumps(info)) == info


def test_results_cannot_be_changed():
    with ToyServer() as server, ScoringClient(server.target) as client:
        results = client.score([([1], [[2, 3]])])
    with pytest.raises(AttributeError):
        results[0][0].logprobs = None
    with pytest.raises(AttributeError):
        results.groups = ()


def test_model_info():
    with ToyServer() as server, ScoringClient(server.target) as client:
        info = client.model_info("toy")
        (model,) = client.list_models()
    assert (model.name, model.ready) == ("toy", True)
    assert info.vocab_size == 258
    assert info.eos_token_ids == (257,)
    assert info.bos_token_id == 256
    assert info.path == "plain"
    assert info.limits.max_k == 258
    assert info.generation_config == {"top_k": 20, "temperature": 0.6, "do_sample": True}
    assert isinstance(info.generation_config["top_k"], int)
    with ToyServer(bos=False) as server, ScoringClient(server.target) as client:
        assert client.model_info().bos_token_id is None
