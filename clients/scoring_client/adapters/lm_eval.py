"""lm-eval's model interface, answered by a scoring server (lm-eval 0.4.13).

    scoring-lm-eval --model scoring-service --model_args target=localhost:50051 --tasks …

The server tokenises, context and continuation together as lm-eval's own models do.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs

from scoring_client.client import ScoringClient
from scoring_client.connection.endpoint import Pem
from scoring_client.evaluation import likelihoods, text_likelihoods
from scoring_client.text_ids import TextIds
from scoring_client.values.inputs import Expect, RequestContext, SamplePrompt

_APPLIED = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p"}
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "diversity_penalty": 0,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
}
"""Settings of transformers' and vLLM's generation that a server lacks, switched off."""
_OF_NO_EFFECT = {"use_cache", "pad_token_id", "length_penalty", "early_stopping"}
"""On one text at a time without beams."""


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
        *,
        timeout: float | None = None,
        expect: Expect | None = None,
        context: RequestContext | None = None,
        token: str | None = None,
        root_certificates: Pem | None = None,
        client_certificate: Pem | None = None,
        client_key: Pem | None = None,
        tls: bool = False,
        allow_plaintext_token: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Connect; lm-eval hands in ``--model_args``.

        Args:
            target: As of ScoringClient; so are ``model``, ``root_certificates``,
                ``client_certificate``, ``client_key``, ``tls`` and ``allow_plaintext_token``.
            model: Model to ask; empty = the only one served.
            prefix_token_id: What stands before a text without context. Default: the model's BOS,
                or else EOS.
            max_length: Most tokens of a text at a time. Default: as many as the server takes.
            max_gen_toks: Most tokens to draw where a task does not say.
            timeout: Seconds for all requests of a kind; None = no limit.
            expect: Conditions for every answer, such as the weights that are to be evaluated.
            context: Who asks.
            token: Default: that of the environment's SCORING_TOKEN. lm-eval writes
                ``--model_args`` into its log and its results.
            root_certificates: PEM, or a path.
            client_certificate: PEM, or a path.
            client_key: PEM, or a path.
            tls: TLS by gRPC's own roots.
            allow_plaintext_token: Something else encrypts the connection.
            batch_size: Of no effect, as the three below: lm-eval gives them to every model.
            max_batch_size: Of no effect.
            device: Of no effect.
            trust_remote_code: Of no effect here; the option is for data sets too.

        Raises:
            TypeError: there is no such argument.
            ValueError: an argument makes no sense, or the token would travel in plain text.
            OSError: a file of certificates cannot be read.
            ScoringError: no server was ready within a minute, or it has no such model.
        """
        super().__init__()
        self._client = ScoringClient(
            target,
            model=model,
            timeout=timeout,
            expect=expect,
            context=context,
            token=token or os.environ.get("SCORING_TOKEN"),
            root_certificates=root_certificates,
            client_certificate=client_certificate,
            client_key=client_key,
            tls=tls,
            allow_plaintext_token=allow_plaintext_token,
        )
        self._timeout = timeout
        self._ids = TextIds(self._client)
        self._max_gen_toks = max_gen_toks
        info = self._client.wait_ready()
        self.max_length = max_length or info.limits.max_sequence_tokens
        # As lm-eval's own models: what stands before a text without context.
        self.prefix_token_id = info.start_token_id if prefix_token_id is None else prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """Refuse: lm-eval asks for it under ``--apply_chat_template`` alone."""
        _no_chat_template()

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Refuse: the server has no chat templates."""
        _no_chat_template()

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood of each continuation, and whether greedy decoding gives it."""
        pairs = self._ids.pairs((request.args for request in requests), self.prefix_token_id)
        return [*likelihoods(self._client, pairs, self.max_length, timeout=self._timeout)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log-likelihoods of whole texts, in windows where they are too long for one."""
        texts = self._ids.many(request.args[0] for request in requests)
        return text_likelihoods(
            self._client, texts, self.prefix_token_id, self.max_length, timeout=self._timeout
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return continuations up to a stop text, greedy unless the task samples.

        Raises:
            ValueError: a task's generation setting is none of the server's, or ``max_gen_toks``
                leaves no room for a context.
            ScoringError: see ``scoring_client.errors``.
        """
        texts = self._ids.many(request.args[0] for request in requests)
        prompts = [
            self._prompt(ids, request.args[1]) for ids, request in zip(texts, requests, strict=True)
        ]
        drawn = self._client.sample(prompts, return_text=True)
        return [sample.text or "" for sample in drawn.samples()]

    def _prompt(self, context: list[int], given: dict[str, Any]) -> SamplePrompt:
        wanted = normalize_gen_kwargs(given, self._max_gen_toks)
        _check_settings(wanted)
        most = wanted["max_gen_toks"]
        if most >= self.max_length:
            raise ValueError(
                f"max_gen_toks is {most}, of {self.max_length} tokens with the context: nothing "
                "would be left of it"
            )
        return SamplePrompt(
            maybe_truncate(context, most, self.max_length)[0],
            max_tokens=most,
            stop=wanted["until"],
            temperature=wanted.get("temperature", 1.0) if wanted["do_sample"] else 0.0,
            **{name: wanted[name] for name in ("top_k", "top_p", "min_p") if name in wanted},
        )


def _check_settings(wanted: dict[str, Any]) -> None:
    """Refuse what would be left out: the scores would be those of another task.

    Raises:
        ValueError: a setting is neither the server's nor switched off.
    """
    for name, value in wanted.items():
        off = value is None or name in _OF_NO_EFFECT or _NEUTRAL.get(name) == value
        if name not in _APPLIED and not off:
            raise ValueError(
                f"a scoring server does not generate with {name}={value!r}: leave it out of the "
                "task's generation_kwargs (--gen_kwargs)"
            )


def _no_chat_template() -> NoReturn:
    raise ValueError(
        "a scoring server has no chat templates: run without --apply_chat_template, on a task "
        "whose doc_to_text writes the turns as the model's template does"
    )
