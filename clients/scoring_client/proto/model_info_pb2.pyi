from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelPath(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_PATH_UNSPECIFIED: _ClassVar[ModelPath]
    MODEL_PATH_PACKED: _ClassVar[ModelPath]
    MODEL_PATH_PLAIN: _ClassVar[ModelPath]
MODEL_PATH_UNSPECIFIED: ModelPath
MODEL_PATH_PACKED: ModelPath
MODEL_PATH_PLAIN: ModelPath

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "ready")
    NAME_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    name: str
    ready: bool
    def __init__(self, name: _Optional[str] = ..., ready: bool = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_request_bytes", "max_sequence_tokens", "max_k", "max_candidates", "preferred_tokens_per_call", "max_queue_tokens")
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_K_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_TOKENS_PER_CALL_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_request_bytes: int
    max_sequence_tokens: int
    max_k: int
    max_candidates: int
    preferred_tokens_per_call: int
    max_queue_tokens: int
    def __init__(self, max_request_bytes: _Optional[int] = ..., max_sequence_tokens: _Optional[int] = ..., max_k: _Optional[int] = ..., max_candidates: _Optional[int] = ..., preferred_tokens_per_call: _Optional[int] = ..., max_queue_tokens: _Optional[int] = ...) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("name", "vocab_size", "tokenizer_size", "weights_digest", "tokenizer_digest", "weight_version", "eos_token_ids", "bos_token_id", "generation_config", "unsupported_generation_settings", "path", "path_reason", "chunk_size", "contract_revision", "limits", "dtype", "head_dtype", "backend", "deterministic", "numerics_id", "server_version", "parameter_count", "architecture", "residual_dtype", "tokenizer_reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SIZE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_GENERATION_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PATH_REASON_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_REVISION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HEAD_DTYPE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    vocab_size: int
    tokenizer_size: int
    weights_digest: str
    tokenizer_digest: str
    weight_version: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    bos_token_id: int
    generation_config: _struct_pb2.Struct
    unsupported_generation_settings: _containers.RepeatedScalarFieldContainer[str]
    path: ModelPath
    path_reason: str
    chunk_size: int
    contract_revision: int
    limits: Limits
    dtype: str
    head_dtype: str
    backend: str
    deterministic: bool
    numerics_id: str
    server_version: str
    parameter_count: int
    architecture: str
    residual_dtype: str
    tokenizer_reason: str
    def __init__(self, name: _Optional[str] = ..., vocab_size: _Optional[int] = ..., tokenizer_size: _Optional[int] = ..., weights_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., weight_version: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., bos_token_id: _Optional[int] = ..., generation_config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., unsupported_generation_settings: _Optional[_Iterable[str]] = ..., path: _Optional[_Union[ModelPath, str]] = ..., path_reason: _Optional[str] = ..., chunk_size: _Optional[int] = ..., contract_revision: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., dtype: _Optional[str] = ..., head_dtype: _Optional[str] = ..., backend: _Optional[str] = ..., deterministic: bool = ..., numerics_id: _Optional[str] = ..., server_version: _Optional[str] = ..., parameter_count: _Optional[int] = ..., architecture: _Optional[str] = ..., residual_dtype: _Optional[str] = ..., tokenizer_reason: _Optional[str] = ...) -> None: ...
