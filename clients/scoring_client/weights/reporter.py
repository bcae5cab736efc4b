"""How far a push is, for its caller."""

from scoring_client.weights.results import Phase, ProgressCallback, WeightProgress, WeightUpdate


class Reporter:
    """Tells a caller how far its push is."""

    def __init__(self, bytes_total: int, callback: ProgressCallback | None) -> None:
        self.bytes_sent = 0
        """Bytes of tensors handed out so far."""
        self._bytes_total = bytes_total
        self._callback = callback

    def add(self, size: int) -> None:
        """So many more bytes are being sent."""
        self.bytes_sent += size

    def sent(self) -> None:
        """They were handed to the network."""
        self._tell("receiving")

    def update(self, update: WeightUpdate) -> None:
        """The server says how far it is."""
        self._tell(update.phase)

    def _tell(self, phase: Phase) -> None:
        if self._callback is not None:
            self._callback(WeightProgress(phase, self.bytes_sent, self._bytes_total))
