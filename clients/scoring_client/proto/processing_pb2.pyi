from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProcessingDefaults(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROCESSING_DEFAULTS_UNSPECIFIED: _ClassVar[ProcessingDefaults]
    PROCESSING_DEFAULTS_NEUTRAL: _ClassVar[ProcessingDefaults]
    PROCESSING_DEFAULTS_MODEL: _ClassVar[ProcessingDefaults]

class ProcessingSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROCESSING_SOURCE_UNSPECIFIED: _ClassVar[ProcessingSource]
    PROCESSING_SOURCE_NEUTRAL: _ClassVar[ProcessingSource]
    PROCESSING_SOURCE_REQUEST: _ClassVar[ProcessingSource]
    PROCESSING_SOURCE_GROUP: _ClassVar[ProcessingSource]
    PROCESSING_SOURCE_MODEL: _ClassVar[ProcessingSource]
PROCESSING_DEFAULTS_UNSPECIFIED: ProcessingDefaults
PROCESSING_DEFAULTS_NEUTRAL: ProcessingDefaults
PROCESSING_DEFAULTS_MODEL: ProcessingDefaults
PROCESSING_SOURCE_UNSPECIFIED: ProcessingSource
PROCESSING_SOURCE_NEUTRAL: ProcessingSource
PROCESSING_SOURCE_REQUEST: ProcessingSource
PROCESSING_SOURCE_GROUP: ProcessingSource
PROCESSING_SOURCE_MODEL: ProcessingSource

class LogitsProcessing(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "defaults", "keep_realised")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    KEEP_REALISED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    defaults: ProcessingDefaults
    keep_realised: bool
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., defaults: _Optional[_Union[ProcessingDefaults, str]] = ..., keep_realised: bool = ...) -> None: ...

class ResolvedFloat(_message.Message):
    __slots__ = ("value", "source")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    value: float
    source: ProcessingSource
    def __init__(self, value: _Optional[float] = ..., source: _Optional[_Union[ProcessingSource, str]] = ...) -> None: ...

class ResolvedInt(_message.Message):
    __slots__ = ("value", "source")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    value: int
    source: ProcessingSource
    def __init__(self, value: _Optional[int] = ..., source: _Optional[_Union[ProcessingSource, str]] = ...) -> None: ...

class ResolvedBool(_message.Message):
    __slots__ = ("value", "source")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    value: bool
    source: ProcessingSource
    def __init__(self, value: bool = ..., source: _Optional[_Union[ProcessingSource, str]] = ...) -> None: ...

class ResolvedProcessing(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "keep_realised")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    KEEP_REALISED_FIELD_NUMBER: _ClassVar[int]
    temperature: ResolvedFloat
    top_k: ResolvedInt
    top_p: ResolvedFloat
    min_p: ResolvedFloat
    keep_realised: ResolvedBool
    def __init__(self, temperature: _Optional[_Union[ResolvedFloat, _Mapping]] = ..., top_k: _Optional[_Union[ResolvedInt, _Mapping]] = ..., top_p: _Optional[_Union[ResolvedFloat, _Mapping]] = ..., min_p: _Optional[_Union[ResolvedFloat, _Mapping]] = ..., keep_realised: _Optional[_Union[ResolvedBool, _Mapping]] = ...) -> None: ...
