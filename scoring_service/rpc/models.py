"""The models served: finds the one a request names, and sees it as the front end needs it."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.types import EngineInfo, Limits


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits that the operator sets; the model adds its own."""

    max_request_bytes: int
    max_queue_tokens: int
    preferred_tokens_per_call: int
    max_k: int | None = None
    """None = the vocabulary."""
    max_priority: int = 100
    """Of calls."""


@dataclass(slots=True)
class ServedModel:
    """A model with its pool."""

    pool: WorkerPool
    request_limits: RequestLimits
    _view: ModelView | None = field(default=None, init=False)

    @property
    def view(self) -> ModelView:
        """The model that answers now.

        Raises:
            ServiceError: LOADING, AWAITING_WEIGHTS, CRASH_LOOP or DRAINING.
        """
        info = self.pool.info
        if self._view is None or self._view.info is not info:
            self._view = _view(self.pool.name, info, self.request_limits, self._view)
        return self._view


class Models:
    """The models served, by name."""

    def __init__(self, served: list[ServedModel]) -> None:
        self._served = {model.pool.name: model for model in served}

    def find(self, name: str) -> ServedModel:
        """The model of that name; the only one for an empty name.

        Raises:
            ServiceError: MODEL_NOT_FOUND, listing the models served.
        """
        if name in self._served:
            return self._served[name]
        if not name and len(self._served) == 1:
            return next(iter(self._served.values()))
        listed = ", ".join(repr(n) for n in self._served)
        message = f"the model {name!r} is not served here; served: {listed}"
        raise ServiceError(Fault(Reason.MODEL_NOT_FOUND, message))

    def listing(self) -> list[tuple[str, bool]]:
        """(name, whether it answers now) of each model."""
        return [(n, m.pool.state is PoolState.READY) for n, m in self._served.items()]


def _view(name: str, info: EngineInfo, own: RequestLimits, before: ModelView | None) -> ModelView:
    most = info.vocab_size if own.max_k is None else min(own.max_k, info.vocab_size)
    limits = Limits(
        max_request_bytes=own.max_request_bytes,
        max_sequence_tokens=info.max_sequence_tokens,
        max_k=most,
        max_candidates=most,
        preferred_tokens_per_call=own.preferred_tokens_per_call,
        max_queue_tokens=own.max_queue_tokens,
    )
    if before is not None and before.info.tokenizer_json == info.tokenizer_json:
        codec = before.text  # other weights; to build a large tokenizer takes a second
    else:
        codec = None if info.tokenizer_json is None else TextCodec(info.tokenizer_json)
    return ModelView(name, info, limits, codec)
