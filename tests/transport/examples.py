"""A contribution and a round of two sections, with payloads that are never opened."""

import os
from dataclasses import replace

from tests.wire.examples import HEADER
from tsr_swarm.transport.base import PIECE_BYTES
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.messages import seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb

CORE_BYTES, DENSE_BYTES = 3 * PIECE_BYTES + 17, 1000
DATA = os.urandom(CORE_BYTES + DENSE_BYTES)
SECTIONS = (Section("core", 10**6, CORE_BYTES, bytes(32)), Section("dense", 4000, DENSE_BYTES, bytes(32)))


def envelope(round_: int = 7) -> pb.Envelope:
    return seal(replace(HEADER, round=round_, sections=SECTIONS))


def pb_sections() -> list[pb.Section]:
    return [pb.Section(kind=s.kind, wire_bytes=s.wire_bytes) for s in SECTIONS]


def published_header() -> pb.PublishedHeader:
    sections = pb_sections()
    return pb.PublishedHeader(shards=[pb.ShardResult(sections=sections[:1]), pb.ShardResult(sections=sections[1:])])
