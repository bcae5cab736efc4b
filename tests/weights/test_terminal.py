"""Weights from the terminal: begun, given up, and back to what was before."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from scoring_client.cli.app import main
from scoring_client.proto import admin_pb2, weights_pb2
from scoring_service.rpc.admin.config import AdminConfig
from tests.helm.hub import serving_hub
from tests.rpc.calls import failure, reason
from tests.weights.conftest import ENGINE, WeightServer, the_rest, weight_server
from tests.weights.test_push import right
from tests.weights.trainer import Trainer


class Terminal:
    """Types ``scoring-client weights`` against a server."""

    def __init__(self, server: WeightServer, capsys: pytest.CaptureFixture[str]) -> None:
        self._server, self._capsys = server, capsys

    async def __call__(self, *words: str) -> tuple[int, str, str]:
        arguments = ["weights", *words, "--target", self._server.target]
        status = await asyncio.to_thread(main, arguments)
        return status, *self._capsys.readouterr()

    async def json(self, *words: str) -> Any:
        status, out, err = await self(*words, "--json")
        assert status == 0, err
        # The server, which is in this process, logs to stdout as well, before and after.
        return json.JSONDecoder().raw_decode(out, out.index('{"update_id"'))[0]


async def test_an_update_that_somebody_began_is_given_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with weight_server() as server:
        terminal = Terminal(server, capsys)
        assert (await terminal("abort"))[0] == 1
        for named in (False, True):
            call = server.admin.PushWeights()
            options = weights_pb2.WeightUpdateOptions(version=5)
            begin = admin_pb2.PushWeightsBegin(options=options)
            await call.write(admin_pb2.PushWeightsRequest(begin=begin))
            begun = (await call.read()).status
            _, out, _ = await terminal()
            assert f"(update {begun.update_id})" in out
            status, _, err = await terminal("abort", "another")
            assert (status, "another" in err) == (1, True)
            if named:
                ended = await terminal.json("abort", begun.update_id)
                assert (ended["update_id"], ended["phase"]) == (begun.update_id, "aborted")
                assert ended["failure"]["reason"] == "UPDATE_ABORTED"
            else:
                status, out, _ = await terminal("abort")
                assert (status, "version 5, aborted" in out) == (0, True)
            _, failed = await failure(the_rest(call))
            assert reason(failed) == "UPDATE_ABORTED"
        assert (await server.weights()).version == 0


async def test_conditions_and_the_way_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer()
    for version in (trainer.step(), trainer.step()):
        save_file(trainer.states[version], tmp_path / f"{version}.safetensors")
    one, two = (str(tmp_path / f"{version}.safetensors") for version in (1, 2))
    async with weight_server() as server:
        terminal = Terminal(server, capsys)
        assert (await terminal.json("push", two, "--version", "2", "--base-version", "0"))[
            "staging"
        ] == "beside"
        await right(server, trainer)
        status, _, err = await terminal("push", one, "--version", "3", "--base-version", "1")
        assert (status, "version 2 is running, not 1" in err) == (2, True)
        status, _, err = await terminal("push", one, "--version", "1")
        assert (status, "version 2 is running, and 1 is not newer" in err) == (2, True)
        back = await terminal.json(
            *("push", one, "--version", "1", "--allow-older-version"),
            *("--staging", "in_place", "--running-samples", "abort"),
        )
        assert (back["version"], back["staging"]) == (1, "in_place")
        trainer.version = 1
        await right(server, trainer)


async def test_some_tensors_and_their_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer()
    name = next(name for name in trainer.states[0] if name.endswith("norm.weight"))
    changed = trainer.states[0][name] + 0.5
    save_file({name: changed}, tmp_path / "part.safetensors")
    file = str(tmp_path / "part.safetensors")
    async with weight_server() as server:
        terminal = Terminal(server, capsys)
        status, _, err = await terminal("push", file, "--version", "1")
        assert status == 2
        status, _, err = await terminal(
            *("push", file, "--version", "1", "--partial", "--weights-digest", "0" * 64)
        )
        assert (status, "digest" in err) == (2, True)
        await terminal.json("push", file, "--version", "1", "--partial")
        trainer.version, trainer.states[1] = 1, {**trainer.states[0], name: changed}
        await right(server, trainer)


async def test_the_server_reads_a_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer()
    version = str(trainer.step())
    trainer.network.save_pretrained(tmp_path / "new")
    admin = AdminConfig(
        roots=(tmp_path,), repositories=frozenset({"someone/policy"}), engine=ENGINE
    )
    hub = ("update", "--repository", "someone/policy", "--revision", "step-1")
    async with weight_server(admin) as server:
        terminal = Terminal(server, capsys)
        status, _, err = await terminal("update", str(tmp_path), *hub[1:], "--version", version)
        assert (status, "a path or a repository" in err) == (2, True)
        with serving_hub("someone/policy", tmp_path / "new") as asked:
            monkeypatch.setenv("HF_ENDPOINT", asked.endpoint)
            monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
            await terminal.json(*hub, "--version", version)
        assert any("/resolve/step-1/" in path for path, _ in asked.asked)
        await right(server, trainer)
