"""Calls of AdminService, whatever carries them: request, answer, how long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from scoring_client.connection.admin_channel import AdminSettings
from scoring_client.connection.retry import time_limit
from scoring_client.errors import ProtocolError
from scoring_client.proto import admin_pb2
from scoring_client.weights.options import PushOptions, UpdateOptions, update_request
from scoring_client.weights.results import (
    ProgressCallback,
    WeightProgress,
    WeightsInfo,
    WeightUpdate,
    weight_update,
    weights_info,
)

Answer = TypeVar("Answer")

CallsLeftCallback = Callable[[int], None]
"""Takes how many calls still run."""

PUSH_METHOD = "/scoring.v1.AdminService/PushWeights"
"""Its messages are serialised already; see weights/messages.py."""


@dataclass(frozen=True, slots=True)
class AdminCall(Generic[Answer]):
    """One call."""

    rpc: str
    """Method of the stub."""
    request: Any
    parse: Callable[[Any], Answer]
    """From each answer to what the caller gets."""
    timeout: float | None
    """Seconds; None = no limit."""

    def within(self, seconds: float) -> "AdminCall[Answer]":
        """Return the call, ended by then at the latest."""
        limit = time_limit(seconds if self.timeout is None else min(seconds, self.timeout))
        return replace(self, timeout=limit)


def get_weights_call(
    settings: AdminSettings, model: str | None, list_tensors: bool
) -> AdminCall[WeightsInfo]:
    """Return the call behind ``get_weights``."""
    request = admin_pb2.GetWeightsRequest(model=settings.name(model), list_tensors=list_tensors)
    return AdminCall("GetWeights", request, weights_info, settings.unary_timeout)


def abort_update_call(
    settings: AdminSettings, model: str | None, update_id: str
) -> AdminCall[WeightUpdate]:
    """Return the call behind ``abort_update``."""
    request = admin_pb2.AbortUpdateRequest(model=settings.name(model), update_id=update_id)
    return AdminCall(
        "AbortUpdate", request, lambda answer: weight_update(answer.status), settings.unary_timeout
    )


def flush_cache_call(settings: AdminSettings, model: str | None) -> AdminCall[int]:
    """Return the call behind ``flush_cache``."""
    request = admin_pb2.FlushCacheRequest(model=settings.name(model))
    return AdminCall(
        "FlushCache", request, lambda answer: int(answer.pages_freed), settings.unary_timeout
    )


def resume_call(settings: AdminSettings, model: str | None) -> AdminCall[None]:
    """Return the call behind ``resume``."""
    request = admin_pb2.ResumeRequest(model=settings.name(model))
    return AdminCall("Resume", request, lambda answer: None, settings.unary_timeout)


def drain_call(settings: AdminSettings, model: str | None, timeout: float | None) -> AdminCall[int]:
    """Return the call behind ``drain``, which has many answers."""
    request = admin_pb2.DrainRequest(model=settings.name(model))
    return AdminCall("Drain", request, lambda answer: int(answer.calls_left), time_limit(timeout))


def update_weights_call(
    settings: AdminSettings,
    version: int,
    path: str | None,
    repository: str | None,
    revision: str | None,
    options: UpdateOptions,
) -> AdminCall[WeightUpdate]:
    """Return the call behind ``update_weights``, which has many answers.

    Raises:
        InvalidRequestError: not exactly one source, or an option that is none.
    """
    model = options.get("model", settings.model)
    return AdminCall(
        "UpdateWeights",
        update_request(model, version, path, repository, revision, options),
        lambda answer: weight_update(answer.status),
        time_limit(options.get("timeout", settings.timeout)),
    )


class UpdateProgress:
    """Follows an update, and tells whoever waits."""

    def __init__(self, on_progress: ProgressCallback | None) -> None:
        self._on_progress = on_progress
        self._last: WeightUpdate | None = None

    def take(self, update: WeightUpdate) -> None:
        """Take what the server says of it."""
        self._last = update
        if self._on_progress is not None:
            self._on_progress(
                WeightProgress(update.phase, update.bytes_received, update.bytes_total)
            )

    def committed(self) -> WeightUpdate:
        """Return the update, whose call ended well.

        Raises:
            ProtocolError: it is not committed.
        """
        if self._last is None or self._last.phase != "committed":
            raise ProtocolError("the server ended the update without committing it")
        return self._last


class HasSettings(Protocol):
    """Either admin client."""

    @property
    def settings(self) -> AdminSettings:
        """What calls use that say nothing else."""


def push_defaults(clients: Sequence[HasSettings], options: PushOptions) -> tuple[str, PushOptions]:
    """Return the model to push and the options, with the first client's where none are given."""
    settings = clients[0].settings if clients else AdminSettings("", "", None, ())
    filled: PushOptions = {"timeout": settings.timeout, **options}
    filled["timeout"] = time_limit(filled["timeout"])
    return options.get("model", settings.model), filled
