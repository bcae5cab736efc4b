"""What validation and rendering have to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.types import EngineInfo, Limits


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model that answers, as the front end sees it."""

    name: str
    info: EngineInfo
    limits: Limits
    text: TextCodec | None

    def codec(self, path: str) -> TextCodec:
        """The tokenizer.

        Raises:
            ServiceError: TOKENIZER_UNAVAILABLE, naming the field that needs it.
        """
        if self.text is None:
            message = f"{path}: the model {self.name!r} has no tokenizer that this server can run"
            raise ServiceError(Fault(Reason.TOKENIZER_UNAVAILABLE, message))
        return self.text
