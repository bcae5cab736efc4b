"""A push, for the blocking client: tensors are read once, whatever the number of servers."""

import time
from collections.abc import Sequence
from typing import Protocol

from scoring_client.connection.forks import running_call
from scoring_client.connection.retry import growing_pauses
from scoring_client.errors import ScoringError
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
from scoring_client.weights.results import WeightsInfo, WeightUpdate
from scoring_client.weights.stream import PushStream

_LOOK_SECONDS = 1.0
"""How long to wait for news before looking whether the caller was interrupted."""


class Server(Protocol):
    """What a push needs of a client."""

    @property
    def target(self) -> str:
        """Its name, for errors."""

    def get_weights(self, model: str | None, *, list_tensors: bool) -> WeightsInfo:
        """Return the model's tensors."""

    def open_push(self, timeout: float | None) -> PushStream:
        """Begin a stream."""


@running_call()
def push(
    servers: Sequence[Server], weights: Weights, version: int, model: str, options: PushOptions
) -> list[WeightUpdate]:
    """Send tensors to every server and have each commit them; in the order of ``servers``.

    Raises:
        InvalidRequestError: the tensors are not the model's.
        ScoringError: of one server.
        ReplicaError: of several servers.
    """
    given = GivenWeights(weights)
    try:
        begin = push_begin(model, version, options)
        named = dict(zip(labels([server.target for server in servers]), servers, strict=True))
        infos = {name: s.get_weights(model, list_tensors=True) for name, s in named.items()}
        plan = WeightPlan(common_tensors(infos), plan_options(options, given))
        first = begin_message(begin, server_converts=plan.leaves_conversion(given))
        timeout = options.get("timeout")
        streams: dict[str, PushStream] = {}
        try:
            for name, server in named.items():
                streams[name] = server.open_push(timeout)
            report = Reporter(plan.bytes_total, options.get("on_progress"))
            _send_all(streams, first)
            for message in part_messages(plan, given, on_bytes=report.add):
                _send_all(streams, message)
                report.sent()
            _wait_received(named, streams, model, report.bytes_sent)
            _commit_all(streams, plan)
            _follow(streams, report)
        except BaseException:
            for stream in streams.values():
                stream.cancel()
            raise
        return _results(streams)
    finally:
        given.read_rest()


def _send_all(streams: dict[str, PushStream], message: bytes) -> None:
    errors: dict[str, ScoringError] = {}
    for target, stream in streams.items():
        try:
            stream.send(message)
        except ScoringError as error:
            errors[target] = error
    _raise_early(streams, errors)


def _wait_received(
    named: dict[str, Server], streams: dict[str, PushStream], model: str, sent: int
) -> None:
    """Wait until every one of several servers has all: what was handed to gRPC may be lost."""
    for name, server in named.items() if len(named) > 1 else ():
        pauses = growing_pauses()
        while streams[name].error is None:
            update = server.get_weights(model, list_tensors=False).update
            if update is not None and update.bytes_received >= sent:
                break
            time.sleep(next(pauses))


def _commit_all(streams: dict[str, PushStream], plan: WeightPlan) -> None:
    """Commit everywhere, unless one server has failed by now: then nowhere."""
    failed = {target: stream.error for target, stream in streams.items()}
    _raise_early(streams, {target: error for target, error in failed.items() if error})
    commit = commit_message(plan.digest.hexdigest() if plan.digest else "")
    for stream in streams.values():
        # A server that ends the call just now says why in its result.
        if stream.offer(commit):
            stream.end()


def _follow(streams: dict[str, PushStream], report: Reporter) -> None:
    for stream in streams.values():
        seen: WeightUpdate | None = None
        while not stream.wait(seen, _LOOK_SECONDS):
            if stream.update is not None and stream.update is not seen:
                seen = stream.update
                report.update(seen)
    last = next(iter(streams.values())).update
    if last is not None:
        report.update(last)


def _results(streams: dict[str, PushStream]) -> list[WeightUpdate]:
    updates: dict[str, WeightUpdate] = {}
    errors: dict[str, ScoringError] = {}
    for target, stream in streams.items():
        try:
            updates[target] = stream.result()
        except ScoringError as error:
            errors[target] = error
    raise_failures(len(streams), errors, updates)
    return list(updates.values())


def _raise_early(streams: dict[str, PushStream], errors: dict[str, ScoringError]) -> None:
    raise_failures(len(streams), errors, {})
