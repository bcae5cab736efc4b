"""What `serve` prints once it answers: lines to paste that show something that means something."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

_SERVICE = "scoring.v1.ScoringService"


def banner(address: str, has_tokenizer: bool) -> str:
    """A `scoring-client` line, then a grpcurl line, for the server at `address`."""
    target = address.replace("0.0.0.0:", "localhost:", 1)
    if not has_tokenizer:
        return f"Ready on {address}.\n\n  {client_line(target)}\n\n  {grpcurl_line(target, _IDS)}\n"
    return (
        f"Ready on {address}. Which word follows “import numpy as”?\n\n"
        f"  {client_line(target)}\n\n"
        f"  {grpcurl_line(target, _TEXT)}\n"
    )


_TEXT = {
    "groups": [
        {
            "prompt": {"text": "import numpy as"},
            "completions": [{"text": " np"}, {"text": " banana"}],
        }
    ],
    "outputs": {"tokens": True, "rank": True},
}

_IDS = {"groups": [{"prompt": {"token_ids": [1]}, "completions": [{"token_ids": [2, 3]}]}]}


def client_line(target: str) -> str:
    """Contrasts two completions with the project's own client."""
    client = _command("scoring-client")
    text = "--prompt 'import numpy as' --completion ' np' --completion ' banana'"
    return f"{client} score --target {target} {text}"


def grpcurl_line(target: str, request: Mapping[str, object]) -> str:
    """The same with grpcurl, through reflection."""
    body = shlex.quote(json.dumps(request, separators=(",", ":")))
    return f"{_command('grpcurl')} -plaintext -d {body} {target} {_SERVICE}/Score"


def _command(name: str) -> str:
    """The command as it can be typed here: by name when on PATH, else by its place."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        return name
    here = Path.cwd()
    return str(beside.relative_to(here)) if beside.is_relative_to(here) else str(beside)
