"""One call as the caller sees it, over as many attempts as it takes. Knows no network.

A client sends ``begin_attempt()``, feeds what arrives to ``feed`` and ends with ``end_attempt`` or
``failure``: so the blocking and the asynchronous client share everything but the waiting.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import grpc

from scoring_client.assembly import Assembler, PartT
from scoring_client.decoding import Preamble
from scoring_client.errors import (
    DeadlineError,
    ItemError,
    ProtocolError,
    ResultChangedError,
    ScoringError,
    UnavailableError,
    combine_item_errors,
    reworded,
)
from scoring_client.options import OnError, ProgressCallback
from scoring_client.processing import ResolvedProcessing, resolved_processing
from scoring_client.provenance import Progress, Provenance, Usage, provenance, usage
from scoring_client.resend import GroupIndices, Key, PromptIndices, in_callers_indices
from scoring_client.status import error_from_rpc, error_from_status

IndicesT = TypeVar("IndicesT", GroupIndices, PromptIndices)
ResultsT = TypeVar("ResultsT", covariant=True)


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What the caller wants of the call beside its content."""

    timeout: float | None
    """Seconds for all attempts together; None = no limit."""
    on_error: OnError
    """What to do with items that failed."""
    on_progress: ProgressCallback | None
    """Whom to tell how far the call is."""


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
    """The items of one call: which are unfinished, and what to make of an answer."""

    rpc: ClassVar[str]
    """Name of the RPC."""

    def __init__(
        self, assemblers: dict[Key, Assembler[PartT]], request_id: str, settings: JobSettings
    ) -> None:
        if settings.on_error not in ("raise", "return"):
            raise ValueError(f'on_error is "raise" or "return", got {settings.on_error!r}')
        self.settings = settings
        self.request_id = request_id
        self.usage = Usage()
        self.provenance: Provenance | None = None
        self.processing: tuple[ResolvedProcessing, ...] = ()
        self._unfinished = assemblers
        self._attempt = _Attempt(unfinished_at_begin=len(assemblers))
        self._indices: IndicesT
        self._items_total = len(assemblers)
        self._item_errors: list[ItemError] = []

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
        """
        if self._attempt.summarised:
            raise self._broken("a message came after the summary")
        if message.HasField("provenance"):
            self.provenance = self._attempt.preamble.provenance = provenance(message.provenance)
        if message.processing:
            self._attempt.preamble.processing = tuple(map(resolved_processing, message.processing))
            known = dict.fromkeys((*self.processing, *self._attempt.preamble.processing))
            self.processing = tuple(known)
        for result in message.results:
            try:
                yield from self._take(result)
            except ProtocolError as error:
                raise self._broken(error.message) from error
        if message.HasField("progress"):
            self._attempt.tokens_ahead = message.progress.tokens_ahead
            self._report()
        if message.HasField("summary"):
            self._attempt.summarised = True
            self.usage += usage(message.summary.usage)

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
                f"the stream ended with {len(self._unfinished)} of {self._items_total} items "
                f"unfinished, the first of them {first}"
            )

    def failure(self, error: grpc.RpcError) -> ScoringError:
        """Return what ended an attempt, in the caller's indices."""
        failure = error_from_rpc(
            error, request_id=self.request_id, request_bytes=self._attempt.request_bytes
        )
        failure = in_callers_indices(failure, self._indices)
        if isinstance(failure, (DeadlineError, UnavailableError)):
            open_items = f"{len(self._unfinished)} of {self._items_total} items unfinished"
            failure = reworded(failure, f"{failure.message} ({open_items})")
        return failure

    def raise_item_errors(self) -> None:
        """Raise for the items that failed, unless the caller has their errors in the results.

        Raises:
            ScoringError: of the class of the first item's error, with all of them in item_errors.
        """
        if self._item_errors and self.settings.on_error == "raise":
            raise combine_item_errors(self._item_errors, self._items_total)

    @abstractmethod
    def results(self, parts: list[PartT]) -> ResultsT:
        """Return the whole items in the shape of the request."""

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
            error = error_from_status(status, request_id=self.request_id)
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
            error.request_id = self.request_id
            self._attempt.abandoned.add(key)
            yield from self._fail(key, error)
            return
        if decoded.last:
            self._end(key)
        if part is not None:
            yield part

    def _fail(self, key: Key, error: ScoringError) -> Iterator[PartT]:
        self._end(key)
        self._item_errors.append(ItemError(self._item_path(key), error))
        if self.settings.on_error == "return":
            yield self._failed(key, error)

    def _end(self, key: Key) -> None:
        del self._unfinished[key]
        self._report()

    def _report(self) -> None:
        if self.settings.on_progress is not None:
            done = self._items_total - len(self._unfinished)
            self.settings.on_progress(Progress(done, self._items_total, self._attempt.tokens_ahead))

    def _broken(self, what: str) -> ProtocolError:
        return ProtocolError(f"the answer breaks the contract: {what}", request_id=self.request_id)
