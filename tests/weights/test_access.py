"""Who may change the weights, and where the service is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from scoring_client.proto import admin_pb2, admin_pb2_grpc
from scoring_service.config import ServeConfig
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.serving.settings import admin_config
from tests.rpc.calls import failure, reason, violations
from tests.rpc.conftest import run_server
from tests.weights.conftest import ENGINE, weight_server
from tests.weights.test_files import request

READER, OPERATOR = "r" * 20, "o" * 20


async def once(call: Any) -> Any:
    """An answer without a stream, as one."""
    yield await call


async def services(channel: grpc.aio.Channel, **options: Any) -> set[str]:
    """What reflection lists."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([ask]), **options):
        return {service.name for service in answer.list_services_response.service}
    raise AssertionError("reflection did not answer")


async def test_scopes(tmp_path: Path) -> None:
    """AdminService wants the scope `admin`, and only that."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"reader score {READER}\noperator admin {OPERATOR}\n")
    options = {"tokens": tokens, "admin": AdminConfig(engine=ENGINE)}
    async with (
        run_server(lambda _index: LocalExecutor(ENGINE), **options) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        stub = admin_pb2_grpc.AdminServiceStub(channel)

        def ask(token: str | None) -> Any:
            metadata = [] if token is None else [("authorization", f"Bearer {token}")]
            return once(stub.GetWeights(admin_pb2.GetWeightsRequest(), metadata=metadata))

        for token, wanted in ((None, "UNAUTHENTICATED"), (READER, "PERMISSION_DENIED")):
            code, status = await failure(ask(token))
            assert (code.name, reason(status)) == (wanted, wanted)
        assert [answer.model async for answer in ask(OPERATOR)] == ["tiny"]
        push = stub.PushWeights(iter([]), metadata=[("authorization", f"Bearer {READER}")])
        code, status = await failure(push)
        assert (code.name, reason(status)) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        metadata = [("authorization", f"Bearer {READER}")]
        assert "scoring.v1.AdminService" in await services(channel, metadata=metadata)


async def test_a_server_without_it() -> None:
    """UNIMPLEMENTED, and reflection does not list it."""
    async with (
        run_server(lambda _index: LocalExecutor(ENGINE)) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        code, _ = await failure(once(stub.GetWeights(admin_pb2.GetWeightsRequest())))
        assert code == grpc.StatusCode.UNIMPLEMENTED
        assert "scoring.v1.AdminService" not in await services(channel)


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({}, True),
        ({"host": "0.0.0.0", "allow_insecure": True}, False),
        ({"host": "0.0.0.0", "allow_insecure": True, "allow_admin": True}, True),
        ({"host": "0.0.0.0", "auth_tokens": Path("t")}, True),
        ({"host": "0.0.0.0", "tls_client_ca": Path("c")}, True),
    ],
)
def test_where_the_service_is(settings: dict[str, Any], *, there: bool) -> None:
    """Where callers are known, or nobody else can call, or it was asked for."""
    assert (admin_config(ServeConfig(**settings), ENGINE) is not None) == there


def test_certificates_need_names() -> None:
    """With certificates and without tokens only those that are listed have the scope."""
    config = ServeConfig(tls_client_ca=Path("c"), admin_names=("trainer",))
    admin = admin_config(config, ENGINE)
    assert admin is not None
    assert admin.names == {"trainer"}
    tokens = admin_config(ServeConfig(tls_client_ca=Path("c"), auth_tokens=Path("t")), ENGINE)
    assert tokens is not None
    assert tokens.names is None


async def test_callers_that_are_not_named() -> None:
    """PERMISSION_DENIED, by every RPC."""
    async with weight_server(AdminConfig(names=frozenset({"trainer"}), engine=ENGINE)) as server:
        stub = server.admin

        for answers in (
            once(stub.GetWeights(admin_pb2.GetWeightsRequest())),
            once(stub.AbortUpdate(admin_pb2.AbortUpdateRequest())),
            once(stub.FlushCache(admin_pb2.FlushCacheRequest())),
            once(stub.Resume(admin_pb2.ResumeRequest())),
            stub.Drain(admin_pb2.DrainRequest()),
            stub.UpdateWeights(request(os.sep, 1)),
            stub.PushWeights(iter([admin_pb2.PushWeightsRequest()])),
        ):
            code, status = await failure(answers)
            assert (code, reason(status)) == (
                grpc.StatusCode.PERMISSION_DENIED,
                "PERMISSION_DENIED",
            )
            assert not violations(status)
