"""``scoring-client compare``: is it the same model as the one in my trainer?"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scoring_client.cli.options import Common, connect, print_json
from scoring_client.cli.visible import harmless, visible
from scoring_client.client import ScoringClient
from scoring_client.comparison.compare import WIDER, Comparison, compare, verdict
from scoring_client.comparison.texts import DEFAULT_TEXTS, ComparedText, read_texts
from scoring_client.errors import InvalidRequestError, ScoringError

EXIT_DIFFERENT = 1


def register(app: App) -> None:
    """Add the command."""
    app.command(compare_command, name="compare")


def compare_command(
    *texts: Annotated[str, Parameter(allow_leading_hyphen=False)],
    checkpoint: Annotated[str, Parameter(name=["--checkpoint", "-c"])],
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    file: Path | None = None,
    common: Common = Common(),
) -> int:
    """Compare the server's log-probs with those of plain transformers in this process.

    Prints how far the server and plain transformers are from one another and from the same weights
    in the next wider type, and says whether that is rounding or what else it is. Ends with status 1
    where it is something else. Needs torch and transformers, and memory for the checkpoint in the
    wider type; it runs on the CPU.

    Parameters
    ----------
    texts
        What is scored, tokenized by the checkpoint's tokenizer. Unset: three short texts.
    checkpoint
        The model as you have it: a folder, a Hub id or a .gguf file.
    dtype
        Type that transformers runs the checkpoint in. Unset: that of the server's body.
    file
        Token ids instead of texts, a JSON list a line; or {"token_ids": […], "logprobs": […]} with
        log-probs of your own, entry i for token i, which are compared too.
    """
    _require("torch", "transformers")
    _hide_progress()
    with connect(common) as client:
        info = client.model_info()
        compared, notes = _what(client, texts, checkpoint, file)
        dtype_name = dtype or info.dtype
        if dtype_name not in WIDER:
            raise InvalidRequestError(f"the server runs in {dtype_name}: give --dtype")
        if dtype_name != info.dtype:
            notes.append(f"the server's body runs in {info.dtype}, not in {dtype_name}")
        with _saying_which(checkpoint):
            found = compare(client, checkpoint, dtype_name, compared)
    verdicts = [verdict(finding, found, info) for finding in found.findings]
    if common.json:
        print_json({"comparison": found, "verdicts": verdicts, "notes": notes})
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(_table(found))
        for line in (*(f"note: {note}" for note in notes), *verdicts):
            console.print(Text(harmless(line)))
    return 0 if found.agrees else EXIT_DIFFERENT


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidRequestError(
            f"the comparison runs the checkpoint here and needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


@contextmanager
def _saying_which(checkpoint: str) -> Iterator[None]:
    """Have what transformers says of a checkpoint that it cannot load told with its name."""
    try:
        yield
    except ScoringError:
        raise  # some are OSErrors too
    except OSError as error:
        raise InvalidRequestError(
            f"--checkpoint {checkpoint}: no folder, .gguf file or Hub id that could be read here: "
            f"{error}"
        ) from error


def _hide_progress() -> None:
    from scoring_client.comparison.plain_model import hide_progress

    hide_progress()


def _what(
    client: ScoringClient, texts: Sequence[str], checkpoint: str, file: Path | None
) -> tuple[list[ComparedText], list[str]]:
    """Return what is compared, and what is to be said of it."""
    if file is not None:
        if texts:
            raise InvalidRequestError("give texts or --file, not both")
        return read_texts(file), []
    from scoring_client.comparison.plain_model import tokenize

    written = list(texts or DEFAULT_TEXTS)
    with _saying_which(checkpoint):
        ids = tokenize(checkpoint, written)
    for text, tokens in zip(written, ids, strict=True):
        if len(tokens) < 2:
            raise InvalidRequestError(f"{text!r} is one token: nothing precedes it")
    return [ComparedText(tokens) for tokens in ids], _tokenizer_notes(client, written, ids)


def _tokenizer_notes(
    client: ScoringClient, texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[str]:
    """Return how the server's tokens of the texts differ: it would score text so."""
    if not client.model_info().tokenizer_size:
        return ["the server has no tokenizer, and takes token ids alone"]
    notes = []
    for text, ours, theirs in zip(texts, ids, client.tokenize(texts), strict=True):
        if theirs != list(ours):
            notes.append(_tokenizer_note(text, list(ours), theirs))
    return notes


def _tokenizer_note(text: str, ours: list[int], theirs: list[int]) -> str:
    name = f"the text {visible(text)[:20]!r}"
    if theirs[1:] == ours:
        return f"the server begins {name} with token {theirs[0]}, your tokenizer does not"
    if ours[1:] == theirs:
        return f"your tokenizer begins {name} with token {ours[0]}, the server does not"
    return f"the server makes other tokens of {name}: {len(theirs)} where yours makes {len(ours)}"


def _table(found: Comparison) -> Table:
    table = Table(title=f"{found.given.tokens:,} tokens, differences in nats", title_justify="left")
    table.add_column("")
    for name in ("max", "mean", "k3"):
        table.add_column(name, justify="right")
    rows = {f"plain {found.dtype} from plain {found.wider}": found.given}
    for finding in found.findings:
        rows[f"{finding.side} from plain {found.wider}"] = finding.truth
        rows[f"{finding.side} from plain {found.dtype}"] = finding.plain
    for name, apart in rows.items():
        table.add_row(name, f"{apart.max:.2g}", f"{apart.mean:.2g}", f"{apart.k3:.2g}")
    return table
