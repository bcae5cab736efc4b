from google.rpc import status_pb2 as _status_pb2
from scoring_client.proto import context_pb2 as _context_pb2
from scoring_client.proto import processing_pb2 as _processing_pb2
from scoring_client.proto import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class SamplingParams(_message.Message):
    __slots__ = ("processing", "max_tokens", "min_tokens", "seed", "stop", "stop_token_ids", "ignore_eos")
    PROCESSING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    processing: _processing_pb2.LogitsProcessing
    max_tokens: int
    min_tokens: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    def __init__(self, processing: _Optional[_Union[_processing_pb2.LogitsProcessing, _Mapping]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ...) -> None: ...

class SamplePrompt(_message.Message):
    __slots__ = ("token_ids", "text", "add_special_tokens", "n", "seed", "first_sample_index", "sampling")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIRST_SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    add_special_tokens: bool
    n: int
    seed: int
    first_sample_index: int
    sampling: SamplingParams
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., add_special_tokens: bool = ..., n: _Optional[int] = ..., seed: _Optional[int] = ..., first_sample_index: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("model", "prompts", "n", "sampling", "top_logprobs", "return_text", "encoding", "context", "expect")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RETURN_TEXT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompts: _containers.RepeatedCompositeFieldContainer[SamplePrompt]
    n: int
    sampling: SamplingParams
    top_logprobs: int
    return_text: bool
    encoding: _tensor_pb2.Encoding
    context: _context_pb2.RequestContext
    expect: _context_pb2.Expect
    def __init__(self, model: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[SamplePrompt, _Mapping]]] = ..., n: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., top_logprobs: _Optional[int] = ..., return_text: bool = ..., encoding: _Optional[_Union[_tensor_pb2.Encoding, str]] = ..., context: _Optional[_Union[_context_pb2.RequestContext, _Mapping]] = ..., expect: _Optional[_Union[_context_pb2.Expect, _Mapping]] = ...) -> None: ...

class MatchedStop(_message.Message):
    __slots__ = ("text", "token_id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_id: int
    def __init__(self, text: _Optional[str] = ..., token_id: _Optional[int] = ...) -> None: ...

class WeightSpan(_message.Message):
    __slots__ = ("first_token", "weight_version")
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    first_token: int
    weight_version: int
    def __init__(self, first_token: _Optional[int] = ..., weight_version: _Optional[int] = ...) -> None: ...

class SampleResult(_message.Message):
    __slots__ = ("prompt_index", "sample_index", "start", "last", "prompt_length", "token_ids", "logprobs", "processed_logprobs", "top_token_ids", "top_logprobs", "text", "finish_reason", "matched_stop", "seed", "weight_spans", "processing_index", "status", "prompt_token_ids")
    PROMPT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROCESSED_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_SPANS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    prompt_index: int
    sample_index: int
    start: int
    last: bool
    prompt_length: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    processed_logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_token_ids: _tensor_pb2.Tensor
    top_logprobs: _tensor_pb2.Tensor
    text: str
    finish_reason: FinishReason
    matched_stop: MatchedStop
    seed: int
    weight_spans: _containers.RepeatedCompositeFieldContainer[WeightSpan]
    processing_index: int
    status: _status_pb2.Status
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt_index: _Optional[int] = ..., sample_index: _Optional[int] = ..., start: _Optional[int] = ..., last: bool = ..., prompt_length: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., processed_logprobs: _Optional[_Iterable[float]] = ..., top_token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., top_logprobs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., matched_stop: _Optional[_Union[MatchedStop, _Mapping]] = ..., seed: _Optional[int] = ..., weight_spans: _Optional[_Iterable[_Union[WeightSpan, _Mapping]]] = ..., processing_index: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("provenance", "results", "processing", "progress", "summary")
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    provenance: _context_pb2.Provenance
    results: _containers.RepeatedCompositeFieldContainer[SampleResult]
    processing: _containers.RepeatedCompositeFieldContainer[_processing_pb2.ResolvedProcessing]
    progress: _context_pb2.Progress
    summary: _context_pb2.Summary
    def __init__(self, provenance: _Optional[_Union[_context_pb2.Provenance, _Mapping]] = ..., results: _Optional[_Iterable[_Union[SampleResult, _Mapping]]] = ..., processing: _Optional[_Iterable[_Union[_processing_pb2.ResolvedProcessing, _Mapping]]] = ..., progress: _Optional[_Union[_context_pb2.Progress, _Mapping]] = ..., summary: _Optional[_Union[_context_pb2.Summary, _Mapping]] = ...) -> None: ...
