"""`scoring-service health`: what an image's health check runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.e2e.served import BIN, serving
from tests.rpc.authorities import Authority


def health(*arguments: str, **env: str) -> tuple[int, str]:
    """(exit code, what it printed)."""
    ended = subprocess.run(
        [BIN / "scoring-service", "health", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, (ended.stdout + ended.stderr).strip()


def test_alive_while_it_loads_ready_once_it_answers(tmp_path: Path) -> None:
    certificate, key = Authority().server_files(tmp_path / "tls")
    settings = tmp_path / "serve.yaml"
    settings.write_text(f"tls_certificate: {certificate}\ntls_key: {key}\nhealth_port: 0\n")
    with serving("--config", str(settings)) as server:
        port = server.wait_for(r'"health_port": (\d+)', server.err)[1]
        # The settings of the server are the settings of the question; the port was a free one.
        assert health("--config", str(settings), SCORING_HEALTH_PORT=port, SCORING_MODEL="any")[
            1
        ] in ("SERVING", "NOT_SERVING")
        assert health("--alive", SCORING_HEALTH_PORT=port) == (0, "SERVING")
        assert server.ready
        assert health("--host", "0.0.0.0", SCORING_HEALTH_PORT=port) == (0, "SERVING")
        server.end()
        code, said = health("--alive", "--timeout", "2", SCORING_HEALTH_PORT=port)
        assert code == 1
        assert f"127.0.0.1:{port}: UNAVAILABLE" in said


def test_a_port_with_tls_is_not_asked(tmp_path: Path) -> None:
    code, said = health("--tls-certificate", str(tmp_path / "cert.pem"))
    assert code == 2
    assert "--health-port" in said


def test_a_port_without_tls_is_asked_where_there_is_no_other() -> None:
    with serving() as server:
        assert server.ready
        port = server.ready.rpartition(":")[2]
        assert health("--port", port) == (0, "SERVING")
