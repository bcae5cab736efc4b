"""lm-eval's command line with our model and with its own, on a task made of local files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from scoring_client import AccessDeniedError
from scoring_client.adapters.lm_eval import ScoringServiceLM
from tests.compat.hooks import described, recorded
from tests.compat.lm_eval.local_tasks import write_tasks
from tests.e2e.served import ROOT, serving

DOCUMENTS = 120

MODEL = os.environ.get("ADAPTER_TEST_MODEL", "")
"""A folder in place of the packaged model; `make test-adapters MODEL=smollm2` sets it."""


@pytest.fixture(scope="module")
def model_path(plain: Any) -> str:
    return MODEL or plain.path


@pytest.fixture(scope="module")
def served(model_path: str) -> Any:
    with serving(model_path, "--dtype", "float32") as running:
        yield running.ready


def run(command: list[str], folder: Path) -> dict[str, dict[int, Any]]:
    """Task -> document -> what the model said of it."""
    ended = subprocess.run(
        [
            *[sys.executable, "-m", *command, "--tasks", "local_continuations,local_choices"],
            *["--include_path", str(folder / "tasks"), "--log_samples", "--batch_size", "1"],
            *["--output_path", str(folder / command[0])],
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120 if not MODEL else 900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, dict[int, Any]] = {}
    for file in (folder / command[0]).rglob("samples_*.jsonl"):
        task = "choices" if "choices" in file.name else "continuations"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[task] = {row["doc_id"]: row for row in rows}
    return found


def answers(row: dict[str, Any]) -> list[tuple[float, bool]]:
    """Log-likelihood and greediness of each request of a document."""
    flat = [each[0] if isinstance(each[0], list) else each for each in row["resps"]]
    return [(float(value), str(greedy) == "True") for value, greedy in flat]


@pytest.mark.timeout(300 if not MODEL else 1900)
def test_the_command_line_agrees_with_lm_evals_own_model(
    served: str, model_path: str, tmp_path: Path
) -> None:
    write_tasks(tmp_path / "tasks", DOCUMENTS)
    ours = run(
        [
            *["scoring_client.lm_eval_command", "--model", "scoring-service"],
            *["--model_args", f"target={served}"],
        ],
        tmp_path,
    )
    theirs = run(
        [
            *["lm_eval", "--model", "hf", "--device", "cpu"],
            *["--model_args", f"pretrained={model_path},dtype=float32"],
        ],
        tmp_path,
    )
    for task in ("continuations", "choices"):
        assert ours[task].keys() == theirs[task].keys()
        assert len(ours[task]) >= 100
        worst = 0.0
        for document, row in ours[task].items():
            expected = theirs[task][document]
            assert row["doc"] == expected["doc"]
            for (value, is_greedy), (wanted, wanted_greedy) in zip(
                answers(row), answers(expected), strict=True
            ):
                worst = max(worst, abs(value - wanted))
                assert is_greedy == wanted_greedy
            assert row.get("acc") == expected.get("acc")
        print(f"{task}: {len(ours[task])} documents, worst difference {worst:.2e}")
        assert worst < 1e-3


@pytest.fixture(scope="module")
def both(served: str, model_path: str) -> tuple[ScoringServiceLM, HFLM]:
    # Its cache for one-token continuations takes requests together that split one text at
    # different places, and then scores them with each other's rows.
    theirs = HFLM(model_path, dtype="float32", device="cpu", logits_cache=False)
    ours = ScoringServiceLM(served, prefix_token_id=theirs.prefix_token_id)
    if not MODEL:
        # SmolLM2's tokenizer has a BOS that it puts before nothing, and that no server tells of.
        assert ScoringServiceLM(served).prefix_token_id == theirs.prefix_token_id
    return ours, theirs


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=given, idx=index)
        for index, given in enumerate(arguments)
    ]


def test_edges_of_loglikelihood(both: tuple[ScoringServiceLM, HFLM]) -> None:
    """No context, spaces that move, a continuation that joins the context's last token."""
    asked = requests(
        "loglikelihood",
        ("", "import numpy as np"),
        ("import numpy as ", "np"),
        ("import num", "py as np"),
        ("for i in range", "(10):\n    print(i)"),
        ("for i in range", "("),
        ("for i in range", "("),
    )
    for (ours, greedy), (theirs, their_greedy) in zip(
        both[0].loglikelihood(asked), both[1].loglikelihood(asked), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert greedy == their_greedy


def test_rolling(both: tuple[ScoringServiceLM, HFLM]) -> None:
    text = (ROOT / "README.md").read_text()
    asked = requests("loglikelihood_rolling", (text[:2500],), ("import numpy as np",))
    ours, theirs = (model.loglikelihood_rolling(asked) for model in both)
    assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-5)


def test_windows_of_a_text_that_is_too_long(served: str, model_path: str) -> None:
    text = (ROOT / "README.md").read_text()[:800]
    asked = requests("loglikelihood_rolling", (text,))
    theirs = HFLM(model_path, dtype="float32", device="cpu", max_length=63)
    prefix = {"prefix_token_id": theirs.prefix_token_id}
    ours = ScoringServiceLM(served, max_length=64, **prefix)
    assert ours.loglikelihood_rolling(asked) != pytest.approx(
        ScoringServiceLM(served, **prefix).loglikelihood_rolling(asked), rel=1e-3
    )
    # Theirs counts the tokens that go in; the last one that is scored does not.
    assert ours.loglikelihood_rolling(asked) == pytest.approx(
        theirs.loglikelihood_rolling(asked), abs=1e-3, rel=1e-5
    )


