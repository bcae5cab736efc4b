"""Client of the scoring service: log-probs, top-K and samples as numpy arrays.

    from scoring_client import ScoringClient

    with ScoringClient("localhost:50051") as client:
        results = client.score([("import numpy as", [" np", " banana"])])
        print(results[0][0].logprobs, results[0][1].logprobs)

Needs no torch. ``AsyncScoringClient`` is its asynchronous twin.
"""

from importlib import metadata as _metadata
from typing import TYPE_CHECKING as _TYPE_CHECKING

from scoring_client.admin import AdminClient
from scoring_client.admin_aio import AsyncAdminClient
from scoring_client.aio import AsyncScoringClient
from scoring_client.awaited_replicas import wait_for_replicas
from scoring_client.client import ScoringClient
from scoring_client.errors import (
    AbortedError,
    AccessDeniedError,
    CancelledCallError,
    ClosedClientError,
    DeadlineError,
    FieldViolation,
    InvalidRequestError,
    ItemError,
    MessageTooLargeError,
    MixedWeightsError,
    ModelNotFoundError,
    NotFoundError,
    NoTlsError,
    OverloadedError,
    PreconditionFailedError,
    ProtocolError,
    ResultChangedError,
    ScoringError,
    ServerError,
    UnavailableError,
    UpdateInProgressError,
)
from scoring_client.replicated_push import async_push_to_all, push_to_all
from scoring_client.values.field_docs import show_field_docs
from scoring_client.values.inputs import (
    Completion,
    Expect,
    GroupLike,
    PromptGroup,
    PromptLike,
    RequestContext,
    SamplePrompt,
)
from scoring_client.values.model_info import Limits, ModelInfo, ServedModel
from scoring_client.values.options import SampleOptions, ScoreOptions, TopKOptions
from scoring_client.values.processing import Processing, ResolvedProcessing
from scoring_client.values.provenance import Progress, Provenance, Usage
from scoring_client.values.results import (
    CompletionScores,
    CompletionTopK,
    NextToken,
    ScoreResults,
    TopKNextToken,
)
from scoring_client.values.samples import Sample, SampleResults, WeightSpan
from scoring_client.weights.given import gather_weights
from scoring_client.weights.replicas import ReplicaError, replica_targets
from scoring_client.weights.results import (
    WeightProgress,
    WeightsInfo,
    WeightTensor,
    WeightUpdate,
)

__all__ = [
    "AbortedError",
    "AccessDeniedError",
    "AdminClient",
    "AsyncAdminClient",
    "AsyncScoringClient",
    "CancelledCallError",
    "ClosedClientError",
    "Completion",
    "CompletionScores",
    "CompletionTopK",
    "DeadlineError",
    "Expect",
    "FieldViolation",
    "GroupLike",
    "InvalidRequestError",
    "ItemError",
    "Limits",
    "MessageTooLargeError",
    "MixedWeightsError",
    "ModelInfo",
    "ModelNotFoundError",
    "NextToken",
    "NoTlsError",
    "NotFoundError",
    "OverloadedError",
    "PreconditionFailedError",
    "Processing",
    "Progress",
    "PromptGroup",
    "PromptLike",
    "ProtocolError",
    "Provenance",
    "ReplicaError",
    "RequestContext",
    "ResolvedProcessing",
    "ResultChangedError",
    "Sample",
    "SampleOptions",
    "SamplePrompt",
    "SampleResults",
    "ScoreOptions",
    "ScoreResults",
    "ScoringClient",
    "ScoringError",
    "ServedModel",
    "ServerError",
    "TopKNextToken",
    "TopKOptions",
    "UnavailableError",
    "UpdateInProgressError",
    "Usage",
    "WeightProgress",
    "WeightSpan",
    "WeightTensor",
    "WeightUpdate",
    "WeightsInfo",
    "async_push_to_all",
    "gather_weights",
    "push_to_all",
    "replica_targets",
    "wait_for_replicas",
]

__version__: str

if not _TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        # Read when somebody asks: an import would pay for it.
        if name == "__version__":
            return _metadata.version("scoring-service")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _name in __all__:
    if isinstance(globals()[_name], type):
        show_field_docs(globals()[_name])
