"""``scoring-client topk``: what was likely after a prompt, or along a completion."""

from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from scoring_client.cli.console import new_console, print_hint, print_hints, title
from scoring_client.cli.jsonable import jsonable
from scoring_client.cli.options import Common, Labels, Shape, TextOption, connect, print_json
from scoring_client.cli.render import next_token_table, topk_table
from scoring_client.errors import InvalidRequestError
from scoring_client.values.inputs import Completion, PromptGroup

_TOKENS_LISTED = 10


def topk(
    text: Annotated[str | None, TextOption] = None,
    /,
    *,
    prompt: Annotated[str | None, TextOption] = None,
    completion: Annotated[str | None, TextOption] = None,
    k: Annotated[int | None, Parameter(name=["-k", "--k"])] = None,
    shape: Shape = Shape(),
    labels: Labels = Labels(),
    common: Common = Common(),
) -> None:
    """Show the most likely tokens after a prompt, or at every position of a completion.

    Parameters
    ----------
    text
        The prompt, as an alternative to --prompt.
    prompt
        What the tokens follow.
    completion
        Show the most likely tokens at each of its positions.
    k
        Tokens listed. Unset: 10. What --top-k truncates is another matter.
    """
    if (text is None) == (prompt is None):
        raise InvalidRequestError("give a prompt, as `scoring-client topk --prompt TEXT`")
    prompt = prompt if text is None else text
    # The row that follows the prompt is row 0 of whatever comes next: any token will do.
    asked = Completion([0], rows=[(0, 1)]) if completion is None else Completion(completion)
    with connect(common) as client:
        results = client.topk_logprobs(
            [PromptGroup(prompt or "", [asked])],
            _TOKENS_LISTED if k is None else k,
            rank=True,
            tokens=True,
            processed_logprobs=shape.truncates,
            context=labels.context(),
            **shape.options(),
        )
    answer = results[0][0]
    if common.json:
        print_json(
            {"prompt": prompt, "completion": completion, **jsonable(answer), "usage": results.usage}
        )
        return
    if k is None and shape.top_k is not None:
        print_hint(f"-k is how many tokens are listed ({_TOKENS_LISTED}); --top-k truncates")
    console = new_console()
    console.print(Text(title(prompt or "", completion or "?"), "bold"))
    if completion is None:
        console.print(next_token_table(answer, 0, truncated=shape.truncates))
    else:
        print_hints(prompt or "", [completion])
        console.print(topk_table(answer, truncated=shape.truncates))
