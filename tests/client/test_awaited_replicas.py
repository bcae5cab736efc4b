"""Servers behind a name come one after another, and the name itself comes late."""

import socket
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from scoring_client import (
    InvalidRequestError,
    ScoringError,
    UnavailableError,
    replica_targets,
    wait_for_replicas,
)

ADMIN = "scoring.v1.AdminService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Resolver:
    """Stands for the system's: what a name means changes with every question.

    Args:
        answers: Addresses of each look, after what happens right before it; the last one stays.
    """

    def __init__(self, monkeypatch, answers):
        self._answers = list(answers)
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host, port, **_):
        happens, *addresses = self._answers[0]
        if len(self._answers) > 1:
            self._answers.pop(0)
        if happens is not None:
            happens()
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port)))
            for address in addresses
        ]


@contextmanager
def replicas(*hosts, known=True):
    """Servers of health alone, not started yet, on one port of several loopback addresses.

    Unless they are ``known`` to have an AdminService, health says that they have none.
    """
    servers, states, port = [], [], 0
    for host in hosts:
        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        state = health.HealthServicer()
        if known:
            state.set(ADMIN, NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(state, server)
        port = server.add_insecure_port(f"{host}:{port}")
        servers.append(server)
        states.append(state)
    try:
        yield port, servers, states
    finally:
        for server in servers:
            server.stop(grace=0).wait()


def test_the_name_and_then_the_servers_are_waited_for(monkeypatch):
    """No address, then one server that loads, then it and another that is no server yet."""
    with replicas("127.0.0.1", "127.0.0.2") as (port, servers, states):
        Resolver(
            monkeypatch,
            [
                (None,),
                (servers[0].start, "127.0.0.1"),
                (lambda: states[0].set(ADMIN, SERVING), "127.0.0.1"),
                (servers[1].start, "127.0.0.1", "127.0.0.2"),
                (lambda: states[1].set(ADMIN, SERVING), "127.0.0.1", "127.0.0.2"),
            ],
        )
        found = wait_for_replicas(f"replicas.example:{port}", 2, timeout=60)
        assert found == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]


def test_those_that_do_not_take_updates_are_left_out(monkeypatch):
    with replicas("127.0.0.1", "127.0.0.2") as (port, servers, states):
        for server in servers:
            server.start()
        states[1].set(ADMIN, SERVING)
        Resolver(monkeypatch, [(None, "127.0.0.1", "127.0.0.2")])
        assert wait_for_replicas(f"replicas.example:{port}") == [f"127.0.0.2:{port}"]
        with pytest.raises(UnavailableError, match="1 of 2 servers behind replicas") as raised:
            wait_for_replicas(f"replicas.example:{port}", 2, timeout=0.5)
        assert f"127.0.0.1:{port}: it is loading or draining" in str(raised.value)


def test_who_did_not_come_is_told():
    with pytest.raises(UnavailableError, match=r"replicas\.invalid cannot be resolved"):
        wait_for_replicas("replicas.invalid:50051", timeout=0.1)
    with pytest.raises(UnavailableError, match=r"nobody listens at 127\.0\.0\.1:1"):
        wait_for_replicas("127.0.0.1:1", timeout=0.1)
    with pytest.raises(UnavailableError, match=r"replicas\.invalid cannot be resolved") as raised:
        replica_targets("replicas.invalid:50051")
    assert isinstance(raised.value.__cause__, socket.gaierror)


def test_what_no_waiting_helps_is_told_at_once():
    with pytest.raises(InvalidRequestError, match="count"):
        wait_for_replicas("127.0.0.1:1", 0)
    with pytest.raises(InvalidRequestError, match="has no port"):
        wait_for_replicas("127.0.0.1")
    with replicas("127.0.0.1", known=False) as (port, (server,), _):
        server.start()
        with pytest.raises(ScoringError, match="--allow-admin"):
            wait_for_replicas(f"127.0.0.1:{port}", timeout=None)
