from scoring_client.proto import weights_pb2 as _weights_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PushWeightsBegin(_message.Message):
    __slots__ = ("model", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    options: _weights_pb2.WeightUpdateOptions
    def __init__(self, model: _Optional[str] = ..., options: _Optional[_Union[_weights_pb2.WeightUpdateOptions, _Mapping]] = ...) -> None: ...

class PushWeightsPart(_message.Message):
    __slots__ = ("chunks",)
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[_weights_pb2.WeightChunk]
    def __init__(self, chunks: _Optional[_Iterable[_Union[_weights_pb2.WeightChunk, _Mapping]]] = ...) -> None: ...

class PushWeightsCommit(_message.Message):
    __slots__ = ("weights_digest",)
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    weights_digest: str
    def __init__(self, weights_digest: _Optional[str] = ...) -> None: ...

class PushWeightsRequest(_message.Message):
    __slots__ = ("begin", "part", "commit")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    begin: PushWeightsBegin
    part: PushWeightsPart
    commit: PushWeightsCommit
    def __init__(self, begin: _Optional[_Union[PushWeightsBegin, _Mapping]] = ..., part: _Optional[_Union[PushWeightsPart, _Mapping]] = ..., commit: _Optional[_Union[PushWeightsCommit, _Mapping]] = ...) -> None: ...

class PushWeightsResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _weights_pb2.WeightUpdateStatus
    def __init__(self, status: _Optional[_Union[_weights_pb2.WeightUpdateStatus, _Mapping]] = ...) -> None: ...

class HubWeights(_message.Message):
    __slots__ = ("repository", "revision")
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    repository: str
    revision: str
    def __init__(self, repository: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class UpdateWeightsRequest(_message.Message):
    __slots__ = ("model", "options", "path", "hub")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    model: str
    options: _weights_pb2.WeightUpdateOptions
    path: str
    hub: HubWeights
    def __init__(self, model: _Optional[str] = ..., options: _Optional[_Union[_weights_pb2.WeightUpdateOptions, _Mapping]] = ..., path: _Optional[str] = ..., hub: _Optional[_Union[HubWeights, _Mapping]] = ...) -> None: ...

class UpdateWeightsResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _weights_pb2.WeightUpdateStatus
    def __init__(self, status: _Optional[_Union[_weights_pb2.WeightUpdateStatus, _Mapping]] = ...) -> None: ...

class GetWeightsRequest(_message.Message):
    __slots__ = ("model", "list_tensors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIST_TENSORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    list_tensors: bool
    def __init__(self, model: _Optional[str] = ..., list_tensors: bool = ...) -> None: ...

class HeldWeights(_message.Message):
    __slots__ = ("version", "weights_digest", "running_parts")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUNNING_PARTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    weights_digest: str
    running_parts: int
    def __init__(self, version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., running_parts: _Optional[int] = ...) -> None: ...

class GetWeightsResponse(_message.Message):
    __slots__ = ("model", "version", "weights_digest", "numerics_id", "update", "last_update", "held", "tensors", "updates_committed", "stream_timeout_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    LAST_UPDATE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    UPDATES_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    STREAM_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    weights_digest: str
    numerics_id: str
    update: _weights_pb2.WeightUpdateStatus
    last_update: _weights_pb2.WeightUpdateStatus
    held: _containers.RepeatedCompositeFieldContainer[HeldWeights]
    tensors: _containers.RepeatedCompositeFieldContainer[_weights_pb2.WeightTensor]
    updates_committed: int
    stream_timeout_seconds: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., weights_digest: _Optional[str] = ..., numerics_id: _Optional[str] = ..., update: _Optional[_Union[_weights_pb2.WeightUpdateStatus, _Mapping]] = ..., last_update: _Optional[_Union[_weights_pb2.WeightUpdateStatus, _Mapping]] = ..., held: _Optional[_Iterable[_Union[HeldWeights, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[_weights_pb2.WeightTensor, _Mapping]]] = ..., updates_committed: _Optional[int] = ..., stream_timeout_seconds: _Optional[float] = ...) -> None: ...

class AbortUpdateRequest(_message.Message):
    __slots__ = ("model", "update_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    update_id: str
    def __init__(self, model: _Optional[str] = ..., update_id: _Optional[str] = ...) -> None: ...

class AbortUpdateResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _weights_pb2.WeightUpdateStatus
    def __init__(self, status: _Optional[_Union[_weights_pb2.WeightUpdateStatus, _Mapping]] = ...) -> None: ...

class FlushCacheRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class FlushCacheResponse(_message.Message):
    __slots__ = ("pages_freed", "workers")
    PAGES_FREED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    pages_freed: int
    workers: int
    def __init__(self, pages_freed: _Optional[int] = ..., workers: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("calls_left", "drained")
    CALLS_LEFT_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    calls_left: int
    drained: bool
    def __init__(self, calls_left: _Optional[int] = ..., drained: bool = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
