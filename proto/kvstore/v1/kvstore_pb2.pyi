from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fidelity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIDELITY_EXACT: _ClassVar[Fidelity]
    FIDELITY_LOSSY: _ClassVar[Fidelity]

class Ack(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_STORED: _ClassVar[Ack]
    ACK_PERSISTED: _ClassVar[Ack]
    ACK_SYNCED: _ClassVar[Ack]

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_NONE: _ClassVar[Method]
    METHOD_HELLO: _ClassVar[Method]
    METHOD_DESCRIBE: _ClassVar[Method]
    METHOD_REGISTER_SPEC: _ClassVar[Method]
    METHOD_LOOKUP: _ClassVar[Method]
    METHOD_RELEASE: _ClassVar[Method]
    METHOD_GET: _ClassVar[Method]
    METHOD_PUT: _ClassVar[Method]
    METHOD_DELETE: _ClassVar[Method]
    METHOD_PIN: _ClassVar[Method]
    METHOD_UNPIN: _ClassVar[Method]
    METHOD_PREFETCH: _ClassVar[Method]
    METHOD_LIST: _ClassVar[Method]
    METHOD_STATS: _ClassVar[Method]
    METHOD_WATCH: _ClassVar[Method]
    METHOD_VERIFY: _ClassVar[Method]
    METHOD_PLACE: _ClassVar[Method]
    METHOD_STAGE: _ClassVar[Method]
    METHOD_PUT_STAGED: _ClassVar[Method]
    METHOD_INDEX: _ClassVar[Method]
    METHOD_EXTENTS: _ClassVar[Method]
    METHOD_HAZARDS: _ClassVar[Method]
    METHOD_GET_ARTEFACT: _ClassVar[Method]
    METHOD_DEVICE_PLACES: _ClassVar[Method]
    METHOD_HINT: _ClassVar[Method]
    METHOD_DRAIN: _ClassVar[Method]
    METHOD_RESUME: _ClassVar[Method]
    METHOD_FIND: _ClassVar[Method]
    METHOD_RECORD: _ClassVar[Method]
    METHOD_PUT_OBJECT: _ClassVar[Method]
    METHOD_READ_OBJECT: _ClassVar[Method]
    METHOD_OBJECT_HEADS: _ClassVar[Method]
    METHOD_DELETE_OBJECTS: _ClassVar[Method]
    METHOD_LIST_OBJECTS: _ClassVar[Method]
FIDELITY_EXACT: Fidelity
FIDELITY_LOSSY: Fidelity
ACK_STORED: Ack
ACK_PERSISTED: Ack
ACK_SYNCED: Ack
METHOD_NONE: Method
METHOD_HELLO: Method
METHOD_DESCRIBE: Method
METHOD_REGISTER_SPEC: Method
METHOD_LOOKUP: Method
METHOD_RELEASE: Method
METHOD_GET: Method
METHOD_PUT: Method
METHOD_DELETE: Method
METHOD_PIN: Method
METHOD_UNPIN: Method
METHOD_PREFETCH: Method
METHOD_LIST: Method
METHOD_STATS: Method
METHOD_WATCH: Method
METHOD_VERIFY: Method
METHOD_PLACE: Method
METHOD_STAGE: Method
METHOD_PUT_STAGED: Method
METHOD_INDEX: Method
METHOD_EXTENTS: Method
METHOD_HAZARDS: Method
METHOD_GET_ARTEFACT: Method
METHOD_DEVICE_PLACES: Method
METHOD_HINT: Method
METHOD_DRAIN: Method
METHOD_RESUME: Method
METHOD_FIND: Method
METHOD_RECORD: Method
METHOD_PUT_OBJECT: Method
METHOD_READ_OBJECT: Method
METHOD_OBJECT_HEADS: Method
METHOD_DELETE_OBJECTS: Method
METHOD_LIST_OBJECTS: Method

class KVGroup(_message.Message):
    __slots__ = ("layers", "kv_heads", "head_dim", "window", "latent_dim")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    LATENT_DIM_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    kv_heads: int
    head_dim: int
    window: int
    latent_dim: int
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., window: _Optional[int] = ..., latent_dim: _Optional[int] = ...) -> None: ...