def test_a_text_longer_than_the_model_takes(
    both: tuple[ScoringServiceLM, HFLM], model_path: str
) -> None:
    """Its tokens are counted before it is cut: no call holds all of them."""
    ours, theirs = both
    text = (ROOT / "README.md").read_text()
    while len(theirs.tok_encode(text)) <= ours.max_length:
        text += text
    asked = requests("loglikelihood_rolling", (text,))
    expected = HFLM(
        model_path,
        dtype="float32",
        device="cpu",
        max_length=ours.max_length - 1,
        prefix_token_id=ours.prefix_token_id,
    ).loglikelihood_rolling(asked)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-3, rel=1e-5)
    (answer,) = ours.generate_until(requests("generate_until", (text, {"max_gen_toks": 4})))
    assert isinstance(answer, str)


def test_generation_is_greedy_and_stops(both: tuple[ScoringServiceLM, HFLM]) -> None:
    asked = requests(
        "generate_until",
        ("import numpy as", {"until": ["\n"], "max_gen_toks": 12}),
        ("def __init__(self", {"until": ":", "max_gen_toks": 12}),
    )
    ours = both[0].generate_until(asked)
    assert ours == both[1].generate_until(
        requests(
            "generate_until",
            ("import numpy as", {"until": ["\n"], "max_gen_toks": 12}),
            ("def __init__(self", {"until": [":"], "max_gen_toks": 12}),
        )
    )
    assert all(":" not in text for text in ours[1:])


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 1.2},
        {"num_beams": 10},
        {"typical_p": 0.9},
        {"no_repeat_ngram_size": 3},
        {"eos_token_id": 7},
        {"seed": 1},
        {"top_n_sigma": 1.0},
    ],
)
def test_a_setting_that_the_server_lacks_is_refused(
    both: tuple[ScoringServiceLM, HFLM], setting: dict[str, Any]
) -> None:
    ((name, value),) = setting.items()
    asked = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False, **setting}
    with pytest.raises(ValueError, match=f"does not generate with {name}={value}"):
        both[0].generate_until(requests("generate_until", ("import", asked)))


def test_settings_that_are_switched_off(both: tuple[ScoringServiceLM, HFLM]) -> None:
    """As tasks have them: what lm-eval's own model gives to generate and what changes nothing."""
    plain = {"until": ["\n"], "max_gen_toks": 8}
    off = {
        **{"do_sample": False, "temperature": 0.0, "num_beams": 1, "repetition_penalty": 1.0},
        **{"no_repeat_ngram_size": 0, "length_penalty": 1.0, "typical_p": None},
    }
    for_both = ("import numpy as", {**plain, **off})
    ours = both[0].generate_until(requests("generate_until", for_both))
    assert ours == both[1].generate_until(requests("generate_until", for_both))
    assert ours == both[0].generate_until(requests("generate_until", ("import numpy as", plain)))


@pytest.mark.parametrize("max_gen_toks", [16, 17, 40])
def test_nothing_left_of_the_context_is_refused(served: str, max_gen_toks: int) -> None:
    """lm-eval's cut of all tokens but the last 0 leaves all of them, and of less too many."""
    model = ScoringServiceLM(served, max_length=16)
    text = "import numpy as np\n" * 8
    asked = requests("generate_until", (text, {"until": [], "max_gen_toks": max_gen_toks}))
    with pytest.raises(ValueError, match=f"max_gen_toks is {max_gen_toks}, of 16 tokens"):
        model.generate_until(asked)
    (answer,) = model.generate_until(
        requests("generate_until", (text, {"until": [], "max_gen_toks": 15}))
    )
    assert answer


def test_a_server_that_wants_a_token(model_path: str, tmp_path: Path) -> None:
    """lm-eval's own way from a text of arguments to a model; all that it hands in itself."""
    token, tokens = "t" * 48, tmp_path / "tokens"
    tokens.write_text(f"evaluation score {token}\n")
    handed_in = {"batch_size": 1, "max_batch_size": 64, "device": "cpu"}
    with serving(model_path, "--auth-tokens", str(tokens)) as running:
        target = f"target={running.ready}"
        with pytest.raises(AccessDeniedError):
            ScoringServiceLM.create_from_arg_string(target, handed_in)
        made = ScoringServiceLM.create_from_arg_string(f"{target},token={token}", handed_in)
        asked = requests("loglikelihood", ("import numpy as", " np"))
        assert made.loglikelihood(asked)[0][0] < 0


def test_a_misspelt_argument_is_refused(served: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_lenght'"):
        ScoringServiceLM.create_from_arg_string(f"target={served},max_lenght=64")


def test_the_entry_point_is_the_model_that_its_name_registers() -> None:
    """Releases that look for entry points load it so; this one has to be told by an import."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    ((name, value),) = declared["lm_eval.models"].items()
    entry = EntryPoint(name, value, "lm_eval.models")
    assert entry.load() is get_model(name) is ScoringServiceLM


def test_the_hooks_are_those_recorded() -> None:
    hooks = recorded("lm_eval")
    assert LM.__abstractmethods__ == hooks.keys()
    for name, parameters in hooks.items():
        assert described(getattr(LM, name)) == parameters, name
