"""`scoring-client compare` on a real server in float32, with each mistake made on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scoring_client.cli.app import main
from scoring_client.comparison.agreement import Distance, distance
from scoring_client.comparison.diagnosis import explain
from scoring_client.comparison.plain_model import PlainModel
from scoring_client.comparison.texts import DEFAULT_TEXTS, read_texts
from scoring_client.errors import InvalidRequestError
from scoring_service.models import tiny_model_path

TINY = str(tiny_model_path())
BOS = 0

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(target: str, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, Any]:
        status = main(["compare", "--target", target, "--json", *arguments])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else err

    return run


@pytest.fixture(scope="module")
def network() -> Any:
    """Plain transformers in float32, without a line of ours."""
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def half() -> Any:
    """The same in bfloat16: what a trainer runs."""
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def single() -> PlainModel:
    """Ours, in float32."""
    return PlainModel(TINY, "float32")


@cache
def tokens() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return [tokenizer(text)["input_ids"] for text in DEFAULT_TEXTS]


def truth(network: Any, ids: list[int], temperature: float = 1.0) -> np.ndarray:
    """float64 [len(ids) - 1]: of tokens 1, 2, …"""
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    rows = (logits / temperature).log_softmax(1)
    return rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def written(path: Path, texts: list[list[int]], own: list[list[float | None]]) -> str:
    """A file for --file."""
    lines = [
        json.dumps({"token_ids": ids, "logprobs": values})
        for ids, values in zip(texts, own, strict=True)
    ]
    path.write_text("\n".join(lines))
    return str(path)


def test_the_same_model(run: Run, network: Any, tmp_path: Path) -> None:
    """The figures are those of transformers; a trainer's right log-probs are found right."""
    texts = tokens()
    own = [[None, *truth(network, ids).tolist()] for ids in texts]
    status, found = run("-c", TINY, "--file", written(tmp_path / "ids.jsonl", texts, own))
    assert status == 0
    compared = found["comparison"]
    assert (compared["dtype"], compared["wider"]) == ("float32", "float64")
    double = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64).eval()
    apart = np.concatenate([truth(network, ids) - truth(double, ids) for ids in texts])
    given = compared["given"]
    assert given["tokens"] == len(apart) == sum(len(ids) - 1 for ids in texts)
    assert given["max"] == pytest.approx(abs(apart).max(), rel=1e-4)
    assert given["mean"] == pytest.approx(abs(apart).mean(), rel=1e-4)
    assert 0 < compared["server"]["truth"]["mean"] < 1e-4
    assert compared["own"]["truth"] == pytest.approx(given, rel=1e-6)
    assert compared["own"]["plain"]["max"] < 1e-12
    assert ["within what float32 gives" in line for line in found["verdicts"]] == [True, True]
    assert found["notes"] == []


def test_another_type_than_the_servers(run: Run, network: Any, half: Any, tmp_path: Path) -> None:
    """A trainer in bfloat16 is what bfloat16 gives, and the server is better than it has to be."""
    texts = tokens()
    own = [[None, *truth(half, ids).tolist()] for ids in texts]
    file = written(tmp_path / "ids.jsonl", texts, own)
    status, found = run("-c", TINY, "--dtype", "bfloat16", "--file", file)
    assert status == 0
    assert found["notes"] == ["the server's body runs in float32, not in bfloat16"]
    compared = found["comparison"]
    assert compared["wider"] == "float32"
    apart = np.concatenate([truth(half, ids) - truth(network, ids) for ids in texts])
    assert compared["given"]["mean"] == pytest.approx(abs(apart).mean(), rel=1e-4)
    assert compared["given"]["k3"] == pytest.approx((np.exp(apart) - 1 - apart).mean(), rel=1e-4)
    assert compared["server"]["truth"]["mean"] < compared["given"]["mean"] / 10
    # Held to float32, the same numbers are too far away, and no mistake explains rounding.
    status, found = run("-c", TINY, "--file", file)
    assert status == 1
    assert "within what float32 gives" in found["verdicts"][0]
    assert found["comparison"]["own"]["mistake"] is None


def test_other_weights(run: Run, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weight in other.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "other")
    status, found = run("-c", str(tmp_path / "other"))
    assert status == 1
    assert found["comparison"]["server"]["mistake"] is None
    (verdict,) = found["verdicts"]
    assert "other weights, as it seems (the server answers from version 0" in verdict


