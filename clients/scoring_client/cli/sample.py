"""``scoring-client sample``: continuations of a prompt, shown as they are drawn."""

import math
from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from scoring_client.cli.colours import style_of
from scoring_client.cli.console import new_console
from scoring_client.cli.options import (
    Common,
    Labels,
    Shape,
    TextOption,
    TextsOption,
    connect,
    print_json,
)
from scoring_client.cli.render import sample_footer
from scoring_client.cli.visible import harmless
from scoring_client.errors import InvalidRequestError
from scoring_client.values.inputs import SamplePrompt
from scoring_client.values.samples import Sample


def sample(
    text: Annotated[str | None, TextOption] = None,
    /,
    *,
    prompt: Annotated[str | None, TextOption] = None,
    max_tokens: int = 64,
    n: Annotated[int, Parameter(name=["-n", "--n"])] = 1,
    seed: int | None = None,
    stop: Annotated[list[str] | None, TextsOption] = None,
    min_tokens: int | None = None,
    ignore_eos: Annotated[bool, Parameter(negative="")] = False,
    shape: Shape = Shape(),
    labels: Labels = Labels(),
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
        raise InvalidRequestError("give a prompt, as `scoring-client sample --prompt TEXT`")
    prompt = prompt if text is None else text
    asked = SamplePrompt(
        prompt or "", n=n, seed=seed, min_tokens=min_tokens, stop=stop or (), ignore_eos=ignore_eos
    )
    options = {
        "max_tokens": max_tokens,
        "return_text": True,
        "context": labels.context(),
        **shape.options(),
    }
    with connect(common) as client:
        if common.json:
            results = client.sample([asked], **options)
            print_json({"prompt": prompt, "samples": results[0], "usage": results.usage})
            return
        stream = _SampleStream(new_console(), prompt or "")
        for part in client.sample_slices([asked], **options):
            stream.add(part)


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
