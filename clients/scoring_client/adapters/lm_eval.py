"""lm-eval's model interface, answered by a scoring server (lm-eval 0.4.13).

lm-eval finds no models outside its own package, so this module is also its command line:

    python -m scoring_client.adapters.lm_eval --model scoring-service \
        --model_args target=localhost:50051 --tasks lambada_openai

The server tokenises, context and continuation together as lm-eval's own models do; its prefix
cache keeps the pass that this takes from being computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from scoring_client.client import ScoringClient
from scoring_client.inputs import Completion, PromptGroup, SamplePrompt

Pair = tuple[Any, list[int], list[int]]
"""The strings, and the ids of context and continuation."""


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
        self._prefix, self._max_gen_toks = prefix_token_id, max_gen_toks
        self.max_length = max_length or self._info.limits.max_sequence_tokens
        self._ids: dict[tuple[str, bool], list[int]] = {("", True): [], ("", False): []}

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self._info.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: as in lm-eval, BOS, or else EOS."""
        if self._prefix is not None:
            return self._prefix
        bos = self._info.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's caches."""
        return self._info.tokenizer_digest or self._info.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return token ids."""
        special = add_special_tokens is not False
        self._tokenise([(string, special)])
        return self._ids[string, special]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood of each continuation, and whether greedy decoding gives it."""
        pairs = [request.args for request in requests]
        self._tokenise((context + rest, bool(context)) for context, rest in pairs)
        self._tokenise((context.rstrip(), True) for context, _ in pairs)
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: list[Pair], **_: Any) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        by_context: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_strings, context, continuation) in enumerate(requests):
            kept = (context + continuation)[-self.max_length :]
            split = max(len(kept) - len(continuation), 1)
            by_context.setdefault(tuple(kept[:split]), []).append((index, kept[split:]))
        sizes = [len(c) + sum(len(ids) for _, ids in some) for c, some in by_context.items()]
        for part in self._batches(list(by_context.items()), sizes):
            groups = [PromptGroup(list(c), [ids for _, ids in some]) for c, some in part]
            for (_context, some), scores in zip(
                part, self._client.score(groups, rank=True), strict=True
            ):
                for (index, _ids), each in zip(some, scores, strict=True):
                    greedy = each.ranks is not None and bool((each.ranks == 1).all())
                    answers[index] = (float(each.logprobs.sum(dtype=float)), greedy)
        for (strings, _context, _continuation), answer in zip(requests, answers, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log-likelihoods of whole texts, in windows where they are too long for one."""
        pairs: list[Pair] = []
        owners = []
        for owner, (text,) in enumerate(request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                pairs.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (loglikelihood, _) in zip(
            owners, self._loglikelihood_tokens(pairs), strict=True
        ):
            totals[owner] += loglikelihood
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return continuations up to a stop text, greedy unless the task samples."""
        texts = []
        for context, given in (request.args for request in requests):
            until = given.get("until") or []
            greedy = not given.get("do_sample", given.get("temperature", 0.0) > 0)
            drawn = self._client.sample(
                [SamplePrompt(context, stop=[until] if isinstance(until, str) else until)],
                max_tokens=given.get("max_gen_toks", self._max_gen_toks),
                temperature=0.0 if greedy else given.get("temperature", 1.0),
                top_k=given.get("top_k"),
                top_p=given.get("top_p"),
                return_text=True,
            )
            texts.append(drawn[0][0].text or "")
        return texts

    def _tokenise(self, texts: Iterable[tuple[str, bool]]) -> None:
        """Ask the server for the ids of texts that are not known yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        for part in self._batches(new, [len(text) for text, _ in new]):
            # A prompt's ids come back with the scores of what follows it: one token, any token.
            asked = [Completion([self.eot_token_id])]
            groups = [PromptGroup(t, asked, add_special_tokens=special) for t, special in part]
            for text, scores in zip(part, self._client.score(groups), strict=True):
                ids = scores[0].prompt_token_ids
                self._ids[text] = [] if ids is None else ids.tolist()

    def _batches(self, items: list[Any], sizes: list[int]) -> Iterator[list[Any]]:
        """Items in order, as many at a time as make a good call."""
        part: list[Any] = []
        room = self._info.limits.preferred_tokens_per_call
        for item, size in zip(items, sizes, strict=True):
            if part and room < size:
                yield part
                part, room = [], self._info.limits.preferred_tokens_per_call
            part.append(item)
            room -= size
        if part:
            yield part


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
