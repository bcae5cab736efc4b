"""verl's agent-loop worker with a scoring server as its teacher (verl 0.9).

    class Worker(ServedTeacher, AgentLoopWorker):
        def make_teacher(self):
            return TeacherManager(AsyncScoringClient("teacher:50051"), topk=64)

verl's manager is asked for a sequence and is not told where its response begins; its worker knows.
"""

from __future__ import annotations

from typing import Any

from scoring_client.adapters.verl import TeacherManager
from scoring_client.prompt_end import telling


class ServedTeacher:
    """Mixin before verl's ``AgentLoopWorker``: its teacher is a server, and prompts are shared.

    A worker asks ``make_teacher`` for its teacher at its first rollout, in its own process.
    """

    _served: TeacherManager | None = None

    def make_teacher(self) -> TeacherManager:
        """Return the teacher; yours to write."""
        raise NotImplementedError(f"{type(self).__name__} has no make_teacher")

    async def _compute_teacher_logprobs(
        self, output: Any, prompt_ids: list[int], *args: Any, **kwargs: Any
    ) -> None:
        if self._served is None:
            self._served = self.teacher_server_manager = self.make_teacher()
        with telling(len(prompt_ids)):
            # The mixin stands before verl's class, which has it.
            await super()._compute_teacher_logprobs(output, prompt_ids, *args, **kwargs)  # type: ignore[misc]
