"""What a peer says of itself in the DHT: signed, short-lived, and checked again by everybody who reads it.

A record travels as public key, signature, body; the body is canonical JSON and the signature is of its very bytes.
Storage is never trusted: the DHT may hand back anything.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from tsr_swarm.discovery.addresses import is_multiaddr
from tsr_swarm.discovery.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, is_signed_by, peer_id_of
from tsr_swarm.errors import ConfigError, PeerError
from tsr_swarm.transport.address import parse_address

VERSION = 2
MAX_RECORD_BYTES = 1536
MAX_LIFETIME_SECONDS = 15 * 60.0
_KIND = "peer-record"
MAX_COUNT = 10**15  # of parameters and rounds: exact in every reader of JSON
RUN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RUN_ID = re.compile(r"[A-Za-z0-9]{1,64}")
_PEER_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


class PeerRole(StrEnum):
    """What a peer says it does. A claim: that a record is signed does not make its peer the coordinator."""

    COORDINATOR = "coordinator"
    PEER = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a peer says of its run and itself. Raises ValueError when a field breaks its bound."""

    run_id: str  # 1 to 64 letters and digits
    run: str  # the run's name: 1 to 64 letters, digits, '-' or '_'
    parameters: int  # of the model
    round: int  # the newest that stands, as far as the peer knows; 0: none yet
    name: str  # the peer's: 1 to 32 letters, digits, '-' or '_'
    address: str  # host:port; empty: client-only
    role: PeerRole

    def __post_init__(self) -> None:
        _require(_RUN_ID.fullmatch(self.run_id), "run_id")
        _require(RUN_NAME.fullmatch(self.run), "run")
        _require(0 <= self.parameters <= MAX_COUNT, "parameters")
        _require(0 <= self.round <= MAX_COUNT, "round")
        _require(_NAME.fullmatch(self.name), "name")
        _require(not self.address or _is_address(self.address), "address")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord(Presence):
    """A presence, whose it is and until when it holds. Raises ValueError when a field breaks its bound."""

    version: int = VERSION
    peer_id: str  # 32 hexadecimal digits, made from the public key
    dht: str = ""  # multiaddr of its DHT node; empty: nobody can dial that
    issued: float  # Unix time, seconds
    expires: float  # Unix time, at most 15 minutes after issued

    def __post_init__(self) -> None:
        Presence.__post_init__(self)
        _require(self.version == VERSION, "version")
        _require(_PEER_ID.fullmatch(self.peer_id), "peer_id")
        _require(not self.dht or is_multiaddr(self.dht), "dht")
        _require(math.isfinite(self.issued) and math.isfinite(self.expires), "issued")
        _require(0 < self.expires - self.issued <= MAX_LIFETIME_SECONDS, "expires")


_KINDS = {field.name: field.type for field in fields(PeerRecord) if field.type in (int, float)}  # the others are text


def encode_record(record: PeerRecord, identity: Identity) -> bytes:
    """Sign ``record``; always under 1.5 kB. Raises ValueError when it is not the record of ``identity``."""
    _require(record.peer_id == identity.peer_id, "peer_id")
    body = _canonical(record)
    return identity.public_key + identity.sign(_KIND, body) + body


def decode_record(data: bytes, *, run_id: str | None, now: float) -> PeerRecord:
    """Read a record of unknown origin and check form, key, signature, run and time. Raises PeerError.

    ``run_id``: None for a record of any run.
    """
    record = authentic_record(data)
    if run_id not in (None, record.run_id):
        raise PeerError("run", f"A record is of run '{record.run_id}', not '{run_id}'; it is left out.")
    if record.expires <= now:
        raise PeerError(
            "expired", f"The record of '{record.name}' expired {now - record.expires:.0f} s ago; it is left out."
        )
    if record.expires > now + MAX_LIFETIME_SECONDS:
        raise PeerError(
            "lifetime",
            f"The record of '{record.name}' is to last {record.expires - now:.0f} s, more than "
            f"{MAX_LIFETIME_SECONDS:.0f} s; it is left out. Check that machine's clock.",
        )
    return record


def authentic_record(data: bytes) -> PeerRecord:
    """Read a record and check what no clock is needed for: size, form, bounds, key and signature. Raises PeerError."""
    if len(data) > MAX_RECORD_BYTES:
        raise PeerError("size", f"A record has {len(data)} bytes, more than {MAX_RECORD_BYTES}; it is left out.")
    key, rest = data[:PUBLIC_KEY_BYTES], data[PUBLIC_KEY_BYTES:]
    signature, body = rest[:SIGNATURE_BYTES], rest[SIGNATURE_BYTES:]
    record = _parse(body)
    if record.peer_id != peer_id_of(key) or not is_signed_by(key, _KIND, body, signature):
        raise PeerError("signature", f"A record for '{record.name}' is not signed by that peer; it is left out.")
    return record


def _parse(body: bytes) -> PeerRecord:
    try:
        said = json.loads(body)
        for name in said:
            if type(said[name]) is not _KINDS.get(name, str):
                raise ValueError(f"{name[:20]} is of the wrong kind")
        record = PeerRecord(**{**said, "role": PeerRole(said["role"])})
        if _canonical(record) != body:
            raise ValueError("not in its one legal form")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PeerError("form", f"A record cannot be read ({str(error)[:80]}); it is left out.") from error
    return record


def _canonical(record: PeerRecord) -> bytes:
    times = {"issued": float(record.issued), "expires": float(record.expires)}  # 5 and 5.0 are one time, in one form
    return json.dumps(asdict(record) | times, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _is_address(address: str) -> bool:
    try:
        return parse_address(address)[1] > 0
    except ConfigError:
        return False


def _require(condition: object, field: str) -> None:
    if not condition:
        raise ValueError(f"{field} is out of bounds")