class LayerRange(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Spec(_message.Message):
    __slots__ = ("model", "revision", "dtype", "groups", "rope_json", "chunk_tokens", "tp_size", "pipeline", "layout")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ROPE_JSON_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TP_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    dtype: str
    groups: _containers.RepeatedCompositeFieldContainer[KVGroup]
    rope_json: str
    chunk_tokens: int
    tp_size: int
    pipeline: _containers.RepeatedCompositeFieldContainer[LayerRange]
    layout: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., dtype: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[KVGroup, _Mapping]]] = ..., rope_json: _Optional[str] = ..., chunk_tokens: _Optional[int] = ..., tp_size: _Optional[int] = ..., pipeline: _Optional[_Iterable[_Union[LayerRange, _Mapping]]] = ..., layout: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("version", "namespace", "tiers", "max_part_bytes", "chunks", "extra")
    class ExtraEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MAX_PART_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    version: str
    namespace: str
    tiers: _containers.RepeatedScalarFieldContainer[str]
    max_part_bytes: int
    chunks: int
    extra: _containers.ScalarMap[str, str]
    def __init__(self, version: _Optional[str] = ..., namespace: _Optional[str] = ..., tiers: _Optional[_Iterable[str]] = ..., max_part_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., extra: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RegisterSpecRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: Spec
    def __init__(self, spec: _Optional[_Union[Spec, _Mapping]] = ...) -> None: ...

class RegisterSpecResponse(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("tokens", "flops_per_token", "flops_per_token2", "flops_per_s", "step_s", "overlap", "link_bytes_per_s")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_TOKEN2_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_S_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    LINK_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    flops_per_token: float
    flops_per_token2: float
    flops_per_s: float
    step_s: float
    overlap: bool
    link_bytes_per_s: float
    def __init__(self, tokens: _Optional[int] = ..., flops_per_token: _Optional[float] = ..., flops_per_token2: _Optional[float] = ..., flops_per_s: _Optional[float] = ..., step_s: _Optional[float] = ..., overlap: _Optional[bool] = ..., link_bytes_per_s: _Optional[float] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("start", "end", "seconds", "recompute_s", "reason")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    seconds: float
    recompute_s: float
    reason: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., seconds: _Optional[float] = ..., recompute_s: _Optional[float] = ..., reason: _Optional[int] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("spec", "refs", "parts", "fidelity", "lease", "lease_ms", "in_session", "places", "prompt")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    IN_SESSION_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    refs: bytes
    parts: bytes
    fidelity: Fidelity
    lease: bytes
    lease_ms: int
    in_session: bool
    places: bool
    prompt: Prompt
    def __init__(self, spec: _Optional[bytes] = ..., refs: _Optional[bytes] = ..., parts: _Optional[bytes] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., lease: _Optional[bytes] = ..., lease_ms: _Optional[int] = ..., in_session: _Optional[bool] = ..., places: _Optional[bool] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("tokens", "used", "present", "leased", "places", "cold", "plan", "left_out")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    COLD_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    used: bytes
    present: bytes
    leased: bool
    places: bytes
    cold: bytes
    plan: Plan
    left_out: int
    def __init__(self, tokens: _Optional[int] = ..., used: _Optional[bytes] = ..., present: _Optional[bytes] = ..., leased: _Optional[bool] = ..., places: _Optional[bytes] = ..., cold: _Optional[bytes] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., left_out: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: bytes
    def __init__(self, leases: _Optional[bytes] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Record(_message.Message):
    __slots__ = ("key", "parent", "part", "position", "tokens", "first_valid", "logical", "stored", "form", "level", "exact", "artefact", "groups", "spec")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_VALID_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    parent: bytes
    part: bytes
    position: int
    tokens: int
    first_valid: int
    logical: int
    stored: int
    form: int
    level: int
    exact: bool
    artefact: bytes
    groups: bytes
    spec: bytes
    def __init__(self, key: _Optional[bytes] = ..., parent: _Optional[bytes] = ..., part: _Optional[bytes] = ..., position: _Optional[int] = ..., tokens: _Optional[int] = ..., first_valid: _Optional[int] = ..., logical: _Optional[int] = ..., stored: _Optional[int] = ..., form: _Optional[int] = ..., level: _Optional[int] = ..., exact: _Optional[bool] = ..., artefact: _Optional[bytes] = ..., groups: _Optional[bytes] = ..., spec: _Optional[bytes] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("spec", "items", "fidelity", "verify", "layers", "accept_forms")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FORMS_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    items: bytes
    fidelity: Fidelity
    verify: bool
    layers: _containers.RepeatedCompositeFieldContainer[LayerRange]
    accept_forms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, spec: _Optional[bytes] = ..., items: _Optional[bytes] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., verify: _Optional[bool] = ..., layers: _Optional[_Iterable[_Union[LayerRange, _Mapping]]] = ..., accept_forms: _Optional[_Iterable[int]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("head", "data")
    class Head(_message.Message):
        __slots__ = ("item", "status", "message", "record", "bytes", "error")
        ITEM_FIELD_NUMBER: _ClassVar[int]
        STATUS_FIELD_NUMBER: _ClassVar[int]
        MESSAGE_FIELD_NUMBER: _ClassVar[int]
        RECORD_FIELD_NUMBER: _ClassVar[int]
        BYTES_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        item: int
        status: str
        message: str
        record: Record
        bytes: int
        error: str
        def __init__(self, item: _Optional[int] = ..., status: _Optional[str] = ..., message: _Optional[str] = ..., record: _Optional[_Union[Record, _Mapping]] = ..., bytes: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: GetResponse.Head
    data: bytes
    def __init__(self, head: _Optional[_Union[GetResponse.Head, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("head", "data")
    class Head(_message.Message):
        __slots__ = ("spec", "record", "ack")
        SPEC_FIELD_NUMBER: _ClassVar[int]
        RECORD_FIELD_NUMBER: _ClassVar[int]
        ACK_FIELD_NUMBER: _ClassVar[int]
        spec: bytes
        record: Record
        ack: Ack
        def __init__(self, spec: _Optional[bytes] = ..., record: _Optional[_Union[Record, _Mapping]] = ..., ack: _Optional[_Union[Ack, str]] = ...) -> None: ...
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: PutRequest.Head
    data: bytes
    def __init__(self, head: _Optional[_Union[PutRequest.Head, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    def __init__(self, stored: _Optional[bool] = ...) -> None: ...

class KeysRequest(_message.Message):
    __slots__ = ("spec", "keys", "fidelity")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    keys: bytes
    fidelity: Fidelity
    def __init__(self, spec: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("spec", "keys", "ttl_ms")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    keys: bytes
    ttl_ms: int
    def __init__(self, spec: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class HintRequest(_message.Message):
    __slots__ = ("spec", "keys", "awaited_ms")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_MS_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    keys: bytes
    awaited_ms: int
    def __init__(self, spec: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., awaited_ms: _Optional[int] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("cursor", "limit")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    limit: int
    def __init__(self, cursor: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("part", "tier", "form", "level", "exact", "logical", "stored")
    PART_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    part: bytes
    tier: str
    form: str
    level: int
    exact: bool
    logical: int
    stored: int
    def __init__(self, part: _Optional[bytes] = ..., tier: _Optional[str] = ..., form: _Optional[str] = ..., level: _Optional[int] = ..., exact: _Optional[bool] = ..., logical: _Optional[int] = ..., stored: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("key", "parent", "spec", "position", "tokens", "hits", "leases", "pinned_until_ms", "last_use_ms", "placements")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    PINNED_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_USE_MS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    parent: bytes
    spec: bytes
    position: int
    tokens: int
    hits: int
    leases: int
    pinned_until_ms: int
    last_use_ms: int
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    def __init__(self, key: _Optional[bytes] = ..., parent: _Optional[bytes] = ..., spec: _Optional[bytes] = ..., position: _Optional[int] = ..., tokens: _Optional[int] = ..., hits: _Optional[int] = ..., leases: _Optional[int] = ..., pinned_until_ms: _Optional[int] = ..., last_use_ms: _Optional[int] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("chunks", "cursor")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    cursor: int
    def __init__(self, chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., cursor: _Optional[int] = ...) -> None: ...

class GetArtefactRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class GetArtefactResponse(_message.Message):
    __slots__ = ("bytes", "data")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    data: bytes
    def __init__(self, bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("tier", "path")
    TIER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    tier: str
    path: str
    def __init__(self, tier: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("tier", "path", "state", "left_bytes", "moved_parts", "moved_bytes", "dropped_chunks", "dropped_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVED_PARTS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    path: str
    state: str
    left_bytes: int
    moved_parts: int
    moved_bytes: int
    dropped_chunks: int
    dropped_bytes: int
    def __init__(self, tier: _Optional[str] = ..., path: _Optional[str] = ..., state: _Optional[str] = ..., left_bytes: _Optional[int] = ..., moved_parts: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., dropped_chunks: _Optional[int] = ..., dropped_bytes: _Optional[int] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("lookups",)
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    lookups: bool
    def __init__(self, lookups: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("kind", "key", "spec", "part", "tier", "at_ms", "note", "refs")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: bytes
    spec: bytes
    part: bytes
    tier: str
    at_ms: int
    note: str
    refs: bytes
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[bytes] = ..., spec: _Optional[bytes] = ..., part: _Optional[bytes] = ..., tier: _Optional[str] = ..., at_ms: _Optional[int] = ..., note: _Optional[str] = ..., refs: _Optional[bytes] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("chunk", "placement", "problem")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    placement: Placement
    problem: str
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ..., problem: _Optional[str] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("opened",)
    OPENED_FIELD_NUMBER: _ClassVar[int]
    opened: bool
    def __init__(self, opened: _Optional[bool] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "session", "token", "namespace", "peer")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    session: bytes
    token: str
    namespace: str
    peer: bool
    def __init__(self, protocol: _Optional[int] = ..., session: _Optional[bytes] = ..., token: _Optional[str] = ..., namespace: _Optional[str] = ..., peer: _Optional[bool] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("instance", "version", "namespace")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    instance: bytes
    version: str
    namespace: str
    def __init__(self, instance: _Optional[bytes] = ..., version: _Optional[str] = ..., namespace: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("status", "error", "message", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: str
    error: str
    message: str
    reason: str
    def __init__(self, status: _Optional[str] = ..., error: _Optional[str] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PlaceRequest(_message.Message):
    __slots__ = ("spec", "items", "fidelity", "lease", "lease_ms", "verify")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    items: bytes
    fidelity: Fidelity
    lease: bytes
    lease_ms: int
    verify: bool
    def __init__(self, spec: _Optional[bytes] = ..., items: _Optional[bytes] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., lease: _Optional[bytes] = ..., lease_ms: _Optional[int] = ..., verify: _Optional[bool] = ...) -> None: ...

class PlaceResponse(_message.Message):
    __slots__ = ("places", "failed")
    class Failed(_message.Message):
        __slots__ = ("item", "failure")
        ITEM_FIELD_NUMBER: _ClassVar[int]
        FAILURE_FIELD_NUMBER: _ClassVar[int]
        item: int
        failure: Failure
        def __init__(self, item: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...
    PLACES_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    places: bytes
    failed: _containers.RepeatedCompositeFieldContainer[PlaceResponse.Failed]
    def __init__(self, places: _Optional[bytes] = ..., failed: _Optional[_Iterable[_Union[PlaceResponse.Failed, _Mapping]]] = ...) -> None: ...

class DevicePlacesRequest(_message.Message):
    __slots__ = ("spec", "items", "device", "lease", "lease_ms")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    items: bytes
    device: str
    lease: bytes
    lease_ms: int
    def __init__(self, spec: _Optional[bytes] = ..., items: _Optional[bytes] = ..., device: _Optional[str] = ..., lease: _Optional[bytes] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class DevicePlacesResponse(_message.Message):
    __slots__ = ("places", "slabs")
    class Slab(_message.Message):
        __slots__ = ("number", "identity", "bytes", "opening", "descriptor")
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        IDENTITY_FIELD_NUMBER: _ClassVar[int]
        BYTES_FIELD_NUMBER: _ClassVar[int]
        OPENING_FIELD_NUMBER: _ClassVar[int]
        DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
        number: int
        identity: str
        bytes: int
        opening: str
        descriptor: bool
        def __init__(self, number: _Optional[int] = ..., identity: _Optional[str] = ..., bytes: _Optional[int] = ..., opening: _Optional[str] = ..., descriptor: _Optional[bool] = ...) -> None: ...
    PLACES_FIELD_NUMBER: _ClassVar[int]
    SLABS_FIELD_NUMBER: _ClassVar[int]
    places: bytes
    slabs: _containers.RepeatedCompositeFieldContainer[DevicePlacesResponse.Slab]
    def __init__(self, places: _Optional[bytes] = ..., slabs: _Optional[_Iterable[_Union[DevicePlacesResponse.Slab, _Mapping]]] = ...) -> None: ...

class StageRequest(_message.Message):
    __slots__ = ("number", "bytes")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    number: int
    bytes: int
    def __init__(self, number: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class StageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StagedPutRequest(_message.Message):
    __slots__ = ("put",)
    PUT_FIELD_NUMBER: _ClassVar[int]
    put: bytes
    def __init__(self, put: _Optional[bytes] = ...) -> None: ...

class IndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IndexResponse(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class HazardsRequest(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class HazardsResponse(_message.Message):
    __slots__ = ("lease_limit_ms", "asks_misses")
    LEASE_LIMIT_MS_FIELD_NUMBER: _ClassVar[int]
    ASKS_MISSES_FIELD_NUMBER: _ClassVar[int]
    lease_limit_ms: int
    asks_misses: bool
    def __init__(self, lease_limit_ms: _Optional[int] = ..., asks_misses: _Optional[bool] = ...) -> None: ...

class Extents(_message.Message):
    __slots__ = ("given", "gone")
    class Extent(_message.Message):
        __slots__ = ("number", "bytes")
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        BYTES_FIELD_NUMBER: _ClassVar[int]
        number: int
        bytes: int
        def __init__(self, number: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    given: _containers.RepeatedCompositeFieldContainer[Extents.Extent]
    gone: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, given: _Optional[_Iterable[_Union[Extents.Extent, _Mapping]]] = ..., gone: _Optional[_Iterable[int]] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("names", "used")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    names: bytes
    used: bool
    def __init__(self, names: _Optional[bytes] = ..., used: _Optional[bool] = ...) -> None: ...

class FindResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    def __init__(self, rows: _Optional[bytes] = ...) -> None: ...

class RecordRequest(_message.Message):
    __slots__ = ("name", "offset", "bytes", "form", "total")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    offset: int
    bytes: int
    form: int
    total: int
    def __init__(self, name: _Optional[bytes] = ..., offset: _Optional[int] = ..., bytes: _Optional[int] = ..., form: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class RecordResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PutObjectRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PutObjectResponse(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    def __init__(self, stored: _Optional[bool] = ...) -> None: ...

class ReadObjectRequest(_message.Message):
    __slots__ = ("key", "offset", "bytes")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    offset: int
    bytes: int
    def __init__(self, key: _Optional[bytes] = ..., offset: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class ReadObjectResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ObjectHeadsRequest(_message.Message):
    __slots__ = ("names", "bytes")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    bytes: int
    def __init__(self, names: _Optional[_Iterable[str]] = ..., bytes: _Optional[int] = ...) -> None: ...

class ObjectHeadsResponse(_message.Message):
    __slots__ = ("lengths",)
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    lengths: bytes
    def __init__(self, lengths: _Optional[bytes] = ...) -> None: ...

class DeleteObjectsRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteObjectsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListObjectsRequest(_message.Message):
    __slots__ = ("prefix", "cursor")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    cursor: int
    def __init__(self, prefix: _Optional[str] = ..., cursor: _Optional[int] = ...) -> None: ...

class ListObjectsResponse(_message.Message):
    __slots__ = ("names", "bytes", "cursor")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    bytes: _containers.RepeatedScalarFieldContainer[int]
    cursor: int
    def __init__(self, names: _Optional[_Iterable[str]] = ..., bytes: _Optional[_Iterable[int]] = ..., cursor: _Optional[int] = ...) -> None: ...
