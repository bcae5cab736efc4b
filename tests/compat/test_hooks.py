"""The adapters as their frameworks call them, where the frameworks are not installed.

Signatures against those recorded from the real packages; numbers against plain transformers. The
tests in the folders beside this file hold the record to the real packages.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import math
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scoring_client.adapters
from scoring_client import AsyncScoringClient, InvalidRequestError, ScoringClient
from scoring_client.adapters.prime_rl import TeacherPool
from scoring_client.adapters.trl import TeacherClient, as_teacher
from scoring_client.adapters.verl import TeacherManager
from tests.compat.conftest import Plain, texts
from tests.compat.hooks import recorded, written
from tests.e2e.served import ROOT

ADAPTERS = Path(scoring_client.adapters.__file__).parent

CLASSES = {
    "trl": "TeacherClient",
    "tinker": "SamplingClient",
    "verl": "TeacherManager",
    "verl_worker": "ServedTeacher",
    "prime_rl": "TeacherPool",
    "lm_eval": "ScoringServiceLM",
}


@pytest.mark.parametrize("framework", CLASSES)
def test_signatures_are_the_frameworks(framework: str) -> None:
    for name, parameters in recorded(framework).items():
        ours = written(ADAPTERS / f"{framework}.py", CLASSES[framework], name)
        if framework == "lm_eval":
            # lm-eval's own models have a further one, which is never asked of others.
            assert ours == [*parameters, "disable_tqdm=False"], name
        elif name == "sample_async":
            assert ours == ["async"]  # *args and **kwargs, as `sample` takes them
        elif framework == "verl_worker":
            # What it reads; *args and **kwargs go on to verl's own.
            assert ours == parameters[: len(ours)], name
        else:
            # tinker's decorators hide that its *_async are coroutines.
            plain = [p for p in ours if p != "async" or parameters[:1] == ["async"]]
            assert plain == parameters, name


def test_lm_evals_entry_point_names_the_model() -> None:
    """As lm-eval resolves it: an import of the module, whose decorator takes the same name.

    Its registry takes the two for one only where the path is the class's own, to the letter.
    """
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    ((name, value),) = declared["lm_eval.models"].items()
    module, _, cls = value.partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin == str(ADAPTERS / "lm_eval.py")
    (model,) = (
        node
        for node in ast.parse(Path(found.origin).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == cls
    )
    assert [ast.unparse(each) for each in model.decorator_list] == [f"register_model({name!r})"]


def test_trl(client: ScoringClient, plain: Plain) -> None:
    """As `ServerDistillationTrainer` calls it; chunks are the client's business."""
    sequences = [*texts(3, 14), texts(1, 9, seed=1)[0]]
    prompt_lengths = [5, 13, 1, 3]
    teacher = TeacherClient(client)
    for chunk_size in (0, 3):
        answer = teacher.get_sequence_logprobs(
            sequences=sequences,
            prompt_lengths=prompt_lengths,
            top_logprobs=7,
            temperature=0.7,
            chunk_size=chunk_size,
        )
        outside = 0
        for b, (ids, start) in enumerate(zip(sequences, prompt_lengths, strict=True)):
            rows = plain.logprobs(ids, 0.7)[start - 1 : -1]
            best = rows.topk(7, dim=1)
            assert np.array_equal(answer["logprob_token_ids"][b], best.indices)
            np.testing.assert_allclose(answer["logprobs"][b], best.values, atol=1e-4)
            actual = plain.realised(ids, 0.7)[start - 1 :, None]
            np.testing.assert_allclose(answer["actual_logprobs"][b], actual, atol=1e-4)
            assert answer["actual_token_ids"][b] == [[token] for token in ids[start:]]
            outside += int((actual < best.values[:, -1:]).sum())
        assert outside > 20, "vLLM's answer would be -inf here"
        assert all(math.isfinite(x) for b in answer["actual_logprobs"] for (x,) in b)
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            teacher.get_sequence_logprobs(sequences, prompt_lengths, temperature=temperature)
    with pytest.raises(ValueError, match="shorter"):
        teacher.get_sequence_logprobs(sequences, prompt_lengths[:-1])
    empty = teacher.get_sequence_logprobs([sequences[0]], [14], 7)
    assert empty == {key: [[]] for key in answer}, "a completion without a token, as TRL's own"
    limited = TeacherClient(client, token_id_limit=500).get_sequence_logprobs(
        sequences, prompt_lengths, 7
    )
    assert max(max(row) for b in limited["logprob_token_ids"] for row in b) < 500


