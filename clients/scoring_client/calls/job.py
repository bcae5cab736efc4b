"""The items of one call, or of a part of it, over as many attempts as it takes. Knows no network.

A client sends ``begin_attempt()``, feeds what arrives to ``feed`` and asks ``wait_after`` whether
to begin again: so the blocking and the asynchronous client share everything but the waiting.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

import grpc

from scoring_client.calls.assembly import Assembler, PartT
from scoring_client.calls.decoding import Preamble
from scoring_client.calls.division import PartSize, Unit, divide
from scoring_client.calls.resend import GroupIndices, Key, PromptIndices, in_callers_indices
from scoring_client.calls.state import CallState, JobSettings
from scoring_client.connection.retry import Attempts
from scoring_client.connection.status import error_from_rpc, error_from_status
from scoring_client.errors import (
    DeadlineError,
    ItemError,
    ProtocolError,
    ResultChangedError,
    ScoringError,
    UnavailableError,
    invalid,
    reworded,
)
from scoring_client.values.processing import resolved_processing
from scoring_client.values.provenance import provenance, usage

IndicesT = TypeVar("IndicesT", GroupIndices, PromptIndices)
ResultsT = TypeVar("ResultsT", covariant=True)


@dataclass(slots=True)
class _Attempt:
    """What is known of the attempt that runs."""

    unfinished_at_begin: int
    """Items that it was sent for."""
    request_bytes: int = 0
    """Size of its request."""
    preamble: Preamble = field(default_factory=Preamble)
    """What its first message said."""
    tokens_ahead: int = 0
    """As the server last said."""
    abandoned: set[Key] = field(default_factory=set)
    """Items given up, whose slices still arrive."""
    summarised: bool = False
    """Whether its last message came."""


class Job(ABC, Generic[PartT, IndicesT, ResultsT]):
    """Items that travel together: which are unfinished, and what to make of an answer.

    At first all those of a call; ``divide`` makes several of it, which share its ``call``.
    """

    rpc: ClassVar[str]
    """Name of the RPC."""
    iterator: ClassVar[str]
    """Name of the clients' method that yields items as they end."""

    def __init__(
        self, assemblers: dict[Key, Assembler[PartT]], request_id: str, settings: JobSettings
    ) -> None:
        if settings.on_error not in ("raise", "return"):
            raise invalid("on_error", f'expected "raise" or "return", got {settings.on_error!r}')
        self.call = CallState(settings, request_id, len(assemblers))
        self._unfinished = assemblers
        self._attempt = _Attempt(unfinished_at_begin=len(assemblers))
        self._indices: IndicesT

    @property
    def divisible_tokens(self) -> int:
        """About how many tokens the call has; 0 when it cannot be divided."""
        units = self._units(PartSize(tokens=1))
        return sum(unit.tokens for unit in units) if len(units) > 1 else 0

    def divide(self, size: PartSize) -> list[Self]:
        """Return the call as parts of about this size; itself when there is but one.

        Begin no attempt of this job afterwards, only of the parts.
        """
        parts = divide(self._units(size), size)
        if len(parts) == 1:
            return [self]
        self._prepare_for_parts()
        return [self._part({key: self._unfinished[key] for key in keys}) for keys in parts]

    def _part(self, unfinished: dict[Key, Assembler[PartT]]) -> Self:
        part = copy.copy(self)
        part._unfinished = unfinished
        part._attempt = _Attempt(unfinished_at_begin=len(unfinished))
        return part

    @property
    @abstractmethod
    def model(self) -> str:
        """Name of the model that the call asks for."""

    @property
    def done(self) -> bool:
        """Whether every item ended, well or not."""
        return not self._unfinished

    @property
    def progressed(self) -> bool:
        """Whether the current attempt ended at least one item."""
        return len(self._unfinished) < self._attempt.unfinished_at_begin

    def begin_attempt(self) -> Any:
        """Return the request for everything that is unfinished."""
        self._attempt = _Attempt(unfinished_at_begin=len(self._unfinished))
        for assembler in self._unfinished.values():
            assembler.restart()
        request, self._indices = self._request_for(self._unfinished)
        self._attempt.request_bytes = request.ByteSize()
        return request

    def feed(self, message: Any) -> Iterator[PartT]:
        """Yield what a message of the answer has for the caller.

        Raises:
            ProtocolError: the message breaks the contract.
            MixedWeightsError: see CallState.computed_by.
        """
        if self._attempt.summarised:
            raise self._broken("a message came after the summary")
        if message.HasField("provenance"):
            self._attempt.preamble.provenance = provenance(message.provenance)
            self.call.computed_by(self._attempt.preamble.provenance)
        if message.processing:
            self._attempt.preamble.processing = tuple(map(resolved_processing, message.processing))
            self.call.processed_by(self._attempt.preamble.processing)
        for result in message.results:
            try:
                yield from self._take(result)
            except ProtocolError as error:
                raise self._broken(error.message) from error
        if message.HasField("progress"):
            self._attempt.tokens_ahead = message.progress.tokens_ahead
            self.call.report(self._attempt.tokens_ahead)
        if message.HasField("summary"):
            self._attempt.summarised = True
            self.call.usage += usage(message.summary.usage)

    def end_attempt(self) -> None:
        """Accept the end of a stream that ended well.

        Raises:
            ProtocolError: it ended before its summary, or with items unfinished.
        """
        if not self._attempt.summarised:
            raise self._broken("the stream ended without a summary")
        if self._unfinished:
            first = self._item_path(next(iter(self._unfinished)))
            raise self._broken(
                f"the stream ended with {len(self._unfinished)} of {self.call.items_total} items "
                f"unfinished, the first of them {first}"
            )

    def wait_after(self, error: grpc.RpcError | None, attempts: Attempts) -> float | None:
        """Return the seconds to wait before the next attempt; None when none is needed.

        Args:
            error: What ended the attempt; None = it ended well.
            attempts: Those of this job.

        Raises:
            ScoringError: there is no next attempt, or the answer breaks the contract.
        """
        if error is None:
            self.end_attempt()
            return None
        # When every item had arrived, nothing of value is lost with the summary.
        if self.done:
            return None
        return attempts.wait_after(self.failure(error), progressed=self.progressed)

    def failure(self, error: grpc.RpcError) -> ScoringError:
        """Return what ended an attempt, in the caller's indices."""
        failure = error_from_rpc(
            error, request_id=self.call.request_id, request_bytes=self._attempt.request_bytes
        )
        failure = in_callers_indices(failure, self._indices)
        if isinstance(failure, (DeadlineError, UnavailableError)):
            failure = reworded(failure, self._how_far(failure))
        return failure

    def _how_far(self, failure: ScoringError) -> str:
        unfinished = self.call.items_total - self.call.items_done
        open_items = f"{unfinished} of {self.call.items_total} items unfinished"
        timeout = self.call.settings.timeout
        # What gRPC says of its own deadline is about streams; a server's word has a reason.
        if isinstance(failure, DeadlineError) and not failure.reason and timeout is not None:
            return (
                f"the timeout of {timeout:g} s passed; {open_items}; raise timeout= or add replicas"
            )
        return f"{failure.message} ({open_items})"

    @contextmanager
    def losing_what_is_finished(self) -> Iterator[None]:
        """Have a timeout that takes finished items along say how they are kept."""
        try:
            yield
        except DeadlineError as error:
            done = self.call.items_done
            if done == 0:
                raise
            lost = f"what is finished ({done} of {self.call.items_total} items) is lost"
            advice = f"{lost}: {self.iterator} yields each as it ends"
            raise reworded(error, f"{error.message}; {advice}") from error

    @abstractmethod
    def results(self, parts: list[PartT]) -> ResultsT:
        """Return the whole items in the shape of the request."""

    @abstractmethod
    def _units(self, size: PartSize) -> list[Unit]:
        """Return what of the call stays together, in the caller's order."""

    def _prepare_for_parts(self) -> None:
        """Settle what all parts must agree on."""

    @abstractmethod
    def _request_for(self, unfinished: dict[Key, Any]) -> tuple[Any, IndicesT]:
        """Return a request for these items, and how its indices translate."""

    @abstractmethod
    def _keys(self, result: Any) -> list[Key]:
        """Return the items that a result speaks of: one, or all those of a group or prompt."""

    @abstractmethod
    def _decode(self, result: Any, key: Key) -> PartT:
        """Return a slice."""

    @abstractmethod
    def _failed(self, key: Key, error: ScoringError) -> PartT:
        """Return a result that stands for an item that failed."""

    @abstractmethod
    def _item_path(self, key: Key) -> str:
        """Return how the caller knows an item."""

    @abstractmethod
    def _status_of(self, result: Any) -> Any:
        """Return the status of a result that failed, else None."""

    def _take(self, result: Any) -> Iterator[PartT]:
        keys = self._keys(result)
        if self._attempt.abandoned.issuperset(keys):
            return
        for key in keys:
            if key not in self._unfinished:
                raise ProtocolError(f"a result for {self._item_path(key)}, which had ended")
        if (status := self._status_of(result)) is not None:
            error = error_from_status(status, request_id=self.call.request_id)
            error = in_callers_indices(error, self._indices)
            for key in keys:
                yield from self._fail(key, error)
            return
        (key,) = keys
        try:
            decoded = self._decode(result, key)
            part = self._unfinished[key].add(decoded)
        except ProtocolError as error:
            raise ProtocolError(f"{self._item_path(key)}: {error.message}") from error
        except ResultChangedError as error:
            error.request_id = self.call.request_id
            self._attempt.abandoned.add(key)
            yield from self._fail(key, error)
            return
        if decoded.last:
            self._end(key)
        if part is not None:
            yield part

    def _fail(self, key: Key, error: ScoringError) -> Iterator[PartT]:
        self._end(key)
        self.call.item_errors.append(ItemError(self._item_path(key), error))
        if self.call.settings.on_error == "return":
            yield self._failed(key, error)

    def _end(self, key: Key) -> None:
        del self._unfinished[key]
        self.call.items_done += 1
        self.call.report(self._attempt.tokens_ahead)

    def _broken(self, what: str) -> ProtocolError:
        message = f"the answer breaks the contract: {what}"
        return ProtocolError(message, request_id=self.call.request_id)
