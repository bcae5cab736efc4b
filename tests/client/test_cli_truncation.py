"""What the command line shows of truncation, where it was asked for."""

import json

import pytest

from scoring_client.cli.app import main
from tests.client import toy_model
from tests.client.toy_server import ToyServer

KEPT = 40
SCORE = ("score", "--prompt", "ab", "--completion", "cd")
TOPK = ("topk", "--prompt", "ab")
CONTEXT = [toy_model.BOS, 97, 98]


@pytest.fixture
def run(monkeypatch, capsys):
    with ToyServer() as server:
        monkeypatch.setenv("SCORING_TARGET", server.target)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.delenv("FORCE_COLOR", raising=False)

        def run(*arguments):
            assert main(arguments) == 0
            return capsys.readouterr()

        yield run


def processed(context, token):
    row = toy_model.row(context)
    kept = row.support(KEPT)[token]
    return float(row.logprobs_V[token] - row.log_kept_mass(KEPT)) if kept else float("-inf")


def test_scores_after_truncation(run):
    expected = [processed(CONTEXT, 99), processed([*CONTEXT, 99], 100)]
    out, _ = run(*SCORE, "--top-k", str(KEPT))
    assert "after truncation" in out
    rows = [line for line in out.splitlines() if line.startswith(("│   0 ", "│   1 "))]
    assert [line.split("│")[-2].strip() for line in rows] == [f"{v:.3f}" for v in expected]
    answer = json.loads(run(*SCORE, "--top-k", str(KEPT), "--json").out)
    shown = answer["completions"][0]["processed_logprobs"]
    assert [float(value) for value in shown] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "option",
    [("--top-p", "0.9"), ("--min-p", "0.1"), ("--top-k", "5"), ("--defaults", "model")],
)
def test_every_option_that_truncates_shows_it(run, option):
    assert "after truncation" in run(*SCORE, *option).out
    assert "truncation keeps" in run(*TOPK, *option).out
    assert "kept" in run(*TOPK, "--completion", "cd", *option).out


def test_nothing_is_said_where_nothing_is_truncated(run):
    assert "truncation" not in run(*SCORE, "--temperature", "2").out
    assert "truncation" not in run(*TOPK).out
    assert "kept" not in run(*TOPK, "--completion", "cd").out
    assert json.loads(run(*SCORE, "--json").out)["completions"][0]["processed_logprobs"] is None


def test_topk_says_how_many_tokens_are_kept(run):
    size = int(toy_model.row(CONTEXT).support(KEPT).sum())
    assert f"truncation keeps {size} tokens" in run(*TOPK, "--top-k", str(KEPT)).out
    out = run(*TOPK, "--completion", "c", "--top-k", str(KEPT)).out
    (row,) = [line for line in out.splitlines() if line.startswith("│   0 ")]
    assert row.split("│")[-2].strip() == str(size)


def test_topk_tells_its_k_from_truncation(run):
    hint = "-k is how many tokens are listed (10); --top-k truncates"
    assert hint in run(*TOPK, "--top-k", "5").err
    assert run(*TOPK, "--top-k", "5", "-k", "3").err == ""
    assert run(*TOPK, "-k", "3").err == ""
