"""Client of the scoring service: log-probs, top-K and samples as numpy arrays.

    from scoring_client import ScoringClient

    with ScoringClient("localhost:50051") as client:
        results = client.score([("import numpy as", [" np", " banana"])])
        print(results[0][0].logprobs, results[0][1].logprobs)

Needs no torch. ``AsyncScoringClient`` is its asynchronous twin.
"""

from scoring_client.aio import AsyncScoringClient
from scoring_client.client import ScoringClient
from scoring_client.errors import (
    AccessDeniedError,
    CancelledCallError,
    DeadlineError,
    FieldViolation,
    InvalidRequestError,
    ItemError,
    MessageTooLargeError,
    MixedWeightsError,
    ModelNotFoundError,
    OverloadedError,
    PreconditionFailedError,
    ProtocolError,
    ResultChangedError,
    ScoringError,
    ServerError,
    UnavailableError,
)
from scoring_client.inputs import (
    Completion,
    Expect,
    PromptGroup,
    RequestContext,
    SamplePrompt,
)
from scoring_client.model_info import Limits, ModelInfo, ServedModel
from scoring_client.processing import Processing, ResolvedProcessing
from scoring_client.provenance import Progress, Provenance, Usage
from scoring_client.results import (
    CompletionScores,
    CompletionTopK,
    NextToken,
    ScoreResults,
    TopKNextToken,
)
from scoring_client.samples import Sample, SampleResults, WeightSpan

__all__ = [
    "AccessDeniedError",
    "AsyncScoringClient",
    "CancelledCallError",
    "Completion",
    "CompletionScores",
    "CompletionTopK",
    "DeadlineError",
    "Expect",
    "FieldViolation",
    "InvalidRequestError",
    "ItemError",
    "Limits",
    "MessageTooLargeError",
    "MixedWeightsError",
    "ModelInfo",
    "ModelNotFoundError",
    "NextToken",
    "OverloadedError",
    "PreconditionFailedError",
    "Processing",
    "Progress",
    "PromptGroup",
    "ProtocolError",
    "Provenance",
    "RequestContext",
    "ResolvedProcessing",
    "ResultChangedError",
    "Sample",
    "SamplePrompt",
    "SampleResults",
    "ScoreResults",
    "ScoringClient",
    "ScoringError",
    "ServedModel",
    "ServerError",
    "TopKNextToken",
    "UnavailableError",
    "Usage",
    "WeightSpan",
]
