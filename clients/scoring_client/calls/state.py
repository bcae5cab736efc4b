"""What all parts of one call add up to, as the caller sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scoring_client.errors import ItemError, MixedWeightsError, combine_item_errors
from scoring_client.values.options import OnError, ProgressCallback
from scoring_client.values.processing import ResolvedProcessing
from scoring_client.values.provenance import Progress, Provenance, Usage


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
class CallState:
    """Shared by the parts of a call; only one thread or task at a time works on it."""

    settings: JobSettings
    request_id: str
    items_total: int
    items_done: int = 0
    usage: Usage = field(default_factory=Usage)
    provenances: dict[Provenance, None] = field(default_factory=dict)
    """The distinct ones, in the order in which they came first."""
    provenance: Provenance | None = None
    """The last one."""
    processing: tuple[ResolvedProcessing, ...] = ()
    item_errors: list[ItemError] = field(default_factory=list)

    def computed_by(self, provenance: Provenance) -> None:
        """Note what computed (a part of) the answer.

        Raises:
            MixedWeightsError: another server's weights have the same version and another digest.
        """
        for other in self.provenances:
            same_version = other.weight_version == provenance.weight_version
            if same_version and other.weights_digest != provenance.weights_digest:
                raise MixedWeightsError(
                    f"parts of this call were computed by different weights that are both called "
                    f"version {provenance.weight_version}: digests {other.weights_digest[:12]}… "
                    f"and {provenance.weights_digest[:12]}…; do all servers behind this name "
                    "serve the same model?",
                    request_id=self.request_id,
                )
        self.provenance = provenance
        self.provenances[replace(provenance, request_id=self.request_id)] = None

    def processed_by(self, processing: tuple[ResolvedProcessing, ...]) -> None:
        """Note what was applied."""
        self.processing = tuple(dict.fromkeys((*self.processing, *processing)))

    def report(self, tokens_ahead: int) -> None:
        """Tell the caller how far the call is."""
        if self.settings.on_progress is not None:
            self.settings.on_progress(Progress(self.items_done, self.items_total, tokens_ahead))

    def raise_item_errors(self) -> None:
        """Raise for the items that failed, unless the caller has their errors in the results.

        Raises:
            ScoringError: of the class of the first item's error, with all of them in item_errors.
        """
        if self.item_errors and self.settings.on_error == "raise":
            raise combine_item_errors(self.item_errors, self.items_total)
