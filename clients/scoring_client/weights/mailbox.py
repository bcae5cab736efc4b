"""Messages on their way from the caller's thread to gRPC's."""

import threading
from collections import deque
from collections.abc import Iterator


class Mailbox:
    """A bounded queue that gRPC iterates over, and that can be closed from either end.

    Tensors are read in the caller's thread, because the current CUDA device, gradient modes and
    process groups belong to it; gRPC takes messages in a thread of its own.
    """

    def __init__(self, depth: int) -> None:
        """Hold at most ``depth`` messages."""
        self._depth = depth
        self._messages: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False

    def put(self, message: bytes) -> bool:
        """Append a message once there is room; False when nobody takes messages any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._messages) < self._depth)
            if self._closed:
                return False
            self._messages.append(message)
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """Let the iteration end after the messages that are there."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Drop the messages and end the iteration."""
        with self._changed:
            self._closed = True
            self._messages.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ended or bool(self._messages))
            if not self._messages:
                raise StopIteration
            message = self._messages.popleft()
            self._changed.notify_all()
            return message
