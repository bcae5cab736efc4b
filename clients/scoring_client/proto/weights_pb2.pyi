from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WeightDataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_DATA_TYPE_UNSPECIFIED: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_BFLOAT16: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_FLOAT16: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_FLOAT32: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_FLOAT64: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_FLOAT8_E4M3FN: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_FLOAT8_E5M2: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_INT8: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_UINT8: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_INT16: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_INT32: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_INT64: _ClassVar[WeightDataType]
    WEIGHT_DATA_TYPE_BOOL: _ClassVar[WeightDataType]

class RunningSamples(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUNNING_SAMPLES_UNSPECIFIED: _ClassVar[RunningSamples]
    RUNNING_SAMPLES_FINISH: _ClassVar[RunningSamples]
    RUNNING_SAMPLES_CONTINUE: _ClassVar[RunningSamples]
    RUNNING_SAMPLES_ABORT: _ClassVar[RunningSamples]

class StagingMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGING_MODE_UNSPECIFIED: _ClassVar[StagingMode]
    STAGING_MODE_AUTO: _ClassVar[StagingMode]
    STAGING_MODE_BESIDE: _ClassVar[StagingMode]
    STAGING_MODE_IN_PLACE: _ClassVar[StagingMode]

class WeightUpdatePhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_UPDATE_PHASE_UNSPECIFIED: _ClassVar[WeightUpdatePhase]
    WEIGHT_UPDATE_PHASE_RECEIVING: _ClassVar[WeightUpdatePhase]
    WEIGHT_UPDATE_PHASE_STAGING: _ClassVar[WeightUpdatePhase]
    WEIGHT_UPDATE_PHASE_DRAINING: _ClassVar[WeightUpdatePhase]
    WEIGHT_UPDATE_PHASE_APPLYING: _ClassVar[WeightUpdatePhase]
    WEIGHT_UPDATE_PHASE_COMMITTED: _ClassVar[WeightUpdatePhase]
    WEIGHT_UPDATE_PHASE_FAILED: _ClassVar[WeightUpdatePhase]
    WEIGHT_UPDATE_PHASE_ABORTED: _ClassVar[WeightUpdatePhase]
WEIGHT_DATA_TYPE_UNSPECIFIED: WeightDataType
WEIGHT_DATA_TYPE_BFLOAT16: WeightDataType
WEIGHT_DATA_TYPE_FLOAT16: WeightDataType
WEIGHT_DATA_TYPE_FLOAT32: WeightDataType
WEIGHT_DATA_TYPE_FLOAT64: WeightDataType
WEIGHT_DATA_TYPE_FLOAT8_E4M3FN: WeightDataType
WEIGHT_DATA_TYPE_FLOAT8_E5M2: WeightDataType
WEIGHT_DATA_TYPE_INT8: WeightDataType
WEIGHT_DATA_TYPE_UINT8: WeightDataType
WEIGHT_DATA_TYPE_INT16: WeightDataType
WEIGHT_DATA_TYPE_INT32: WeightDataType
WEIGHT_DATA_TYPE_INT64: WeightDataType
WEIGHT_DATA_TYPE_BOOL: WeightDataType
RUNNING_SAMPLES_UNSPECIFIED: RunningSamples
RUNNING_SAMPLES_FINISH: RunningSamples
RUNNING_SAMPLES_CONTINUE: RunningSamples
RUNNING_SAMPLES_ABORT: RunningSamples
STAGING_MODE_UNSPECIFIED: StagingMode
STAGING_MODE_AUTO: StagingMode
STAGING_MODE_BESIDE: StagingMode
STAGING_MODE_IN_PLACE: StagingMode
WEIGHT_UPDATE_PHASE_UNSPECIFIED: WeightUpdatePhase
WEIGHT_UPDATE_PHASE_RECEIVING: WeightUpdatePhase
WEIGHT_UPDATE_PHASE_STAGING: WeightUpdatePhase
WEIGHT_UPDATE_PHASE_DRAINING: WeightUpdatePhase
WEIGHT_UPDATE_PHASE_APPLYING: WeightUpdatePhase
WEIGHT_UPDATE_PHASE_COMMITTED: WeightUpdatePhase
WEIGHT_UPDATE_PHASE_FAILED: WeightUpdatePhase
WEIGHT_UPDATE_PHASE_ABORTED: WeightUpdatePhase

class WeightTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "tied_to", "checkpoint_names")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    TIED_TO_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_NAMES_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: WeightDataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    tied_to: str
    checkpoint_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[WeightDataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., tied_to: _Optional[str] = ..., checkpoint_names: _Optional[_Iterable[str]] = ...) -> None: ...

class WeightChunk(_message.Message):
    __slots__ = ("name", "dtype", "shape", "offset", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: WeightDataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[WeightDataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WeightUpdateOptions(_message.Message):
    __slots__ = ("version", "base_version", "allow_older_version", "partial", "convert_dtypes", "weights_digest", "running_samples", "staging")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALLOW_OLDER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    CONVERT_DTYPES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STAGING_FIELD_NUMBER: _ClassVar[int]
    version: int
    base_version: int
    allow_older_version: bool
    partial: bool
    convert_dtypes: bool
    weights_digest: str
    running_samples: RunningSamples
    staging: StagingMode
    def __init__(self, version: _Optional[int] = ..., base_version: _Optional[int] = ..., allow_older_version: bool = ..., partial: bool = ..., convert_dtypes: bool = ..., weights_digest: _Optional[str] = ..., running_samples: _Optional[_Union[RunningSamples, str]] = ..., staging: _Optional[_Union[StagingMode, str]] = ...) -> None: ...

class PhaseTime(_message.Message):
    __slots__ = ("phase", "seconds")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    phase: WeightUpdatePhase
    seconds: float
    def __init__(self, phase: _Optional[_Union[WeightUpdatePhase, str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class WeightUpdateStatus(_message.Message):
    __slots__ = ("update_id", "phase", "version", "bytes_received", "bytes_total", "tensors_received", "tensors_total", "workers_staged", "workers_total", "staging", "weights_digest", "phase_times", "error", "identity", "failure")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENSORS_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    TENSORS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WORKERS_STAGED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STAGING_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PHASE_TIMES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    phase: WeightUpdatePhase
    version: int
    bytes_received: int
    bytes_total: int
    tensors_received: int
    tensors_total: int
    workers_staged: int
    workers_total: int
    staging: StagingMode
    weights_digest: str
    phase_times: _containers.RepeatedCompositeFieldContainer[PhaseTime]
    error: str
    identity: str
    failure: _status_pb2.Status
    def __init__(self, update_id: _Optional[str] = ..., phase: _Optional[_Union[WeightUpdatePhase, str]] = ..., version: _Optional[int] = ..., bytes_received: _Optional[int] = ..., bytes_total: _Optional[int] = ..., tensors_received: _Optional[int] = ..., tensors_total: _Optional[int] = ..., workers_staged: _Optional[int] = ..., workers_total: _Optional[int] = ..., staging: _Optional[_Union[StagingMode, str]] = ..., weights_digest: _Optional[str] = ..., phase_times: _Optional[_Iterable[_Union[PhaseTime, _Mapping]]] = ..., error: _Optional[str] = ..., identity: _Optional[str] = ..., failure: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
