"""``scoring-client tokenize``: the ids of texts, by the served model's tokenizer."""

from typing import Annotated

from rich.text import Text

from scoring_client.cli.console import new_console
from scoring_client.cli.options import Common, TextsOption, connect, print_json
from scoring_client.cli.render import token_count
from scoring_client.cli.visible import visible
from scoring_client.errors import InvalidRequestError


def tokenize(
    *texts: Annotated[str, TextsOption], special_tokens: bool = True, common: Common = Common()
) -> None:
    """Show the token ids of texts.

    Parameters
    ----------
    texts
        One or more. Mind the leading space: " np" and "np" are different tokens.
    special_tokens
        With those that the tokenizer adds to a prompt. The service adds none to completions.
    """
    if not texts:
        raise InvalidRequestError("give a text: scoring-client tokenize 'import numpy as'")
    with connect(common) as client:
        found = client.tokenize(texts, add_special_tokens=special_tokens)
    if common.json:
        print_json(
            [{"text": text, "token_ids": ids} for text, ids in zip(texts, found, strict=True)]
        )
        return
    console = new_console()
    for text, ids in zip(texts, found, strict=True):
        console.print(Text(f"{visible(text)}  {token_count(len(ids))}", "bold"))
        console.print(Text(" ".join(map(str, ids))))
