from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_WAITING: _ClassVar[Phase]
    PHASE_TRAIN: _ClassVar[Phase]
    PHASE_EXCHANGE: _ClassVar[Phase]
    PHASE_COMMIT: _ClassVar[Phase]
    PHASE_APPLY: _ClassVar[Phase]
    PHASE_FINISHED: _ClassVar[Phase]
PHASE_UNSPECIFIED: Phase
PHASE_WAITING: Phase
PHASE_TRAIN: Phase
PHASE_EXCHANGE: Phase
PHASE_COMMIT: Phase
PHASE_APPLY: Phase
PHASE_FINISHED: Phase

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "package_version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package_version: str
    def __init__(self, protocol: _Optional[int] = ..., package_version: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol", "package_version", "manifest", "initial_peers", "unix_time")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    INITIAL_PEERS_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package_version: str
    manifest: bytes
    initial_peers: _containers.RepeatedScalarFieldContainer[str]
    unix_time: float
    def __init__(self, protocol: _Optional[int] = ..., package_version: _Optional[str] = ..., manifest: _Optional[bytes] = ..., initial_peers: _Optional[_Iterable[str]] = ..., unix_time: _Optional[float] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("manifest_digest", "peer_id", "name", "address", "local_space", "device")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_SPACE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    peer_id: str
    name: str
    address: str
    local_space: str
    device: str
    def __init__(self, manifest_digest: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., local_space: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("number", "name", "donors")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DONORS_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    donors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., donors: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeStateRequest(_message.Message):
    __slots__ = ("manifest_digest", "round")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    round: int
    def __init__(self, manifest_digest: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class StateDescription(_message.Message):
    __slots__ = ("round", "digest", "chain", "total_bytes", "chunk_bytes", "chunk_hashes")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_HASHES_FIELD_NUMBER: _ClassVar[int]
    round: int
    digest: bytes
    chain: bytes
    total_bytes: int
    chunk_bytes: int
    chunk_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, round: _Optional[int] = ..., digest: _Optional[bytes] = ..., chain: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., chunk_hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FetchStateRequest(_message.Message):
    __slots__ = ("round", "first_chunk", "chunks")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    round: int
    first_chunk: int
    chunks: int
    def __init__(self, round: _Optional[int] = ..., first_chunk: _Optional[int] = ..., chunks: _Optional[int] = ...) -> None: ...

class StateChunk(_message.Message):
    __slots__ = ("index", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RoundPlan(_message.Message):
    __slots__ = ("round", "first_step", "steps", "lr_first", "lr_last", "decay", "tangent", "aim", "parent", "shards", "draw", "draw_numbers", "seed", "choose", "first", "second")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LR_FIRST_FIELD_NUMBER: _ClassVar[int]
    LR_LAST_FIELD_NUMBER: _ClassVar[int]
    DECAY_FIELD_NUMBER: _ClassVar[int]
    TANGENT_FIELD_NUMBER: _ClassVar[int]
    AIM_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    DRAW_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOOSE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    round: int
    first_step: int
    steps: int
    lr_first: float
    lr_last: float
    decay: float
    tangent: _containers.RepeatedScalarFieldContainer[int]
    aim: _containers.RepeatedScalarFieldContainer[int]
    parent: bytes
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    draw: _containers.RepeatedScalarFieldContainer[int]
    draw_numbers: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    choose: _containers.RepeatedScalarFieldContainer[int]
    first: bool
    second: bool
    def __init__(self, round: _Optional[int] = ..., first_step: _Optional[int] = ..., steps: _Optional[int] = ..., lr_first: _Optional[float] = ..., lr_last: _Optional[float] = ..., decay: _Optional[float] = ..., tangent: _Optional[_Iterable[int]] = ..., aim: _Optional[_Iterable[int]] = ..., parent: _Optional[bytes] = ..., shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ..., draw: _Optional[_Iterable[int]] = ..., draw_numbers: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., choose: _Optional[_Iterable[int]] = ..., first: _Optional[bool] = ..., second: _Optional[bool] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("blocks", "address")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    address: str
    def __init__(self, blocks: _Optional[_Iterable[int]] = ..., address: _Optional[str] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("peer_id", "known_version", "wait_ms", "progress", "is_behind", "applied")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    IS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    known_version: int
    wait_ms: int
    progress: Progress
    is_behind: bool
    applied: int
    def __init__(self, peer_id: _Optional[str] = ..., known_version: _Optional[int] = ..., wait_ms: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., is_behind: _Optional[bool] = ..., applied: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("round", "step", "tokens_per_second")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    round: int
    step: int
    tokens_per_second: float
    def __init__(self, round: _Optional[int] = ..., step: _Optional[int] = ..., tokens_per_second: _Optional[float] = ...) -> None: ...

class FollowReply(_message.Message):
    __slots__ = ("phase", "plan", "committed_round", "committed_chain", "deadline_ms", "unknown_peer", "version", "catch_up")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_ROUND_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_CHAIN_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_PEER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CATCH_UP_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    plan: RoundPlan
    committed_round: int
    committed_chain: bytes
    deadline_ms: int
    unknown_peer: bool
    version: int
    catch_up: CatchUp
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., committed_round: _Optional[int] = ..., committed_chain: _Optional[bytes] = ..., deadline_ms: _Optional[int] = ..., unknown_peer: _Optional[bool] = ..., version: _Optional[int] = ..., catch_up: _Optional[_Union[CatchUp, _Mapping]] = ...) -> None: ...

class CatchUp(_message.Message):
    __slots__ = ("round_bytes", "state_round", "state_bytes", "rest_bytes", "donors")
    ROUND_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONORS_FIELD_NUMBER: _ClassVar[int]
    round_bytes: int
    state_round: int
    state_bytes: int
    rest_bytes: int
    donors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, round_bytes: _Optional[int] = ..., state_round: _Optional[int] = ..., state_bytes: _Optional[int] = ..., rest_bytes: _Optional[int] = ..., donors: _Optional[_Iterable[str]] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("header", "signature", "certificate")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    signature: bytes
    certificate: bytes
    def __init__(self, header: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class ContributionHeader(_message.Message):
    __slots__ = ("protocol", "manifest_digest", "round", "parent", "peer_id", "shard", "tokens", "steps", "local_loss", "sections", "kappas", "energies")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    KAPPAS_FIELD_NUMBER: _ClassVar[int]
    ENERGIES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    manifest_digest: bytes
    round: int
    parent: bytes
    peer_id: str
    shard: int
    tokens: int
    steps: int
    local_loss: float
    sections: _containers.RepeatedCompositeFieldContainer[Section]
    kappas: _containers.RepeatedScalarFieldContainer[float]
    energies: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, protocol: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., parent: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., shard: _Optional[int] = ..., tokens: _Optional[int] = ..., steps: _Optional[int] = ..., local_loss: _Optional[float] = ..., sections: _Optional[_Iterable[_Union[Section, _Mapping]]] = ..., kappas: _Optional[_Iterable[float]] = ..., energies: _Optional[_Iterable[float]] = ...) -> None: ...

class Section(_message.Message):
    __slots__ = ("kind", "raw_bytes", "wire_bytes", "hash")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    kind: str
    raw_bytes: int
    wire_bytes: int
    hash: bytes
    def __init__(self, kind: _Optional[str] = ..., raw_bytes: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("envelope", "data")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    data: bytes
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("counted", "reason")
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    counted: bool
    reason: str
    def __init__(self, counted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class FetchPublishedRequest(_message.Message):
    __slots__ = ("peer_id", "round")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    round: int
    def __init__(self, peer_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class PublishedHeader(_message.Message):
    __slots__ = ("plan", "shards", "chain")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    plan: RoundPlan
    shards: _containers.RepeatedCompositeFieldContainer[ShardResult]
    chain: bytes
    def __init__(self, plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., shards: _Optional[_Iterable[_Union[ShardResult, _Mapping]]] = ..., chain: _Optional[bytes] = ...) -> None: ...

class ShardResult(_message.Message):
    __slots__ = ("void", "included", "tokens", "sections")
    VOID_FIELD_NUMBER: _ClassVar[int]
    INCLUDED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    void: bool
    included: _containers.RepeatedScalarFieldContainer[str]
    tokens: int
    sections: _containers.RepeatedCompositeFieldContainer[Section]
    def __init__(self, void: _Optional[bool] = ..., included: _Optional[_Iterable[str]] = ..., tokens: _Optional[int] = ..., sections: _Optional[_Iterable[_Union[Section, _Mapping]]] = ...) -> None: ...

class PublishedPart(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: PublishedHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[PublishedHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("peer_id", "round", "digest", "sent", "received", "overhead_bytes")
    class SentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ReceivedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    OVERHEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    round: int
    digest: bytes
    sent: _containers.ScalarMap[str, int]
    received: _containers.ScalarMap[str, int]
    overhead_bytes: int
    def __init__(self, peer_id: _Optional[str] = ..., round: _Optional[int] = ..., digest: _Optional[bytes] = ..., sent: _Optional[_Mapping[str, int]] = ..., received: _Optional[_Mapping[str, int]] = ..., overhead_bytes: _Optional[int] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("resync",)
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    resync: bool
    def __init__(self, resync: _Optional[bool] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("peer_id", "reason")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    reason: str
    def __init__(self, peer_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after", "wait_ms")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    after: int
    wait_ms: int
    def __init__(self, after: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("events", "last")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedScalarFieldContainer[str]
    last: int
    def __init__(self, events: _Optional[_Iterable[str]] = ..., last: _Optional[int] = ...) -> None: ...
