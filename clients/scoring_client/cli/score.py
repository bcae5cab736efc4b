"""``scoring-client score``: how likely completions are, or a whole text."""

import re
from typing import Annotated

from rich.console import Console
from rich.text import Text

from scoring_client.cli.console import new_console, print_hints, title
from scoring_client.cli.contrast import contrasts
from scoring_client.cli.jsonable import jsonable
from scoring_client.cli.options import (
    Common,
    Labels,
    Shape,
    TextOption,
    TextsOption,
    connect,
    print_json,
)
from scoring_client.cli.render import (
    completion_table,
    scored_completion,
    token_count,
    total_logprob,
)
from scoring_client.cli.visible import harmless
from scoring_client.client import ScoringClient
from scoring_client.errors import InvalidRequestError
from scoring_client.values.inputs import PromptGroup
from scoring_client.values.results import CompletionScores

TABLE_ROWS = 64
"""A longer text is shown without its table unless the table is asked for."""


def score(
    text: Annotated[str | None, TextOption] = None,
    /,
    *,
    prompt: Annotated[str | None, TextOption] = None,
    completion: Annotated[list[str] | None, TextsOption] = None,
    table: bool | None = None,
    shape: Shape = Shape(),
    labels: Labels = Labels(),
    common: Common = Common(),
) -> None:
    """Show how likely completions are after a prompt, or how likely a whole text is.

    Parameters
    ----------
    text
        A whole text. After the beginning-of-sequence token where the model has one; elsewhere the
        first word is the prompt.
    prompt
        What the completions follow.
    completion
        What follows the prompt; repeat it to contrast several. Mind the leading space: " np".
    table
        Print a row for each token. Unset: for up to 64 tokens.
    """
    with connect(common) as client:
        prompt, completions = _what_to_score(client, text, prompt, completion)
        results = client.score(
            [PromptGroup(prompt, completions)],
            rank=True,
            tokens=True,
            processed_logprobs=shape.truncates,
            context=labels.context(),
            **shape.options(),
        )
    scored = results[0]
    compared = contrasts(completions, [total_logprob(scores) for scores in scored])
    if common.json:
        print_json(
            {
                "prompt": prompt,
                "completions": [
                    {"text": written, "total_logprob": total_logprob(scores), **jsonable(scores)}
                    for written, scores in zip(completions, scored, strict=True)
                ],
                "contrasts": compared,
                "usage": results.usage,
            }
        )
        return
    if text is None:
        print_hints(prompt, completions)
    console = new_console()
    for written, scores in zip(completions, scored, strict=True):
        _print_scores(console, title(prompt, written), scores, table)
    if len(completions) > 1:
        console.print(completion_table(completions, scored))
    for pair in compared:
        console.print(Text(harmless(pair.sentence())))


def _print_scores(
    console: Console, what: str, scores: CompletionScores, table: bool | None
) -> None:
    """Print one completion, with its table if that is asked for or short."""
    count = len(scores.logprobs)
    heading = f"{what}  log-prob {total_logprob(scores):.3f}, {token_count(count)}"
    wanted = count <= TABLE_ROWS if table is None else table
    console.print(scored_completion(heading, scores, console, table=wanted))


def _what_to_score(
    client: ScoringClient,
    text: str | None,
    prompt: str | None,
    completions: list[str] | None,
) -> tuple[str, list[str]]:
    """Return the prompt and its completions.

    Raises:
        InvalidRequestError: the options do not make a request.
    """
    if text is None:
        if prompt is None or not completions:
            raise InvalidRequestError(
                "give a text, or --prompt with --completion: "
                "scoring-client score --prompt 'import numpy as' --completion ' np'"
            )
        return prompt, completions
    if prompt is not None or completions:
        raise InvalidRequestError("give a text or --prompt with --completion, not both")
    if client.model_info().bos_token_id is not None:
        return "", [text]
    first_word = re.match(r"\s*\S+", text)
    rest = text[first_word.end() :] if first_word else ""
    if first_word is None or not rest:
        raise InvalidRequestError(
            "a text needs two words: this model has no beginning-of-sequence token, so the first "
            "word is the prompt"
        )
    return first_word[0], [rest]
