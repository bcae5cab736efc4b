"""Why a pool does not answer, in words."""

from __future__ import annotations

from scoring_service.pool.workers.worker import Worker


def describe_loop(workers: list[Worker]) -> str:
    """Of workers that were started again too often."""
    worst = max(workers, key=lambda w: w.policy.crashes)
    return (
        f"a crash loop: worker {worst.index} died {worst.policy.crashes} times in a row, "
        f"last: {worst.last_death}"
    )


def describe_loading(workers: list[Worker]) -> str:
    """Of workers that load, or wait to be started again."""
    stages = list(dict.fromkeys(worker.stage for worker in workers))
    return "; ".join(stages) or "no worker is left"
