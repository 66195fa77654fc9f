from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "package_version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package_version: str
    def __init__(self, protocol: _Optional[int] = ..., package_version: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol", "package_version", "manifest", "initial_peers", "unix_time", "peer_id", "first", "contacts", "rules")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    INITIAL_PEERS_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    package_version: str
    manifest: bytes
    initial_peers: _containers.RepeatedScalarFieldContainer[str]
    unix_time: float
    peer_id: str
    first: str
    contacts: _containers.RepeatedCompositeFieldContainer[Contact]
    rules: Rules
    def __init__(self, protocol: _Optional[int] = ..., package_version: _Optional[str] = ..., manifest: _Optional[bytes] = ..., initial_peers: _Optional[_Iterable[str]] = ..., unix_time: _Optional[float] = ..., peer_id: _Optional[str] = ..., first: _Optional[str] = ..., contacts: _Optional[_Iterable[_Union[Contact, _Mapping]]] = ..., rules: _Optional[_Union[Rules, _Mapping]] = ...) -> None: ...

class Rules(_message.Message):
    __slots__ = ("rounds", "min_peers", "quorum", "floor_seconds", "ceiling_seconds", "budget_kb")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MIN_PEERS_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    FLOOR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CEILING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_KB_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    min_peers: int
    quorum: int
    floor_seconds: float
    ceiling_seconds: float
    budget_kb: int
    def __init__(self, rounds: _Optional[int] = ..., min_peers: _Optional[int] = ..., quorum: _Optional[int] = ..., floor_seconds: _Optional[float] = ..., ceiling_seconds: _Optional[float] = ..., budget_kb: _Optional[int] = ...) -> None: ...

class Contact(_message.Message):
    __slots__ = ("peer_id", "address")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    address: str
    def __init__(self, peer_id: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("manifest_digest", "peer_id", "name", "address", "local_space", "device", "number", "trains")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_SPACE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRAINS_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    peer_id: str
    name: str
    address: str
    local_space: str
    device: str
    number: int
    trains: bool
    def __init__(self, manifest_digest: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., local_space: _Optional[str] = ..., device: _Optional[str] = ..., number: _Optional[int] = ..., trains: _Optional[bool] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("number", "name")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("round", "first_step", "steps", "lr_first", "lr_last", "decay", "tangent", "parent", "draw", "draw_numbers", "seed", "choose", "range", "project", "first", "second")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LR_FIRST_FIELD_NUMBER: _ClassVar[int]
    LR_LAST_FIELD_NUMBER: _ClassVar[int]
    DECAY_FIELD_NUMBER: _ClassVar[int]
    TANGENT_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    DRAW_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOOSE_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    round: int
    first_step: int
    steps: int
    lr_first: float
    lr_last: float
    decay: float
    tangent: _containers.RepeatedScalarFieldContainer[int]
    parent: bytes
    draw: _containers.RepeatedScalarFieldContainer[int]
    draw_numbers: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    choose: _containers.RepeatedScalarFieldContainer[int]
    range: _containers.RepeatedScalarFieldContainer[int]
    project: _containers.RepeatedScalarFieldContainer[int]
    first: _containers.RepeatedScalarFieldContainer[int]
    second: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, round: _Optional[int] = ..., first_step: _Optional[int] = ..., steps: _Optional[int] = ..., lr_first: _Optional[float] = ..., lr_last: _Optional[float] = ..., decay: _Optional[float] = ..., tangent: _Optional[_Iterable[int]] = ..., parent: _Optional[bytes] = ..., draw: _Optional[_Iterable[int]] = ..., draw_numbers: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., choose: _Optional[_Iterable[int]] = ..., range: _Optional[_Iterable[int]] = ..., project: _Optional[_Iterable[int]] = ..., first: _Optional[_Iterable[int]] = ..., second: _Optional[_Iterable[int]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("round", "chain", "parent", "voters")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    round: int
    chain: bytes
    parent: bytes
    voters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, round: _Optional[int] = ..., chain: _Optional[bytes] = ..., parent: _Optional[bytes] = ..., voters: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanKey(_message.Message):
    __slots__ = ("round", "term", "version")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    round: int
    term: int
    version: int
    def __init__(self, round: _Optional[int] = ..., term: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class PollRequest(_message.Message):
    __slots__ = ("manifest_digest", "peer_id", "address", "incarnation", "applied", "trains", "sent", "known", "number", "progress", "lease")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    TRAINS_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    peer_id: str
    address: str
    incarnation: int
    applied: int
    trains: bool
    sent: PlanKey
    known: int
    number: int
    progress: Progress
    lease: DataLease
    def __init__(self, manifest_digest: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., address: _Optional[str] = ..., incarnation: _Optional[int] = ..., applied: _Optional[int] = ..., trains: _Optional[bool] = ..., sent: _Optional[_Union[PlanKey, _Mapping]] = ..., known: _Optional[int] = ..., number: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., lease: _Optional[_Union[DataLease, _Mapping]] = ...) -> None: ...

class DataLease(_message.Message):
    __slots__ = ("epoch", "part", "tokens", "size")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    part: int
    tokens: int
    size: int
    def __init__(self, epoch: _Optional[int] = ..., part: _Optional[int] = ..., tokens: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Coverage(_message.Message):
    __slots__ = ("epoch", "done", "ahead")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    done: bytes
    ahead: bytes
    def __init__(self, epoch: _Optional[int] = ..., done: _Optional[bytes] = ..., ahead: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("round", "step", "tokens_per_second", "local_loss", "wire_bytes")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    LOCAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    round: int
    step: int
    tokens_per_second: float
    local_loss: float
    wire_bytes: int
    def __init__(self, round: _Optional[int] = ..., step: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., local_loss: _Optional[float] = ..., wire_bytes: _Optional[int] = ...) -> None: ...

class PollReply(_message.Message):
    __slots__ = ("news", "redirect", "unknown", "unchanged", "contacts", "lease", "coverage")
    NEWS_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    news: News
    redirect: Redirect
    unknown: bool
    unchanged: Unchanged
    contacts: _containers.RepeatedCompositeFieldContainer[Contact]
    lease: DataLease
    coverage: Coverage
    def __init__(self, news: _Optional[_Union[News, _Mapping]] = ..., redirect: _Optional[_Union[Redirect, _Mapping]] = ..., unknown: _Optional[bool] = ..., unchanged: _Optional[_Union[Unchanged, _Mapping]] = ..., contacts: _Optional[_Iterable[_Union[Contact, _Mapping]]] = ..., lease: _Optional[_Union[DataLease, _Mapping]] = ..., coverage: _Optional[_Union[Coverage, _Mapping]] = ...) -> None: ...

class Unchanged(_message.Message):
    __slots__ = ("term", "version", "number")
    TERM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    term: int
    version: int
    number: int
    def __init__(self, term: _Optional[int] = ..., version: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class News(_message.Message):
    __slots__ = ("term", "leader", "version", "base", "sources", "plan", "nodes", "is_finished", "number", "rules", "reducers")
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    IS_FINISHED_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    REDUCERS_FIELD_NUMBER: _ClassVar[int]
    term: int
    leader: str
    version: int
    base: Record
    sources: _containers.RepeatedScalarFieldContainer[int]
    plan: OpenPlan
    nodes: _containers.RepeatedScalarFieldContainer[str]
    is_finished: bool
    number: int
    rules: Rules
    reducers: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, term: _Optional[int] = ..., leader: _Optional[str] = ..., version: _Optional[int] = ..., base: _Optional[_Union[Record, _Mapping]] = ..., sources: _Optional[_Iterable[int]] = ..., plan: _Optional[_Union[OpenPlan, _Mapping]] = ..., nodes: _Optional[_Iterable[str]] = ..., is_finished: _Optional[bool] = ..., number: _Optional[int] = ..., rules: _Optional[_Union[Rules, _Mapping]] = ..., reducers: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class OpenPlan(_message.Message):
    __slots__ = ("plan", "key", "places")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    plan: RoundPlan
    key: PlanKey
    places: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., key: _Optional[_Union[PlanKey, _Mapping]] = ..., places: _Optional[_Iterable[int]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("peer_id", "incarnation")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    peer_id: bytes
    incarnation: int
    def __init__(self, peer_id: _Optional[bytes] = ..., incarnation: _Optional[int] = ...) -> None: ...

class Redirect(_message.Message):
    __slots__ = ("term", "leader", "base")
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    term: int
    leader: str
    base: Record
    def __init__(self, term: _Optional[int] = ..., leader: _Optional[str] = ..., base: _Optional[_Union[Record, _Mapping]] = ...) -> None: ...

class TellRequest(_message.Message):
    __slots__ = ("manifest_digest", "sender", "address", "vote_request", "vote_reply", "beat", "beat_reply", "close", "shard_done", "goodbye")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VOTE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    BEAT_REPLY_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    SHARD_DONE_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    sender: str
    address: str
    vote_request: VoteRequest
    vote_reply: VoteReply
    beat: Beat
    beat_reply: BeatReply
    close: Close
    shard_done: ShardDone
    goodbye: Goodbye
    def __init__(self, manifest_digest: _Optional[bytes] = ..., sender: _Optional[str] = ..., address: _Optional[str] = ..., vote_request: _Optional[_Union[VoteRequest, _Mapping]] = ..., vote_reply: _Optional[_Union[VoteReply, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., beat_reply: _Optional[_Union[BeatReply, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., shard_done: _Optional[_Union[ShardDone, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class TellReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VoteRequest(_message.Message):
    __slots__ = ("term", "round", "tail_term", "is_trial")
    TERM_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TAIL_TERM_FIELD_NUMBER: _ClassVar[int]
    IS_TRIAL_FIELD_NUMBER: _ClassVar[int]
    term: int
    round: int
    tail_term: int
    is_trial: bool
    def __init__(self, term: _Optional[int] = ..., round: _Optional[int] = ..., tail_term: _Optional[int] = ..., is_trial: _Optional[bool] = ...) -> None: ...

class VoteReply(_message.Message):
    __slots__ = ("term", "voter_term", "granted", "is_trial", "reason")
    TERM_FIELD_NUMBER: _ClassVar[int]
    VOTER_TERM_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    IS_TRIAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    term: int
    voter_term: int
    granted: bool
    is_trial: bool
    reason: str
    def __init__(self, term: _Optional[int] = ..., voter_term: _Optional[int] = ..., granted: _Optional[bool] = ..., is_trial: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("term", "base", "proposal")
    TERM_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    term: int
    base: Record
    proposal: Record
    def __init__(self, term: _Optional[int] = ..., base: _Optional[_Union[Record, _Mapping]] = ..., proposal: _Optional[_Union[Record, _Mapping]] = ...) -> None: ...

class BeatReply(_message.Message):
    __slots__ = ("term", "round", "accepted", "reason")
    TERM_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    term: int
    round: int
    accepted: bytes
    reason: str
    def __init__(self, term: _Optional[int] = ..., round: _Optional[int] = ..., accepted: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("term", "round", "parent", "shards", "roster")
    TERM_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    term: int
    round: int
    parent: bytes
    shards: _containers.RepeatedScalarFieldContainer[int]
    roster: bytes
    def __init__(self, term: _Optional[int] = ..., round: _Optional[int] = ..., parent: _Optional[bytes] = ..., shards: _Optional[_Iterable[int]] = ..., roster: _Optional[bytes] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("peer_id", "number")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    peer_id: bytes
    number: int
    def __init__(self, peer_id: _Optional[bytes] = ..., number: _Optional[int] = ...) -> None: ...

class ShardDone(_message.Message):
    __slots__ = ("term", "round", "shard", "result", "local_loss", "raw_sent", "kappas", "energies", "roster")
    TERM_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    RAW_SENT_FIELD_NUMBER: _ClassVar[int]
    KAPPAS_FIELD_NUMBER: _ClassVar[int]
    ENERGIES_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    term: int
    round: int
    shard: int
    result: ShardResult
    local_loss: float
    raw_sent: int
    kappas: _containers.RepeatedScalarFieldContainer[float]
    energies: _containers.RepeatedScalarFieldContainer[float]
    roster: bytes
    def __init__(self, term: _Optional[int] = ..., round: _Optional[int] = ..., shard: _Optional[int] = ..., result: _Optional[_Union[ShardResult, _Mapping]] = ..., local_loss: _Optional[float] = ..., raw_sent: _Optional[int] = ..., kappas: _Optional[_Iterable[float]] = ..., energies: _Optional[_Iterable[float]] = ..., roster: _Optional[bytes] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPeersRequest(_message.Message):
    __slots__ = ("manifest_digest", "roster", "known")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    roster: bytes
    known: bytes
    def __init__(self, manifest_digest: _Optional[bytes] = ..., roster: _Optional[bytes] = ..., known: _Optional[bytes] = ...) -> None: ...

class ListPeersReply(_message.Message):
    __slots__ = ("members", "unchanged")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    unchanged: bool
    def __init__(self, members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., unchanged: _Optional[bool] = ...) -> None: ...

class CatchUpRequest(_message.Message):
    __slots__ = ("manifest_digest", "applied")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    applied: int
    def __init__(self, manifest_digest: _Optional[bytes] = ..., applied: _Optional[int] = ...) -> None: ...

class CatchUpReply(_message.Message):
    __slots__ = ("round_bytes", "state_round", "state_bytes", "rest_bytes")
    ROUND_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REST_BYTES_FIELD_NUMBER: _ClassVar[int]
    round_bytes: int
    state_round: int
    state_bytes: int
    rest_bytes: int
    def __init__(self, round_bytes: _Optional[int] = ..., state_round: _Optional[int] = ..., state_bytes: _Optional[int] = ..., rest_bytes: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("protocol", "manifest_digest", "round", "parent", "peer_id", "shard", "tokens", "steps", "local_loss", "sections", "kappas", "energies", "term")
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
    TERM_FIELD_NUMBER: _ClassVar[int]
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
    term: int
    def __init__(self, protocol: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., parent: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., shard: _Optional[int] = ..., tokens: _Optional[int] = ..., steps: _Optional[int] = ..., local_loss: _Optional[float] = ..., sections: _Optional[_Iterable[_Union[Section, _Mapping]]] = ..., kappas: _Optional[_Iterable[float]] = ..., energies: _Optional[_Iterable[float]] = ..., term: _Optional[int] = ...) -> None: ...

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

class FetchShardRequest(_message.Message):
    __slots__ = ("round", "shard", "hashes")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    round: int
    shard: int
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, round: _Optional[int] = ..., shard: _Optional[int] = ..., hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShardPart(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class FetchPublishedRequest(_message.Message):
    __slots__ = ("peer_id", "round", "chain", "header_only")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    HEADER_ONLY_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    round: int
    chain: bytes
    header_only: bool
    def __init__(self, peer_id: _Optional[str] = ..., round: _Optional[int] = ..., chain: _Optional[bytes] = ..., header_only: _Optional[bool] = ...) -> None: ...

class PublishedHeader(_message.Message):
    __slots__ = ("plan", "shards", "chain", "voters", "included")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    INCLUDED_FIELD_NUMBER: _ClassVar[int]
    plan: RoundPlan
    shards: _containers.RepeatedCompositeFieldContainer[ShardResult]
    chain: bytes
    voters: _containers.RepeatedScalarFieldContainer[str]
    included: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., shards: _Optional[_Iterable[_Union[ShardResult, _Mapping]]] = ..., chain: _Optional[bytes] = ..., voters: _Optional[_Iterable[str]] = ..., included: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShardResult(_message.Message):
    __slots__ = ("void", "absent", "tokens", "sections")
    VOID_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    void: bool
    absent: bytes
    tokens: int
    sections: _containers.RepeatedCompositeFieldContainer[Section]
    def __init__(self, void: _Optional[bool] = ..., absent: _Optional[bytes] = ..., tokens: _Optional[int] = ..., sections: _Optional[_Iterable[_Union[Section, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ("after", "wait_ms", "without_progress")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    after: int
    wait_ms: int
    without_progress: bool
    def __init__(self, after: _Optional[int] = ..., wait_ms: _Optional[int] = ..., without_progress: _Optional[bool] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("lines", "last", "lines_bytes")
    LINES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    LINES_BYTES_FIELD_NUMBER: _ClassVar[int]
    lines: bytes
    last: int
    lines_bytes: int
    def __init__(self, lines: _Optional[bytes] = ..., last: _Optional[int] = ..., lines_bytes: _Optional[int] = ...) -> None: ...
