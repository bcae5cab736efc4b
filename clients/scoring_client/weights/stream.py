"""One server's end of a push, for the blocking client."""

import threading
from typing import Any

import grpc

from scoring_client.connection.admin_channel import admin_error, unreadable
from scoring_client.errors import ProtocolError, ScoringError
from scoring_client.weights.mailbox import Mailbox
from scoring_client.weights.results import WeightUpdate, weight_update

_DEPTH = 4
"""Messages that wait for gRPC, besides those in its own buffers."""


class PushStream:
    """A PushWeights call whose answers are read by a thread, as they come."""

    def __init__(self, method: Any, timeout: float | None, metadata: Any) -> None:
        """Begin the call; ``method`` takes serialised messages."""
        self._outgoing = Mailbox(_DEPTH)
        self._call = method(self._outgoing, timeout=timeout, metadata=metadata)
        self._changed = threading.Condition()
        self._update: WeightUpdate | None = None
        self._error: ScoringError | None = None
        self._over = False
        self._reader = threading.Thread(target=self._read, name="scoring-push", daemon=True)
        self._reader.start()

    def send(self, message: bytes) -> None:
        """Hand a message to gRPC once it has room.

        Raises:
            ScoringError: the server ended the call.
        """
        if not self.offer(message):
            self._reader.join()
            raise self._failure()

    def offer(self, message: bytes) -> bool:
        """Hand a message to gRPC once it has room; False when the call has ended."""
        return self._outgoing.put(message)

    def end(self) -> None:
        """There are no more messages."""
        self._outgoing.end()

    @property
    def update(self) -> WeightUpdate | None:
        """What the server said last."""
        return self._update

    @property
    def error(self) -> ScoringError | None:
        """Why the call failed, once it has."""
        return self._error

    def wait(self, seen: WeightUpdate | None, timeout: float) -> bool:
        """Wait for another answer than ``seen``, or the end; True when it ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._update is not seen, timeout)
            return self._over

    def result(self) -> WeightUpdate:
        """Return the update once the call ended.

        Raises:
            ScoringError: it failed.
        """
        self._reader.join()
        if self._error is not None or self._update is None or self._update.phase != "committed":
            raise self._failure()
        return self._update

    def cancel(self) -> None:
        """Hang up: the server gives the update up, unless it is committed."""
        self._outgoing.close()
        self._call.cancel()
        self._reader.join()

    def _failure(self) -> ScoringError:
        return self._error or ProtocolError("the server ended the update without committing it")

    def _read(self) -> None:
        error: ScoringError | None = None
        try:
            for response in self._call:
                with self._changed:
                    self._update = weight_update(response.status)
                    self._changed.notify_all()
        except grpc.RpcError as failure:
            error = admin_error(failure)
        except Exception as failure:  # noqa: BLE001 - raised in the caller's thread
            error = unreadable(failure)
        finally:
            # Whatever ended this thread, nobody reads any more: who waits for it is let go.
            self._call.cancel()
            with self._changed:
                self._error = error
                self._over = True
                self._changed.notify_all()
            self._outgoing.close()
