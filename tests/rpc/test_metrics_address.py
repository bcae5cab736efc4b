"""Addresses that gRPC answers on, and metrics as well."""

from __future__ import annotations

import socket
import urllib.request

import grpc
import pytest

from scoring_service.rpc.listening import listen
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.metrics_http import listening_address


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("[::1]", "[::1]")]
)
def test_a_host_is_written_as_for_grpc(host: str, url: str) -> None:
    if host == "[::1]" and not has_ipv6():
        pytest.skip("no IPv6 here")
    port = Metrics().serve(host, 0)
    with urllib.request.urlopen(f"http://{url}:{port}/metrics") as answer:
        assert b"scoring_parts_retried_total" in answer.read()


@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "[::]", "0.0.0.0"])
async def test_numbers_of_ipv6_need_no_brackets(host: str) -> None:
    """Nor does 0.0.0.0, as the chart has it, leave out a cluster of IPv6 alone."""
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    server = grpc.aio.server()
    port = listen(server.add_insecure_port, host, 0)
    await server.start()
    with socket.create_connection(("::1", port), timeout=30):
        await server.stop(None)


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_all_addresses_are_those_of_both_families(
    monkeypatch: pytest.MonkeyPatch, host: str, dual: bool
) -> None:
    """As gRPC has it: a cluster of IPv6 alone could not read metrics otherwise."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: dual)
    assert listening_address(host) == ("::" if dual else host.strip("[]"))
