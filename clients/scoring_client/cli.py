"""The ``scoring-client`` command: ask a scoring server from a terminal."""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text

from scoring_client import cli_admin, cli_compare
from scoring_client.cli_options import Common, connect, print_json
from scoring_client.client import ScoringClient
from scoring_client.colours import style_of
from scoring_client.contrast import contrasts
from scoring_client.errors import (
    AccessDeniedError,
    DeadlineError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotFoundError,
    OverloadedError,
    PreconditionFailedError,
    ScoringError,
    UnavailableError,
)
from scoring_client.hints import leading_space_hint
from scoring_client.inputs import Completion, PromptGroup, SamplePrompt
from scoring_client.jsonable import jsonable
from scoring_client.processing import ProcessingDefaults
from scoring_client.render import (
    completion_table,
    info_table,
    next_token_table,
    sample_footer,
    scored_completion,
    token_count,
    topk_table,
    total_logprob,
)
from scoring_client.samples import Sample
from scoring_client.visible import harmless, visible

EXIT_BAD_INPUT = 2
EXIT_UNAVAILABLE = 3
EXIT_OTHER = 1
TABLE_ROWS = 64
"""A longer text is shown without its table unless the table is asked for."""

app = App(
    name="scoring-client",
    help="Ask a scoring server how likely tokens are, what else was likely, or for samples.",
)

cli_admin.register(app)
cli_compare.register(app)

TextOption = Parameter(allow_leading_hyphen=True)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shape:
    """Options that shape the distribution."""

    temperature: float | None = None
    """Divisor of the logits. Unset: 1."""
    top_k: int | None = None
    """Keep this many tokens. Unset: all."""
    top_p: float | None = None
    """Keep this much probability. Unset: all."""
    min_p: float | None = None
    """Keep tokens at least this likely, relative to the likeliest. Unset: all."""
    defaults: ProcessingDefaults | None = None
    """What unset means: neutral, or what the model's generation_config sets."""

    def options(self) -> Any:
        """Return keyword arguments of a call."""
        return {
            name: getattr(self, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "defaults")
        }


