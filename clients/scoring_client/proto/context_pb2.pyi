from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestContext(_message.Message):
    __slots__ = ("request_id", "tags", "priority", "cache_salt")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tags: _containers.ScalarMap[str, str]
    priority: int
    cache_salt: str
    def __init__(self, request_id: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class Expect(_message.Message):
    __slots__ = ("weight_version", "min_weight_version", "weights_digest", "tokenizer_digest", "deterministic")
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    weight_version: int
    min_weight_version: int
    weights_digest: str
    tokenizer_digest: str
    deterministic: bool
    def __init__(self, weight_version: _Optional[int] = ..., min_weight_version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., deterministic: bool = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("model", "weight_version", "weights_digest", "tokenizer_digest", "dtype", "head_dtype", "backend", "deterministic", "numerics_id", "server_version", "request_id", "residual_dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HEAD_DTYPE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: str
    weight_version: int
    weights_digest: str
    tokenizer_digest: str
    dtype: str
    head_dtype: str
    backend: str
    deterministic: bool
    numerics_id: str
    server_version: str
    request_id: str
    residual_dtype: str
    def __init__(self, model: _Optional[str] = ..., weight_version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., dtype: _Optional[str] = ..., head_dtype: _Optional[str] = ..., backend: _Optional[str] = ..., deterministic: bool = ..., numerics_id: _Optional[str] = ..., server_version: _Optional[str] = ..., request_id: _Optional[str] = ..., residual_dtype: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("tokens_ahead",)
    TOKENS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    tokens_ahead: int
    def __init__(self, tokens_ahead: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_tokens", "computed_tokens", "sampled_tokens", "head_rows", "queue_seconds", "compute_seconds", "reply_bytes")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HEAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    computed_tokens: int
    sampled_tokens: int
    head_rows: int
    queue_seconds: float
    compute_seconds: float
    reply_bytes: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., sampled_tokens: _Optional[int] = ..., head_rows: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("usage", "items_ok", "items_failed")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_OK_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FAILED_FIELD_NUMBER: _ClassVar[int]
    usage: Usage
    items_ok: int
    items_failed: int
    def __init__(self, usage: _Optional[_Union[Usage, _Mapping]] = ..., items_ok: _Optional[int] = ..., items_failed: _Optional[int] = ...) -> None: ...
