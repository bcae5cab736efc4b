from scoring_client.proto import context_pb2 as _context_pb2
from scoring_client.proto import processing_pb2 as _processing_pb2
from scoring_client.proto import score_pb2 as _score_pb2
from scoring_client.proto import sequence_pb2 as _sequence_pb2
from scoring_client.proto import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TopKLogprobsRequest(_message.Message):
    __slots__ = ("model", "groups", "processing", "outputs", "next_token", "encoding", "context", "expect", "k", "token_id_limit")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_LIMIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    groups: _containers.RepeatedCompositeFieldContainer[_sequence_pb2.PromptGroup]
    processing: _processing_pb2.LogitsProcessing
    outputs: _score_pb2.RowOutputs
    next_token: bool
    encoding: _tensor_pb2.Encoding
    context: _context_pb2.RequestContext
    expect: _context_pb2.Expect
    k: int
    token_id_limit: int
    def __init__(self, model: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[_sequence_pb2.PromptGroup, _Mapping]]] = ..., processing: _Optional[_Union[_processing_pb2.LogitsProcessing, _Mapping]] = ..., outputs: _Optional[_Union[_score_pb2.RowOutputs, _Mapping]] = ..., next_token: bool = ..., encoding: _Optional[_Union[_tensor_pb2.Encoding, str]] = ..., context: _Optional[_Union[_context_pb2.RequestContext, _Mapping]] = ..., expect: _Optional[_Union[_context_pb2.Expect, _Mapping]] = ..., k: _Optional[int] = ..., token_id_limit: _Optional[int] = ...) -> None: ...

class TopKResult(_message.Message):
    __slots__ = ("score", "top_token_ids", "top_logprobs", "log_tail_masses", "support_sizes", "top_tokens")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_MASSES_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_SIZES_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    score: _score_pb2.ScoreResult
    top_token_ids: _tensor_pb2.Tensor
    top_logprobs: _tensor_pb2.Tensor
    log_tail_masses: _containers.RepeatedScalarFieldContainer[float]
    support_sizes: _containers.RepeatedScalarFieldContainer[int]
    top_tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, score: _Optional[_Union[_score_pb2.ScoreResult, _Mapping]] = ..., top_token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., top_logprobs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., log_tail_masses: _Optional[_Iterable[float]] = ..., support_sizes: _Optional[_Iterable[int]] = ..., top_tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class TopKLogprobsResponse(_message.Message):
    __slots__ = ("provenance", "results", "processing", "progress", "summary")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    provenance: _context_pb2.Provenance
    results: _containers.RepeatedCompositeFieldContainer[TopKResult]
    processing: _containers.RepeatedCompositeFieldContainer[_processing_pb2.ResolvedProcessing]
    progress: _context_pb2.Progress
    summary: _context_pb2.Summary
    def __init__(self, provenance: _Optional[_Union[_context_pb2.Provenance, _Mapping]] = ..., results: _Optional[_Iterable[_Union[TopKResult, _Mapping]]] = ..., processing: _Optional[_Iterable[_Union[_processing_pb2.ResolvedProcessing, _Mapping]]] = ..., progress: _Optional[_Union[_context_pb2.Progress, _Mapping]] = ..., summary: _Optional[_Union[_context_pb2.Summary, _Mapping]] = ...) -> None: ...
