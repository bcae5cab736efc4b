"""What the Dockerfile says, as far as tests ask."""

from __future__ import annotations

import functools
import json
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tests.e2e.served import ROOT


@dataclass(frozen=True)
class Instructions:
    """Of one Dockerfile."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, what follows it), continued lines joined, comments left out."""

    def all(self, name: str) -> list[str]:
        """What follows each instruction of a name."""
        return [rest for instruction, rest in self.lines if instruction == name]

    @property
    def entrypoint(self) -> list[str]:
        """The exec form: a shell would keep signals from the server."""
        (text,) = self.all("ENTRYPOINT")
        return list(json.loads(text))

    @property
    def environment(self) -> dict[str, str]:
        """Of the image."""
        words = (word for text in self.all("ENV") for word in shlex.split(text))
        return dict(word.split("=", 1) for word in words)

    @property
    def copied(self) -> list[str]:
        """Paths that COPY takes from the context."""
        return [
            source
            for text in self.all("COPY")
            if not text.startswith("--from=")
            for source in text.split()[:-1]
        ]


@functools.cache
def instructions() -> Instructions:
    """Those of the repository's Dockerfile."""
    text = (ROOT / "Dockerfile").read_text()
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", kept)
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return Instructions([(name, rest) for name, rest in pairs])


def is_ignored(path: Path, rules: list[str]) -> bool:
    """Whether .dockerignore keeps a path of the context out: the last rule that fits decides.

    Args:
        path: relative to the context.
        rules: lines of .dockerignore.
    """
    ignored = False
    ancestry = [path, *path.parents][:-1]
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/").strip("/")
        anywhere = rule.removeprefix("!").startswith("**/")
        fits = any(
            fnmatch(part.name, pattern) if anywhere else fnmatch(str(part), pattern)
            for part in ancestry
        )
        if fits:
            ignored = not rule.startswith("!")
    return ignored
