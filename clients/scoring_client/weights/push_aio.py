"""A push, for the asynchronous client."""

# ruff: noqa: ASYNC109 - gRPC enforces the deadline, and the server learns of it.

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import grpc

from scoring_client.connection.admin_channel import admin_error, unreadable
from scoring_client.connection.aio_channel import telling_closed
from scoring_client.connection.retry import growing_pauses
from scoring_client.errors import ProtocolError, ScoringError
from scoring_client.weights.given import GivenWeights, Weights
from scoring_client.weights.messages import part_messages
from scoring_client.weights.options import (
    PushOptions,
    begin_message,
    commit_message,
    plan_options,
    push_begin,
)
from scoring_client.weights.plan import WeightPlan
from scoring_client.weights.replicas import common_tensors, labels, raise_failures
from scoring_client.weights.reporter import Reporter
from scoring_client.weights.results import WeightsInfo, WeightUpdate, weight_update

FailureOf = Callable[[str], Awaitable[ScoringError | None]]
"""From the name of an update to why it failed, as far as that can be known."""


class AsyncServer(Protocol):
    """What a push needs of a client."""

    @property
    def target(self) -> str:
        """Its name, for errors."""

    async def get_weights(self, model: str | None, *, list_tensors: bool) -> WeightsInfo:
        """Return the model's tensors."""

    async def open_push(self, timeout: float | None) -> Any:
        """Begin a call that takes serialised messages."""


async def push(
    servers: Sequence[AsyncServer], weights: Weights, version: int, model: str, options: PushOptions
) -> list[WeightUpdate]:
    """Send tensors to every server and have each commit them; see the blocking ``push``.

    Tensors are read in the event loop's thread, a message at a time.
    """
    given = GivenWeights(weights)
    try:
        begin = push_begin(model, version, options)
        named = dict(zip(labels([server.target for server in servers]), servers, strict=True))
        infos = {
            name: await server.get_weights(model, list_tensors=True)
            for name, server in named.items()
        }
        plan = WeightPlan(common_tensors(infos), plan_options(options, given))
        first = begin_message(begin, server_converts=plan.leaves_conversion(given))
        report = Reporter(plan.bytes_total, options.get("on_progress"))
        streams: dict[str, _Stream] = {}
        try:
            for name, server in named.items():
                call = await server.open_push(options.get("timeout"))
                streams[name] = _Stream(call, report, partial(_failure_of, server, model))
            await _send_all(streams, first)
            # A refusal comes whole when nothing is being written meanwhile.
            await asyncio.gather(*(stream.answered.wait() for stream in streams.values()))
            _raise_early(streams)
            for message in part_messages(plan, given, on_bytes=report.add):
                await _send_all(streams, message)
                report.sent()
            await _wait_received(named, streams, model, report.bytes_sent)
            _raise_early(streams)
            commit = commit_message(plan.digest.hexdigest() if plan.digest else "")
            await asyncio.gather(*(stream.commit(commit) for stream in streams.values()))
            return await _results(streams)
        finally:
            await asyncio.gather(*(stream.close() for stream in streams.values()))
    finally:
        given.read_rest()


