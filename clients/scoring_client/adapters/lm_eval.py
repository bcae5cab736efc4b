"""lm-eval's model interface, answered by a scoring server (lm-eval 0.4.13).

    scoring-lm-eval --model scoring-service --model_args target=localhost:50051 --tasks …

The server tokenises, context and continuation together as lm-eval's own models do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from scoring_client.client import ScoringClient
from scoring_client.evaluation import sample_prompts, score_pairs
from scoring_client.inputs import SamplePrompt
from scoring_client.text_ids import TextIds


@register_model("scoring-service")
class ScoringServiceLM(TemplateLM):  # type: ignore[misc]
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
        self._info = self._client.wait_ready()
        self._ids = TextIds(self._client)
        self._prefix, self._max_gen_toks = prefix_token_id, max_gen_toks
        self.max_length = max_length or self._info.limits.max_sequence_tokens

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self._info.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: as in lm-eval, BOS, or else EOS."""
        choice = (self._prefix, self._info.bos_token_id, self.eot_token_id)
        return next(token for token in choice if token is not None)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's caches."""
        return self._info.tokenizer_digest or self._info.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return token ids."""
        return self._ids(string, special_tokens=add_special_tokens is not False)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood of each continuation, and whether greedy decoding gives it."""
        pairs = [request.args for request in requests]
        self._ids.learn((context + rest, bool(context)) for context, rest in pairs)
        self._ids.learn((context.rstrip(), True) for context, _ in pairs)
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _strings, context, continuation in requests]
        found = score_pairs(self._client, pairs, max_length=self.max_length, rank=True)
        return [
            (float(scores.logprobs.sum(dtype=float)), bool(np.all(scores.ranks == 1)))
            for scores in found
        ]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log-likelihoods of whole texts, in windows where they are too long for one."""
        cut = self.prefix_token_id, self.max_length - 1, 1
        self._ids.learn((request.args[0], True) for request in requests)
        texts = [self.tok_encode(request.args[0]) for request in requests]
        windows = [
            [(None, *make_disjoint_window(pair)) for pair in get_rolling_token_windows(ids, *cut)]
            for ids in texts
        ]
        answers = iter(self._loglikelihood_tokens([pair for text in windows for pair in text]))
        return [sum(next(answers)[0] for _pair in text) for text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return continuations up to a stop text, greedy unless the task samples."""
        self._ids.learn((request.args[0], True) for request in requests)
        prompts = [self._prompt(*request.args) for request in requests]
        drawn = sample_prompts(self._client, prompts, max_tokens=None, return_text=True)
        return [samples[0].text or "" for samples in drawn]

    def _prompt(self, context: str, given: dict[str, Any]) -> SamplePrompt:
        wanted = normalize_gen_kwargs(given, self._max_gen_toks)
        most = wanted["max_gen_toks"]
        return SamplePrompt(
            maybe_truncate(self.tok_encode(context), most, self.max_length)[0],
            max_tokens=most,
            stop=wanted["until"],
            temperature=wanted.get("temperature", 1.0) if wanted["do_sample"] else 0.0,
            **{name: wanted[name] for name in ("top_k", "top_p", "min_p") if name in wanted},
        )