def test_trls_own_client_is_lent_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module that binds the name at import keeps TRL's, though it is first asked for inside."""
    folder = tmp_path / "trl" / "generation"
    folder.mkdir(parents=True)
    for package in (tmp_path / "trl", folder):
        (package / "__init__.py").touch()
    (folder / "vllm_client.py").write_text("class VLLMClient: pass\n")
    (folder / "vllm_generation.py").write_text(
        "from trl.generation.vllm_client import VLLMClient\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    inside = ["", ".generation", ".generation.vllm_client", ".generation.vllm_generation"]
    names = [f"trl{name}" for name in inside]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    vllm_client = importlib.import_module("trl.generation.vllm_client")
    theirs = vllm_client.VLLMClient
    try:
        with as_teacher(None, 500) as teacher:
            generation = importlib.import_module("trl.generation.vllm_generation")
            assert vllm_client.VLLMClient("http://nobody.invalid") is teacher
            assert generation.VLLMClient is theirs
        assert vllm_client.VLLMClient is theirs
    finally:
        for name in names:
            sys.modules.pop(name, None)


def in_a_loop(target: str, ask: Any) -> Any:
    async def main() -> Any:
        async with AsyncScoringClient(target) as client:
            return await ask(client)

    return asyncio.run(main())


def test_prime_rl(target: str, plain: Plain) -> None:
    """As its opd algorithm calls it: one log-prob a token, 0.0 for the leading one."""
    branches = [*texts(3, 12), [7]]

    async def ask(client: AsyncScoringClient) -> list[list[float]]:
        pool = TeacherPool(client)
        scores = await asyncio.gather(*(pool.score(branch) for branch in branches))
        await pool.stop()
        return scores

    for branch, logprobs in zip(branches, in_a_loop(target, ask), strict=True):
        assert len(logprobs) == len(branch)
        assert logprobs[0] == 0.0
        assert all(type(value) is float for value in logprobs)
        if len(branch) > 1:
            np.testing.assert_allclose(logprobs[1:], plain.realised(branch), atol=1e-4)

    async def tempered(client: AsyncScoringClient) -> list[float]:
        return await TeacherPool(client, temperature=0.5).score(branches[0])

    expected = plain.realised(branches[0], 0.5)
    np.testing.assert_allclose(in_a_loop(target, tempered)[1:], expected, atol=1e-4)


def test_verl(target: str, plain: Plain) -> None:
    """Row i predicts token i + 1, and a last row of zeros follows."""
    (ids,) = texts(1, 18)

    async def ask(client: AsyncScoringClient) -> Any:
        realised = TeacherManager(client, temperature=0.7)
        listed = TeacherManager({"only": client}, topk=6, token_id_limit=600)
        return (
            await realised.compute_teacher_logprobs_single(sequence_ids=ids),
            await listed.compute_teacher_logprobs_single(sequence_ids=ids, routing_key="any"),
            await realised.compute_teacher_logprobs_single(sequence_ids=ids[:1]),
        )

    (one_ids, one), (top_ids, top), (_, alone) = in_a_loop(target, ask)
    assert one_ids[:, 0].tolist() == [*ids[1:], 0]
    np.testing.assert_allclose(one[:-1, 0], plain.realised(ids, 0.7), atol=1e-4)
    best = plain.logprobs(ids)[:-1, :600].topk(6, dim=1)
    assert np.array_equal(top_ids[:-1], best.indices)
    np.testing.assert_allclose(top[:-1], best.values, atol=1e-4)
    assert (top[-1] == 0).all()
    assert (top_ids[-1] == 0).all()
    assert alone.shape == (1, 1)


def test_verl_refuses(target: str) -> None:
    async def ask(client: AsyncScoringClient) -> None:
        two = TeacherManager({"math": client, "code": client})
        with pytest.raises(ValueError, match="no teacher for routing key 'law'"):
            await two.compute_teacher_logprobs_single([1, 2], routing_key="law")
        with pytest.raises(ValueError, match="tokens only"):
            await two.compute_teacher_logprobs_single(
                [1, 2], multi_modal_data={"images": [1]}, routing_key="math"
            )
        with pytest.raises(InvalidRequestError, match="vocabulary"):
            await two.compute_teacher_logprobs_single([1, 10**6], routing_key="math")

    in_a_loop(target, ask)