class _Stream:
    """A PushWeights call whose answers a task reads."""

    def __init__(self, call: Any, report: Reporter, failure_of: FailureOf) -> None:
        self._call = call
        self._report = report
        self._failure_of = failure_of
        self.error: ScoringError | None = None
        self._update: WeightUpdate | None = None
        self.answered = asyncio.Event()
        """Set by the first answer, or the end."""
        self._reader = asyncio.create_task(self._read())

    async def send(self, message: bytes) -> None:
        """Hand a message to gRPC.

        Raises:
            ScoringError: the server ended the call.
        """
        if not await self._write(message):
            await self._reader
            raise self._failure()

    async def commit(self, message: bytes) -> None:
        """Send the last message; a server that ends the call just now says why in its result."""
        if await self._write(message):
            with telling_closed():
                await self._call.done_writing()

    async def result(self) -> WeightUpdate:
        """Return the update once the call ended.

        Raises:
            ScoringError: it failed.
        """
        await self._reader
        if self.error is not None or self._update is None or self._update.phase != "committed":
            raise self._failure()
        return self._update

    async def close(self) -> None:
        """Hang up, unless it is over, and leave no task behind."""
        self._call.cancel()
        self._reader.cancel()
        # What it raises is not the first error, or was raised by who waited for it.
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _write(self, message: bytes) -> bool:
        try:
            with telling_closed():
                await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        return True

    def _failure(self) -> ScoringError:
        return self.error or ProtocolError("the server ended the update without committing it")

    async def _read(self) -> None:
        try:
            # Who waits for this task and is cancelled cancels it: that is passed on, and is no
            # error of the call.
            with telling_closed():
                self.error = await self._read_answers()
        except ScoringError as error:
            self.error = error
        finally:
            self.answered.set()

    async def _read_answers(self) -> ScoringError | None:
        """Read to the end; return why the server ended the call, if it failed."""
        try:
            async for response in self._call:
                try:
                    self._update = weight_update(response.status)
                except Exception as failure:  # noqa: BLE001 - whatever it is, it is the answer's
                    return unreadable(failure)
                self.answered.set()
                if self._update.phase != "receiving":
                    self._report.update(self._update)
        except grpc.RpcError as failure:
            return await self._true_error(admin_error(failure))
        return None

    async def _true_error(self, error: ScoringError) -> ScoringError:
        """Return why the server ended the call.

        grpc.aio puts an INTERNAL of its own in place of a status that comes while a message is
        being written. The server's own errors have a reason.
        """
        lost = error.code is grpc.StatusCode.INTERNAL and not error.reason
        if not lost or self._update is None:
            return error
        return await self._failure_of(self._update.update_id) or error


async def _failure_of(server: AsyncServer, model: str, update_id: str) -> ScoringError | None:
    """Return why an update failed, if it is the last that ended and the server can be asked."""
    try:
        last = (await server.get_weights(model, list_tensors=False)).last_update
    except ScoringError:
        return None
    return last.failure if last is not None and last.update_id == update_id else None


async def _send_all(streams: dict[str, _Stream], message: bytes) -> None:
    sent = await asyncio.gather(
        *(stream.send(message) for stream in streams.values()), return_exceptions=True
    )
    errors: dict[str, ScoringError] = {}
    for name, outcome in zip(streams, sent, strict=True):
        if isinstance(outcome, ScoringError):
            errors[name] = outcome
        elif outcome is not None:
            raise outcome
    raise_failures(len(streams), errors, {})


async def _wait_received(
    named: dict[str, AsyncServer], streams: dict[str, _Stream], model: str, sent: int
) -> None:
    """Wait until every one of several servers has all: what was handed to gRPC may be lost."""
    for name, server in named.items() if len(named) > 1 else ():
        pauses = growing_pauses()
        while streams[name].error is None:
            update = (await server.get_weights(model, list_tensors=False)).update
            if update is not None and update.bytes_received >= sent:
                break
            await asyncio.sleep(next(pauses))


def _raise_early(streams: dict[str, _Stream]) -> None:
    """Commit everywhere, unless one server has failed by now: then nowhere."""
    errors = {name: stream.error for name, stream in streams.items() if stream.error is not None}
    raise_failures(len(streams), errors, {})


async def _results(streams: dict[str, _Stream]) -> list[WeightUpdate]:
    updates: dict[str, WeightUpdate] = {}
    errors: dict[str, ScoringError] = {}
    for name, stream in streams.items():
        try:
            updates[name] = await stream.result()
        except ScoringError as error:
            errors[name] = error
    raise_failures(len(streams), errors, updates)
    return list(updates.values())
