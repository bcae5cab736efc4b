"""A server against plain transformers on the same tokens, and what to make of the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scoring_client.client import ScoringClient
from scoring_client.comparison.agreement import Distance, Logprobs, distance
from scoring_client.comparison.diagnosis import explain
from scoring_client.comparison.texts import ComparedText
from scoring_client.values.inputs import PromptGroup
from scoring_client.values.model_info import ModelInfo

if TYPE_CHECKING:
    from scoring_client.comparison.plain_model import PlainModel

WIDER = {"bfloat16": "float32", "float16": "float32", "float32": "float64"}
"""The type that the truth is computed in, for each that is compared."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One side, how far it is from the truth, and whether that is rounding."""

    side: str
    """Whose log-probs they are."""
    truth: Distance
    """From the same weights in the wider type."""
    plain: Distance
    """From plain transformers in the type that is compared."""
    agrees: bool
    """Whether it is as near to the truth as that type allows."""
    mistake: str | None = None
    """What explains the rest, where something that was tried does."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found."""

    dtype: str
    """Type of plain transformers, the head included."""
    wider: str
    """Type of the truth."""
    given: Distance
    """Plain transformers from the truth: what the type gives."""
    server: Finding
    """The server's."""
    own: Finding | None
    """One's own log-probs, where they were given."""

    @property
    def findings(self) -> list[Finding]:
        """The sides that were judged."""
        return [side for side in (self.server, self.own) if side is not None]

    @property
    def agrees(self) -> bool:
        """Whether all of them are the same model's."""
        return all(side.agrees for side in self.findings)


def served_logprobs(client: ScoringClient, texts: Sequence[ComparedText]) -> Logprobs:
    """Return what the server says of tokens 1, 2, … of each text, at temperature 1.

    Raises:
        ScoringError: see ``scoring_client.errors``.
    """
    groups = [PromptGroup(text.token_ids[:1], [text.token_ids[1:]]) for text in texts]
    return [scores.logprobs.astype("float64") for (scores,) in client.score(groups)]


def compare(
    client: ScoringClient, path: str, dtype: str, texts: Sequence[ComparedText]
) -> Comparison:
    """Score texts by the server and by a checkpoint in this process, and judge the difference.

    The checkpoint is loaded in ``dtype`` and then once more in the next wider type, one after the
    other. A side agrees when it is as near to the wider type's log-probs as plain transformers in
    ``dtype`` is, but for the factors of ``agreement``.

    Args:
        client: Of the server.
        path: The checkpoint: a folder, a Hub id or a .gguf file.
        dtype: A key of WIDER.
        texts: What is scored.

    Raises:
        ScoringError: see ``scoring_client.errors``.
        OSError: there is no such checkpoint.
    """
    from scoring_client.comparison.plain_model import PlainModel

    info, served = client.model_info(), served_logprobs(client, texts)
    ids = [text.token_ids for text in texts]
    plain = _all_logprobs(PlainModel(path, dtype), ids)
    model = PlainModel(path, WIDER[dtype])
    truth = _all_logprobs(model, ids)
    given = distance(plain, truth)

    def judged(side: str, found: Logprobs) -> Finding:
        apart = distance(found, truth)
        mistake, agrees = None, apart.is_within(given)
        if not agrees:
            mistake = explain(found, ids, model, given, info.bos_token_id)
        return Finding(side, apart, distance(found, plain), agrees, mistake)

    own = [text.logprobs for text in texts if text.logprobs is not None]
    return Comparison(
        dtype,
        WIDER[dtype],
        given,
        judged("server", served),
        judged("yours", own) if len(own) == len(texts) else None,
    )


def verdict(finding: Finding, comparison: Comparison, info: ModelInfo) -> str:
    """Return one side's verdict in words."""
    name = {"server": "The server's", "yours": "Your"}[finding.side]
    if finding.agrees:
        return (
            f"{name} log-probs are within what {comparison.dtype} gives: as near to "
            f"{comparison.wider} as plain transformers in {comparison.dtype} is."
        )
    if finding.mistake is not None:
        return f"{name} log-probs differ: {finding.mistake}."
    weights = f"the server answers from version {info.weight_version}, {info.weights_digest[:12]}"
    if finding.side == "yours":
        weights = "or another processing of the logits"
    return (
        f"{name} log-probs are those of other weights, as it seems ({weights}): no shift, "
        "beginning-of-sequence token or temperature that was tried explains them."
    )


def _all_logprobs(model: PlainModel, texts: Sequence[Sequence[int]]) -> Logprobs:
    return [model.logprobs(ids) for ids in texts]
