"""Records are what their peer signed, for a short while, or they are left out."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fixtures import peer_record
from tests.wire.examples import refusal_of
from tsr_swarm.discovery import records
from tsr_swarm.discovery.identity import Identity, new_identity

NOW = 1_700_000_000.0
RUN = "run1"
DHT = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWKwqXvCntmy4fDwmcrt8M2PytogE9EMQbDw1Ec5ZGZwtN"
ALICE, MALLORY = new_identity(), new_identity()


def signed(identity: Identity, fields: object) -> bytes:
    """What an enemy who can sign, but not follow the rules, would send."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return identity.public_key + identity.sign("peer-record", body) + body


def reason_of(data: bytes, run_id: str = RUN, now: float = NOW) -> str:
    return refusal_of(records.decode_record, data, run_id=run_id, now=now)


@given(
    name=st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True),
    run_id=st.from_regex(r"[A-Za-z0-9]{1,64}", fullmatch=True),
    address=st.sampled_from(["", "swarm.example.org:7700", "[2001:db8::7]:1", "a" * 253 + ":65535"]),
    role=st.sampled_from(records.PeerRole),
    run=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    counts=st.tuples(st.integers(0, records.MAX_COUNT), st.integers(0, records.MAX_COUNT)),
    dht=st.sampled_from(["", DHT, f"/dns4/{'a' * 171}/tcp/65535/p2p/{'1' * 64}"]),
    lifetime=st.floats(1, records.MAX_LIFETIME_SECONDS),
)
def test_a_record_is_read_as_it_was_written(
    name: str,
    run_id: str,
    address: str,
    role: records.PeerRole,
    run: str,
    counts: tuple[int, int],
    dht: str,
    lifetime: float,
) -> None:
    texts: dict[str, Any] = {"name": name, "run_id": run_id, "run": run, "address": address, "dht": dht, "role": role}
    parameters, round = counts
    record = peer_record(ALICE, 0.0, expires=lifetime, parameters=parameters, round=round, **texts)
    data = records.encode_record(record, ALICE)
    assert len(data) < records.MAX_RECORD_BYTES
    assert records.decode_record(data, run_id=run_id, now=0.0) == record


@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_every_flipped_byte_is_noticed(position: int, flip: int) -> None:
    data = bytearray(records.encode_record(peer_record(ALICE, NOW), ALICE))
    data[position % len(data)] ^= flip
    assert reason_of(bytes(data)) in {"form", "signature"}


@given(data=st.binary(max_size=records.MAX_RECORD_BYTES + 100))
@example(bytes(records.MAX_RECORD_BYTES + 1))
def test_noise_is_refused_and_nothing_else_happens(data: bytes) -> None:
    assert reason_of(data) == ("size" if len(data) > records.MAX_RECORD_BYTES else "form")


@given(cut=st.integers(0, 200))
def test_a_truncated_record_is_refused(cut: int) -> None:
    data = records.encode_record(peer_record(ALICE, NOW), ALICE)
    assert reason_of(data[: min(cut, len(data) - 1)]) in {"form", "signature"}


def test_nobody_can_speak_for_another_peer() -> None:
    record = peer_record(ALICE, NOW)
    assert reason_of(signed(MALLORY, asdict(record))) == "signature"
    with pytest.raises(ValueError, match="peer_id"):
        records.encode_record(record, MALLORY)


def test_a_record_is_of_one_run_and_expires_at_its_time() -> None:
    data = records.encode_record(peer_record(ALICE, NOW), ALICE)
    assert records.decode_record(data, run_id=RUN, now=NOW + 599.9)
    assert reason_of(data, now=NOW + 600) == "expired"
    assert reason_of(data, run_id="run2") == "run"


def test_a_record_from_the_future_is_refused_by_readers_but_is_authentic() -> None:
    data = records.encode_record(peer_record(ALICE, NOW, expires=NOW + records.MAX_LIFETIME_SECONDS), ALICE)
    assert records.decode_record(data, run_id=RUN, now=NOW)
    assert reason_of(data, now=NOW - 1) == "lifetime"
    assert records.authentic_record(data).name == "alice"


@pytest.mark.parametrize(
    "changes",
    [
        *({"run_id": run_id} for run_id in ("", "a" * 65, "../x")),
        *({"peer_id": peer_id} for peer_id in ("0" * 31, "G" * 32)),
        *({"name": name} for name in ("", "a" * 33, "a b", "\x1b[31m")),
        *({"address": address} for address in ("host", "host:0")),
        *({"run": run} for run in ("", "a" * 65, "a b", "chat@run1")),
        *({key: count} for key in ("parameters", "round") for count in (-1, records.MAX_COUNT + 1)),
        *({"version": version} for version in (1, 3)),
        *({"dht": dht} for dht in ("192.0.2.7:4001", DHT + "x" * 256, DHT.partition("/p2p")[0])),
        {"issued": float("nan")},
        *({"expires": expires} for expires in (float("inf"), NOW, NOW + records.MAX_LIFETIME_SECONDS + 1)),
    ],
)
def test_a_field_out_of_bounds_can_neither_be_written_nor_read(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        replace(peer_record(ALICE, NOW), **changes)
    assert reason_of(signed(ALICE, asdict(peer_record(ALICE, NOW)) | changes)) == "form"


@pytest.mark.parametrize(
    "changes",
    [
        *({"role": role} for role in ("leader", ["peer"])),
        *({"issued": issued} for issued in (int(NOW), True)),
        {"expires": 10**400},
        {"name": None},
        *({"address": address} for address in (7, 0, None)),
        {"extra": 1},
        *({"round": round} for round in (7.0, True, "7", None, [7])),
        {"parameters": 10**400},
        {"version": 2.0},
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(changes: dict[str, Any]) -> None:
    assert reason_of(signed(ALICE, asdict(peer_record(ALICE, NOW)) | changes)) == "form"


INDENTED = json.dumps(asdict(peer_record(ALICE, NOW)), indent=1).encode()


@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b"[" * 1400, b'{"role":"peer"}', b"{}", b"\xff", b"", INDENTED])
def test_a_body_that_is_no_record_or_not_in_its_one_legal_form_is_refused(body: bytes) -> None:
    assert reason_of(signed(ALICE, body)) == "form"
