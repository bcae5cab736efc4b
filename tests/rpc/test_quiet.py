"""What gRPC itself prints of peers that speak no TLS: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.rpc.authorities import Authority

CODE = """
import asyncio, socket, sys
from pathlib import Path
from scoring_service.rpc.tls import TlsFiles, server_credentials
import grpc

async def main():
    server = grpc.aio.server()
    credentials = server_credentials(TlsFiles(*map(Path, sys.argv[1:])))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()

    def call():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            while plain.recv(1000):
                pass

    for _ in range(3):
        await asyncio.to_thread(call)
    await server.stop(None)
    print("done")

asyncio.run(main())
"""


def test_connections_without_tls_leave_no_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    ended = subprocess.run(
        [sys.executable, "-c", CODE, *Authority().server_files(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("done\n", "")
