#!/usr/bin/env python3
"""Follow ``docs/quickstart.md`` to the letter, in a clone of this repository.

    python tools/follow_quickstart.py            with the environment that is here: seconds
    python tools/follow_quickstart.py --fresh    with nothing installed: minutes, as for a newcomer

What is marked ``<!-- follow -->`` in the page is typed, one block after another, in one shell;
``follow: server`` in a terminal of its own; ``follow: NAME`` is put into a file of that name.
Only the port is another one. Exits with what failed first; with ``--fresh`` also with 1 if it took
longer than the page promises. The last line of standard error has the seconds.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- follow(?:: (\S+))? -->\n```\w+\n(.*?)```", re.DOTALL)
PROMISED = 600.0
"""Seconds that the page names, for everything."""
PATIENCE = 900.0
"""Seconds until the server has to be ready, installation included."""


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "scoring-service"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        if "--fresh" not in arguments:
            _lend_environment(clone)
        code = follow(clone)
    return verdict(code, time.monotonic() - begun, fresh="--fresh" in arguments)


def verdict(code: int, seconds: float, *, fresh: bool) -> int:
    """Say how long it took; return the exit code, which a promise that was not kept makes 1."""
    late = fresh and seconds > PROMISED
    promise = f", of {PROMISED:.0f} s promised" if fresh else ""
    said = "followed" if code == 0 else "failed"
    print(f"{said} in {seconds:.0f} s{promise}", file=sys.stderr)
    return code or int(late)


def follow(clone: Path) -> int:
    """Type what the clone's page says; return the exit code of what failed, or 0."""
    blocks = BLOCK.findall((clone / "docs" / "quickstart.md").read_text())
    port = str(_free_port())
    # Every flag is also a variable, so `make serve` can be typed as it stands.
    env = {**os.environ, "SCORING_PORT": port, "NO_COLOR": "1"}
    shell: list[str] = []
    with _serving(clone, env, [text for name, text in blocks if name == "server"]):
        for name, text in blocks:
            text = text.replace("localhost:50051", f"localhost:{port}")
            if name == "":
                shell.append(text)
            elif name != "server":
                (clone / name).write_text(text)
        command = ["bash", "-euxo", "pipefail", "-c", "\n".join(shell)]
        return subprocess.run(command, cwd=clone, env=env, check=False).returncode


@contextmanager
def _serving(clone: Path, env: dict[str, str], commands: list[str]) -> Iterator[None]:
    """Run the server's terminal until its page says it is ready, and end it afterwards.

    Raises:
        SystemExit: it ended by itself, or was not ready in time.
    """
    server = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=clone, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    ready = threading.Event()
    reader = threading.Thread(target=_read, args=(server, ready), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready.wait(0.2):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the server did not become ready")
        yield
    finally:
        # What Ctrl-C sends, to make and to the server alike.
        os.killpg(server.pid, signal.SIGINT)
        server.wait(60)
        reader.join(10)


def _read(server: subprocess.Popen[str], ready: threading.Event) -> None:
    for line in server.stdout or ():
        print(line, end="", flush=True)
        if line.strip().startswith("Ready on"):
            ready.set()


def _lend_environment(clone: Path) -> None:
    """Let the clone use this checkout's environment, with its own code in front."""
    (clone / ".venv").symlink_to(ROOT / ".venv")
    for name in ("pyproject.toml", "constraints.txt", "tools/install_torch.sh"):
        # Not newer than the environment, or make would install the clone into it.
        os.utime(clone / name, (0, 0))
    os.environ["PYTHONPATH"] = f"{clone}{os.pathsep}{clone / 'clients'}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