MISTAKES = {
    "entry i holds the log-prob of token i + 1": lambda say, ids: [*say(ids)[1:], None],
    "entry i holds the log-prob of token i - 1": lambda say, ids: [None, *say(ids)[:-1]],
    "BOS doubled": lambda say, ids: say([BOS, *ids])[1:],
    "BOS missing": lambda say, ids: [None, *say(ids[1:])],
    "computed at about 0.7,": lambda say, ids: say(ids, 0.7),
    "computed at about 1.3,": lambda say, ids: say(ids, 1.3),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_ones_own(network: Any, half: Any, single: PlainModel, mistake: str) -> None:
    """In a trainer that runs in bfloat16, so that the mistake hides behind its rounding."""
    texts = tokens()
    wrong = [
        MISTAKES[mistake](lambda ids, t=1.0: truth(half, ids, t).tolist(), ids) for ids in texts
    ]
    found = [np.array([np.nan if v is None else v for v in values], float) for values in wrong]
    right = [truth(network, ids) for ids in texts]
    given = distance([truth(half, ids) for ids in texts], right)
    assert not distance(found, right).is_within(given)
    said = explain(found, texts, single, given, BOS)
    assert said is not None
    assert mistake in said


def test_the_mistake_is_said(run: Run, network: Any, tmp_path: Path) -> None:
    texts = tokens()
    own = [[None, *truth(network, [BOS, *ids]).tolist()[1:]] for ids in texts]
    status, found = run("-c", TINY, "--file", written(tmp_path / "ids.jsonl", texts, own))
    assert status == 1
    server, yours = found["verdicts"]
    assert "within what float32 gives" in server
    assert yours.startswith("Your log-probs differ: BOS doubled: computed with the beginning-of-")


def test_bos_that_a_text_does_not_have(network: Any, single: PlainModel) -> None:
    texts = [ids[1:] for ids in tokens()]
    found = [truth(network, [BOS, *ids])[1:] for ids in texts]
    mistake = explain(found, texts, single, Distance(1e-5, 1e-6, 0.0, 1), BOS)
    assert mistake is not None
    assert "BOS added: computed after a beginning-of-sequence token (0)" in mistake
    assert explain([found[0][:3]], [texts[0][:4]], single, Distance(0, 0, 0, 1), BOS) is None


def test_text_and_what_its_tokens_are(run: Run, tmp_path: Path) -> None:
    """A tokenizer here that adds no BOS, where the server's does."""
    tokenizer = json.loads((tiny_model_path() / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    for file in tiny_model_path().iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, found = run("-c", str(tmp_path), "import numpy as np\nimport scipy.stats")
    assert status == 0
    (note,) = found["notes"]
    assert "the server begins the text" in note
    assert "with token 0, your tokenizer does not" in note


def test_what_people_see(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--target", target, "-c", TINY]) == 0
    out = capsys.readouterr().out
    assert "plain float32 from plain float64" in out
    assert out.splitlines()[-1].startswith("The server's log-probs are within what float32 gives")
    assert main(["compare", "--target", target, "-c", TINY, "x", "--file", "ids.jsonl"]) == 2
    assert "give texts or --file, not both" in capsys.readouterr().err
    assert main(["compare", "--target", target, "-c", "/nowhere/at/all"]) == 2
    assert "--checkpoint /nowhere/at/all: no folder, .gguf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "at least two token ids"),
        ('{"token_ids": [1, 2], "logprobs": [null]}', "1 log-probs for 2 tokens"),
        ('{"ids": [1, 2]}', "unknown key 'ids'"),
        ("{", "line 2"),
        ('{"token_ids": [1, 2], "logprobs": [null, -1.5]}', "in every line, or in none"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text(f"[1, 2, 3]\n{line}\n")
    with pytest.raises(InvalidRequestError, match=said):
        read_texts(path)


def test_a_distance() -> None:
    apart = distance([np.array([1.0, np.nan]), np.array([0.5])], [np.zeros(2), np.zeros(1)])
    assert (apart.max, apart.mean, apart.tokens) == (1.0, 0.75, 2)
    assert apart.k3 == pytest.approx(np.mean([np.e - 2, np.exp(0.5) - 1.5]))
    assert not distance([], []).is_within(Distance(9, 9, 9, 9)), "nothing was compared"
    with pytest.raises(ValueError, match="text 0"):
        distance([np.zeros(2)], [np.zeros(3)])
