"""The check of a prime-rl checkout notices each change that would break the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.prime_rl_checkout import ALGORITHMS, BASE, OPD, POOL, differences

SOURCES = {
    POOL: """
class InferencePool:
    def __init__(self, model_name):
        self.model_name = model_name

    async def score(self, token_ids):
        return []

    async def stop(self):
        pass
""",
    ALGORITHMS: """
ALGORITHM_CLASSES: dict = {"grpo": GRPOAlgorithm, "opd": OPDAlgorithm}


def build_algorithm(config, policy_pool):
    return ALGORITHM_CLASSES[config.type](config, policy_pool)
""",
    BASE: """
class Algorithm:
    def __init__(self, config, policy_pool):
        self.policy_pool = policy_pool
""",
    OPD: """
class OPDAlgorithm(Algorithm):
    async def setup(self):
        self.teacher_pool = await self.connect(self.teacher)

    async def score_episode(self, episode):
        pool = self.teacher_pool
        return [await pool.score(branch.token_ids) for branch in episode]
""",
}
"""Of prime-rl what the check looks at, in its shape."""

CHANGES = [
    (POOL, "score(self, token_ids)", "score(self, token_ids, model)", "InferencePool.score takes"),
    (POOL, "async def score", "def score", "InferencePool.score takes"),
    (POOL, "async def stop", "async def aclose", "has no InferencePool.stop"),
    (POOL, "self.model_name", "self.name", "does not set self.model_name"),
    (ALGORITHMS, '"opd": OPDAlgorithm', '"opd": Distillation', "has no ALGORITHM_CLASSES"),
    (ALGORITHMS, "ALGORITHM_CLASSES: dict", "CLASSES: dict", "has no ALGORITHM_CLASSES"),
    (ALGORITHMS, "ALGORITHM_CLASSES[config.type]", "load(config.name)", "no longer takes"),
    (BASE, "self.policy_pool", "self.policy", "does not set self.policy_pool"),
    (OPD, "async def setup(self)", "async def setup(self, pool)", "OPDAlgorithm.setup takes"),
    (OPD, "self.teacher_pool = ", "self.pool = ", "does not set self.teacher_pool"),
    (OPD, "pool = self.teacher_pool", "pool = self.pool", "does not ask self.teacher_pool"),
    (OPD, "branch.token_ids", "branch.tokens", "asks its teacher to score"),
]


def checkout(folder: Path, path: str = "", old: str = "", new: str = "") -> Path:
    for name, text in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace(old, new) if name == path else text)
    return folder


def test_as_it_is(tmp_path: Path) -> None:
    assert [*differences(checkout(tmp_path))] == []
    assert [*differences(tmp_path / "nowhere")] == [f"there is no {POOL}"]


@pytest.mark.parametrize(("path", "old", "new", "message"), CHANGES)
def test_each_change_is_told(path: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in SOURCES[path]
    found = [*differences(checkout(tmp_path, path, old, new))]
    assert any(message in line for line in found), found
