from google.rpc import status_pb2 as _status_pb2
from scoring_client.proto import context_pb2 as _context_pb2
from scoring_client.proto import processing_pb2 as _processing_pb2
from scoring_client.proto import sequence_pb2 as _sequence_pb2
from scoring_client.proto import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RowOutputs(_message.Message):
    __slots__ = ("processed_logprobs", "entropy", "rank", "logsumexp", "log_kept_mass", "tokens", "token_ids")
    PROCESSED_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    LOGSUMEXP_FIELD_NUMBER: _ClassVar[int]
    LOG_KEPT_MASS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    processed_logprobs: bool
    entropy: bool
    rank: bool
    logsumexp: bool
    log_kept_mass: bool
    tokens: bool
    token_ids: bool
    def __init__(self, processed_logprobs: bool = ..., entropy: bool = ..., rank: bool = ..., logsumexp: bool = ..., log_kept_mass: bool = ..., tokens: bool = ..., token_ids: bool = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "groups", "processing", "outputs", "next_token", "encoding", "context", "expect")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    model: str
    groups: _containers.RepeatedCompositeFieldContainer[_sequence_pb2.PromptGroup]
    processing: _processing_pb2.LogitsProcessing
    outputs: RowOutputs
    next_token: bool
    encoding: _tensor_pb2.Encoding
    context: _context_pb2.RequestContext
    expect: _context_pb2.Expect
    def __init__(self, model: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[_sequence_pb2.PromptGroup, _Mapping]]] = ..., processing: _Optional[_Union[_processing_pb2.LogitsProcessing, _Mapping]] = ..., outputs: _Optional[_Union[RowOutputs, _Mapping]] = ..., next_token: bool = ..., encoding: _Optional[_Union[_tensor_pb2.Encoding, str]] = ..., context: _Optional[_Union[_context_pb2.RequestContext, _Mapping]] = ..., expect: _Optional[_Union[_context_pb2.Expect, _Mapping]] = ...) -> None: ...

class ScoreResult(_message.Message):
    __slots__ = ("group_index", "completion_index", "prompt_length", "start", "row_count", "last", "token_ids", "tokens", "logprobs", "processed_logprobs", "log_kept_masses", "entropies", "ranks", "logsumexps", "candidate_logprobs", "weight_version", "processing_index", "status", "prompt_token_ids")
    GROUP_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROCESSED_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOG_KEPT_MASSES_FIELD_NUMBER: _ClassVar[int]
    ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    LOGSUMEXPS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    group_index: int
    completion_index: int
    prompt_length: int
    start: int
    row_count: int
    last: bool
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    processed_logprobs: _containers.RepeatedScalarFieldContainer[float]
    log_kept_masses: _containers.RepeatedScalarFieldContainer[float]
    entropies: _containers.RepeatedScalarFieldContainer[float]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    logsumexps: _containers.RepeatedScalarFieldContainer[float]
    candidate_logprobs: _tensor_pb2.Tensor
    weight_version: int
    processing_index: int
    status: _status_pb2.Status
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group_index: _Optional[int] = ..., completion_index: _Optional[int] = ..., prompt_length: _Optional[int] = ..., start: _Optional[int] = ..., row_count: _Optional[int] = ..., last: bool = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ..., logprobs: _Optional[_Iterable[float]] = ..., processed_logprobs: _Optional[_Iterable[float]] = ..., log_kept_masses: _Optional[_Iterable[float]] = ..., entropies: _Optional[_Iterable[float]] = ..., ranks: _Optional[_Iterable[int]] = ..., logsumexps: _Optional[_Iterable[float]] = ..., candidate_logprobs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., weight_version: _Optional[int] = ..., processing_index: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("provenance", "results", "processing", "progress", "summary")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    provenance: _context_pb2.Provenance
    results: _containers.RepeatedCompositeFieldContainer[ScoreResult]
    processing: _containers.RepeatedCompositeFieldContainer[_processing_pb2.ResolvedProcessing]
    progress: _context_pb2.Progress
    summary: _context_pb2.Summary
    def __init__(self, provenance: _Optional[_Union[_context_pb2.Provenance, _Mapping]] = ..., results: _Optional[_Iterable[_Union[ScoreResult, _Mapping]]] = ..., processing: _Optional[_Iterable[_Union[_processing_pb2.ResolvedProcessing, _Mapping]]] = ..., progress: _Optional[_Union[_context_pb2.Progress, _Mapping]] = ..., summary: _Optional[_Union[_context_pb2.Summary, _Mapping]] = ...) -> None: ...