@app.command
def score(
    text: Annotated[str | None, TextOption] = None,
    /,
    *,
    prompt: Annotated[str | None, TextOption] = None,
    completion: Annotated[
        list[str] | None, Parameter(allow_leading_hyphen=True, negative="")
    ] = None,
    table: bool | None = None,
    shape: Shape = Shape(),
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
    console = _console()
    if text is None:
        _print_hints(prompt, completions)
    for written, scores in zip(completions, scored, strict=True):
        total = total_logprob(scores)
        title = (
            f"{_title(prompt, written)}  log-prob {total:.3f}, {token_count(len(scores.logprobs))}"
        )
        wanted = len(scores.logprobs) <= TABLE_ROWS if table is None else table
        console.print(scored_completion(title, scores, console, table=wanted))
    if len(completions) > 1:
        console.print(completion_table(completions, scored))
    for pair in compared:
        console.print(Text(harmless(pair.sentence())))


@app.command
def topk(
    text: Annotated[str | None, TextOption] = None,
    /,
    *,
    prompt: Annotated[str | None, TextOption] = None,
    completion: Annotated[str | None, TextOption] = None,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    shape: Shape = Shape(),
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
        Tokens listed.
    """
    if (text is None) == (prompt is None):
        raise _usage("give a prompt, as `scoring-client topk --prompt TEXT`")
    prompt = prompt if text is None else text
    # The row that follows the prompt is row 0 of whatever comes next: any token will do.
    asked = Completion([0], rows=[(0, 1)]) if completion is None else Completion(completion)
    with connect(common) as client:
        results = client.topk_logprobs(
            [PromptGroup(prompt or "", [asked])],
            k,
            rank=True,
            tokens=True,
            **shape.options(),
        )
    answer = results[0][0]
    if common.json:
        print_json(
            {"prompt": prompt, "completion": completion, **jsonable(answer), "usage": results.usage}
        )
        return
    console = _console()
    console.print(Text(_title(prompt or "", completion or "?"), "bold"))
    if completion is None:
        console.print(next_token_table(answer, 0))
    else:
        _print_hints(prompt or "", [completion])
        console.print(topk_table(answer))


@app.command
def sample(
    text: Annotated[str | None, TextOption] = None,
    /,
    *,
    prompt: Annotated[str | None, TextOption] = None,
    max_tokens: int = 64,
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 1,
    seed: int | None = None,
    stop: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True, negative="")] = None,
    min_tokens: int | None = None,
    ignore_eos: Annotated[bool, Parameter(negative="")] = False,
    shape: Shape = Shape(),
    common: Common = Common(),
) -> None:
    """Continue a prompt; the text appears as it is drawn, coloured by how likely it was.

    Parameters
    ----------
    text
        The prompt, as an alternative to --prompt.
    prompt
        What to continue.
    max_tokens
        Most tokens to draw.
    n
        Samples.
    seed
        Seed; the same seed draws the same samples. Unset: drawn by the server and shown.
    stop
        End at this text; repeat it for several.
    min_tokens
        Do not stop before this many tokens.
    ignore_eos
        Do not stop at the model's end-of-sequence tokens.
    """
    if (text is None) == (prompt is None):
        raise _usage("give a prompt, as `scoring-client sample --prompt TEXT`")
    prompt = prompt if text is None else text
    asked = SamplePrompt(
        prompt or "", n=n, seed=seed, min_tokens=min_tokens, stop=stop or (), ignore_eos=ignore_eos
    )
    with connect(common) as client:
        if common.json:
            results = client.sample(
                [asked], max_tokens=max_tokens, return_text=True, **shape.options()
            )
            print_json({"prompt": prompt, "samples": results[0], "usage": results.usage})
            return
        stream = _SampleStream(_console(), prompt or "")
        for part in client.sample_slices(
            [asked], max_tokens=max_tokens, return_text=True, **shape.options()
        ):
            stream.add(part)


@app.command
def info(*, common: Common = Common()) -> None:
    """Show what the server says of its model: limits, digests, versions."""
    with connect(common) as client:
        models = client.list_models()
        said = client.model_info()
    if common.json:
        print_json({**jsonable(said), "models": models})
        return
    _console().print(info_table(said, models))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 = well, 2 = bad input, 3 = no server or no room, 1 = anything else that failed, and a
    comparison that found a difference.
    """
    try:
        status = app(
            None if arguments is None else list(arguments),
            exit_on_error=False,
            result_action="return_value",
        )
    except CycloptsError:
        # It has said on stderr what is wrong.
        return EXIT_BAD_INPUT
    except ScoringError as error:
        _print_error(_explained(error))
        return _exit_status(error)
    except OSError as error:
        _print_error(str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


@dataclass
class _SampleStream:
    """Prints samples one after the other: the first unfinished one live, later ones when due."""

    console: Console
    prompt: str
    _waiting: dict[int, list[Sample]] = field(default_factory=dict)
    _current: int = 0
    _tokens: int = 0
    _logprob: float = 0.0

    def add(self, part: Sample) -> None:
        """Take a slice of any sample and print what is due."""
        self._waiting.setdefault(part.sample_index, []).append(part)
        while parts := self._waiting.pop(self._current, None):
            for due in parts:
                self._print(due)

    def _print(self, part: Sample) -> None:
        if part.start == 0:
            self.console.print(Text(harmless(self.prompt), "bold"), end="", soft_wrap=True)
        if part.text:
            mean = float(part.logprobs.mean()) if len(part.logprobs) else 0.0
            text = Text(harmless(part.text), style_of(mean) if len(part.logprobs) else "")
            self.console.print(text, end="", soft_wrap=True)
        self._tokens += len(part.token_ids)
        self._logprob += math.fsum(part.logprobs.tolist())
        if part.last:
            self.console.print()
            self.console.print(sample_footer(part, self._logprob, self._tokens), soft_wrap=True)
            self._current += 1
            self._tokens, self._logprob = 0, 0.0


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
            raise _usage(
                "give a text, or --prompt with --completion: "
                "scoring-client score --prompt 'import numpy as' --completion ' np'"
            )
        return prompt, completions
    if prompt is not None or completions:
        raise _usage("give a text or --prompt with --completion, not both")
    if client.model_info().bos_token_id is not None:
        return "", [text]
    first_word = re.match(r"\s*\S+", text)
    rest = text[first_word.end() :] if first_word else ""
    if first_word is None or not rest:
        raise _usage(
            "a text needs two words: this model has no beginning-of-sequence token, so the first "
            "word is the prompt"
        )
    return first_word[0], [rest]


def _usage(message: str) -> InvalidRequestError:
    return InvalidRequestError(message)


def _exit_status(error: ScoringError) -> int:
    if isinstance(error, (UnavailableError, OverloadedError, DeadlineError)):
        return EXIT_UNAVAILABLE
    bad_input = (
        AccessDeniedError,
        InvalidRequestError,
        MessageTooLargeError,
        ModelNotFoundError,
        PreconditionFailedError,
    )
    return EXIT_BAD_INPUT if isinstance(error, bad_input) else EXIT_OTHER


def _explained(error: ScoringError) -> str:
    """Return an error with what helps next."""
    if type(error) is UnavailableError and not error.reason:
        return f"{error}. Is a server running there? --target or SCORING_TARGET names another"
    # Only of errors that are not the user's own does the server's log say more.
    if _exit_status(error) == EXIT_OTHER and error.request_id:
        return f"{error} (request {error.request_id})"
    return str(error)


def _print_error(message: str) -> None:
    _error_console().print(Text("error: ", "bold red").append(harmless(message), "not bold"))


def _print_hints(prompt: str, completions: Sequence[str]) -> None:
    for completion in completions:
        if (hint := leading_space_hint(prompt, completion)) is not None:
            _error_console().print(Text("hint: ", "bold yellow").append(harmless(hint), "not bold"))


def _title(prompt: str, completion: str, width: int = 40) -> str:
    """Return what follows what, from the end of the prompt to the beginning of the completion."""
    before, after = visible(prompt) or "beginning of the sequence", visible(completion)
    if len(before) > width:
        before = f"…{before[-width + 1 :]}"
    if len(after) > width:
        after = f"{after[: width - 1]}…"
    return f"{before} → {after}"


def _console() -> Console:
    return Console(highlight=False)


def _error_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
