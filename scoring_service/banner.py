"""What `serve` prints once it answers: lines to paste that show something that means something."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SERVICE = "scoring.v1.ScoringService"


@dataclass(frozen=True)
class ListenAddress:
    """Where a server listens, and what it asks of those who call."""

    address: str
    """Host and port."""
    tls: bool = False
    """It has a certificate."""
    client_certificates: bool = False
    """Clients show one too."""
    tokens: bool = False
    """Calls carry a token."""

    @property
    def target(self) -> str:
        """Where a client on this machine calls it: certificates name hosts, seldom addresses."""
        everywhere = r"(0\.0\.0\.0|\[::\]|127\.0\.0\.1|\[::1\])" if self.tls else r"0\.0\.0\.0"
        return re.sub(rf"^{everywhere}:", "localhost:", self.address)


def banner(listen: ListenAddress, has_tokenizer: bool) -> str:
    """A `scoring-client` line, then a grpcurl line, for the server behind `listen`."""
    request = _TEXT if has_tokenizer else _IDS
    question = " Which word follows “import numpy as”?" if has_tokenizer else ""
    lines = [
        f"Ready on {listen.address}.{question}",
        *_missing(listen),
        f"  {client_line(listen)}",
        f"  {grpcurl_line(listen, request)}",
    ]
    return "\n\n".join(lines) + "\n"


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


def client_line(listen: ListenAddress) -> str:
    """Contrasts two completions with the project's own client."""
    flags = []
    if listen.tls:
        flags.append('--root-certificates "$CA"')
    if listen.client_certificates:
        flags.append('--client-certificate "$CERT" --client-key "$KEY"')
    if listen.tokens:
        flags.append('--token "$TOKEN"')
    text = "--prompt 'import numpy as' --completion ' np' --completion ' banana'"
    return " ".join([_command("scoring-client"), "score --target", listen.target, *flags, text])


def grpcurl_line(listen: ListenAddress, request: Mapping[str, object]) -> str:
    """The same with grpcurl, through reflection."""
    flags = ['-cacert "$CA"' if listen.tls else "-plaintext"]
    if listen.client_certificates:
        flags.append('-cert "$CERT" -key "$KEY"')
    if listen.tokens:
        flags.append('-H "authorization: Bearer $TOKEN"')
    body = shlex.quote(json.dumps(request, separators=(",", ":")))
    return " ".join([_command("grpcurl"), *flags, "-d", body, listen.target, f"{_SERVICE}/Score"])


def _missing(listen: ListenAddress) -> list[str]:
    """What the lines take that only the caller has."""
    wanted = []
    if listen.tls:
        wanted.append("CA (the file of the authority that signed the server's certificate)")
    if listen.client_certificates:
        wanted.append("CERT and KEY (files of a client's certificate)")
    if listen.tokens:
        wanted.append("TOKEN (one with the scope score)")
    if not wanted:
        return []
    said = f"Set {', '.join(wanted)}"
    if listen.tls:
        host = listen.target.rpartition(":")[0]
        said += f"; if the certificate is not for {host}, call the name that it has"
    return [f"{said}:"]


def _command(name: str) -> str:
    """The command as it can be typed here: by name when on PATH, else by its place."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        return name
    here = Path.cwd()
    return str(beside.relative_to(here)) if beside.is_relative_to(here) else str(beside)
