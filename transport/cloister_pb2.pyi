from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PullRequest(_message.Message):
    __slots__ = ("protocol", "wait_seconds")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    wait_seconds: float
    def __init__(self, protocol: _Optional[int] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("opening", "data")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    data: bytes
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("protocol", "total_bytes", "reply_to")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    total_bytes: int
    reply_to: str
    def __init__(self, protocol: _Optional[int] = ..., total_bytes: _Optional[int] = ..., reply_to: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("status",)
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Receipt.Status]
        ACCEPTED: _ClassVar[Receipt.Status]
        LATE: _ClassVar[Receipt.Status]
    UNSPECIFIED: Receipt.Status
    ACCEPTED: Receipt.Status
    LATE: Receipt.Status
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: Receipt.Status
    def __init__(self, status: _Optional[_Union[Receipt.Status, str]] = ...) -> None: ...

class Parcel(_message.Message):
    __slots__ = ("message_id", "reply_to", "run_id", "source", "destination", "group", "kind", "created_at", "ttl", "records", "failure")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    reply_to: str
    run_id: int
    source: int
    destination: int
    group: str
    kind: str
    created_at: float
    ttl: float
    records: Records
    failure: Failure
    def __init__(self, message_id: _Optional[str] = ..., reply_to: _Optional[str] = ..., run_id: _Optional[int] = ..., source: _Optional[int] = ..., destination: _Optional[int] = ..., group: _Optional[str] = ..., kind: _Optional[str] = ..., created_at: _Optional[float] = ..., ttl: _Optional[float] = ..., records: _Optional[_Union[Records, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ("arrays", "metrics", "configs")
    class ArraysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Arrays
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Arrays, _Mapping]] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Values
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Values, _Mapping]] = ...) -> None: ...
    class ConfigsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Values
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Values, _Mapping]] = ...) -> None: ...
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CONFIGS_FIELD_NUMBER: _ClassVar[int]
    arrays: _containers.MessageMap[str, Arrays]
    metrics: _containers.MessageMap[str, Values]
    configs: _containers.MessageMap[str, Values]
    def __init__(self, arrays: _Optional[_Mapping[str, Arrays]] = ..., metrics: _Optional[_Mapping[str, Values]] = ..., configs: _Optional[_Mapping[str, Values]] = ...) -> None: ...

class Arrays(_message.Message):
    __slots__ = ("entries",)
    class Entry(_message.Message):
        __slots__ = ("name", "dtype", "shape", "stype", "size")
        NAME_FIELD_NUMBER: _ClassVar[int]
        DTYPE_FIELD_NUMBER: _ClassVar[int]
        SHAPE_FIELD_NUMBER: _ClassVar[int]
        STYPE_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        name: str
        dtype: str
        shape: _containers.RepeatedScalarFieldContainer[int]
        stype: str
        size: int
        def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., stype: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Arrays.Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Arrays.Entry, _Mapping]]] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.MessageMap[str, Value]
    def __init__(self, values: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("number", "integer", "flag", "text", "blob", "numbers", "integers", "texts", "blobs", "flags")
    class Doubles(_message.Message):
        __slots__ = ("items",)
        ITEMS_FIELD_NUMBER: _ClassVar[int]
        items: _containers.RepeatedScalarFieldContainer[float]
        def __init__(self, items: _Optional[_Iterable[float]] = ...) -> None: ...
    class Integers(_message.Message):
        __slots__ = ("items",)
        ITEMS_FIELD_NUMBER: _ClassVar[int]
        items: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, items: _Optional[_Iterable[int]] = ...) -> None: ...
    class Strings(_message.Message):
        __slots__ = ("items",)
        ITEMS_FIELD_NUMBER: _ClassVar[int]
        items: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, items: _Optional[_Iterable[str]] = ...) -> None: ...
    class Blobs(_message.Message):
        __slots__ = ("items",)
        ITEMS_FIELD_NUMBER: _ClassVar[int]
        items: _containers.RepeatedScalarFieldContainer[bytes]
        def __init__(self, items: _Optional[_Iterable[bytes]] = ...) -> None: ...
    class Flags(_message.Message):
        __slots__ = ("items",)
        ITEMS_FIELD_NUMBER: _ClassVar[int]
        items: _containers.RepeatedScalarFieldContainer[bool]
        def __init__(self, items: _Optional[_Iterable[bool]] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    number: float
    integer: int
    flag: bool
    text: str
    blob: bytes
    numbers: Value.Doubles
    integers: Value.Integers
    texts: Value.Strings
    blobs: Value.Blobs
    flags: Value.Flags
    def __init__(self, number: _Optional[float] = ..., integer: _Optional[int] = ..., flag: _Optional[bool] = ..., text: _Optional[str] = ..., blob: _Optional[bytes] = ..., numbers: _Optional[_Union[Value.Doubles, _Mapping]] = ..., integers: _Optional[_Union[Value.Integers, _Mapping]] = ..., texts: _Optional[_Union[Value.Strings, _Mapping]] = ..., blobs: _Optional[_Union[Value.Blobs, _Mapping]] = ..., flags: _Optional[_Union[Value.Flags, _Mapping]] = ...) -> None: ...
