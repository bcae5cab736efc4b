"""lm-eval's model interface, answered by a scoring server (lm-eval 0.4.13).

    scoring-lm-eval --model scoring-service --model_args target=localhost:50051 --tasks …

The server tokenises, context and continuation together as lm-eval's own models do.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs

from scoring_client.client import ScoringClient
from scoring_client.evaluation import likelihoods, text_likelihoods
from scoring_client.inputs import SamplePrompt
from scoring_client.text_ids import TextIds


@register_model("scoring-service")
class ScoringServiceLM(LM):  # type: ignore[misc]
    """Scores and generates on a server; batch size and device are the server's business."""

    def __init__(
        self,
        target: str = "localhost:50051",
        model: str = "",
        prefix_token_id: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        **_: Any,
    ) -> None:
        """Connect; lm-eval hands in ``--model_args``, and its own batch_size and device."""
        super().__init__()
        self._client = ScoringClient(target, model=model, timeout=None)
        self._ids = TextIds(self._client)
        self._max_gen_toks = max_gen_toks
        info = self._client.wait_ready()
        self.max_length = max_length or info.limits.max_sequence_tokens
        # As lm-eval's own models: what stands before a text without context.
        self.prefix_token_id = info.start_token_id if prefix_token_id is None else prefix_token_id

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood of each continuation, and whether greedy decoding gives it."""
        pairs = self._ids.pairs((request.args for request in requests), self.prefix_token_id)
        return [*likelihoods(self._client, pairs, self.max_length)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log-likelihoods of whole texts, in windows where they are too long for one."""
        texts = self._ids.many(request.args[0] for request in requests)
        return text_likelihoods(self._client, texts, self.prefix_token_id, self.max_length)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return continuations up to a stop text, greedy unless the task samples."""
        texts = self._ids.many(request.args[0] for request in requests)
        prompts = [
            self._prompt(ids, request.args[1]) for ids, request in zip(texts, requests, strict=True)
        ]
        drawn = self._client.sample(prompts, max_tokens=None, return_text=True)
        return [sample.text or "" for sample in drawn.samples()]

    def _prompt(self, context: list[int], given: dict[str, Any]) -> SamplePrompt:
        wanted = normalize_gen_kwargs(given, self._max_gen_toks)
        most = wanted["max_gen_toks"]
        return SamplePrompt(
            maybe_truncate(context, most, self.max_length)[0],
            max_tokens=most,
            stop=wanted["until"],
            temperature=wanted.get("temperature", 1.0) if wanted["do_sample"] else 0.0,
            **{name: wanted[name] for name in ("top_k", "top_p", "min_p") if name in wanted},
        )
