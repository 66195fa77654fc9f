"""What an older version wrote, a later one reads and writes again, to the byte: these files must not change.

A new kind of message gets a line of its own in messages.txt: its name, its bytes, and what they mean.
"""

from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import Message

from tests.wire.examples import HEADER, MANIFEST, PUBLISHED
from tsr_swarm.config.manifest import decode_manifest
from tsr_swarm.wire.messages import open_envelope, parse, published_from_proto, published_to_proto, seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb

GOLDEN = Path(__file__).parent / "golden"
MANIFEST_DIGEST = "71d0470bd32d1ceb37c22858235a9ad01b5dbddbfad0344b4bc635a4f5e759bc"
CONTRIBUTION = (
    "080112206d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d18072220abababababababababababababababab"
    "abababababababababababababababab2a20303132333435363738396162636465663031323334353637383961626364656630013880c002"
    "40144d00002040522c0a04636f72651064185a222068686868686868686868686868686868686868686868686868686868686868686803"
)
ROUND = (
    "0a6308071078181421fca9f1d24d62503f29fca9f1d24d62403f312b8716d9cef7ef3f3a0200024a20ababababababababababababababab"
    "ababababababababababababababababab5a010362010968057201008a010102920101029a01020003a2010102123218808005222c0a0463"
    "6f72651064185a22206868686868686868686868686868686868686868686868686868686868686868120208011a20636363636363636363"
    "6363636363636363636363636363636363636363636363222030313233343536373839616263646566303132333435363738396162636465"
    "66222066666666666666666666666666666666666666666666666666666666666666662a100123456789abcdef0123456789abcdef2a10ff"
    "ffffffffffffffffffffffffffffff"
)


def test_each_kind_of_message_keeps_its_bytes_and_their_meaning() -> None:
    lines = [line.split(" ", 2) for line in (GOLDEN / "messages.txt").read_text().splitlines()]
    for name, written, *meaning in lines:
        kind: type[Message] = getattr(pb, name)
        data = bytes.fromhex(written.strip("-"))
        message = kind.FromString(data)
        assert message == text_format.Parse("".join(meaning), kind()), name
        assert message.SerializeToString(deterministic=True) == data, name
    assert {name for name, *_ in lines} == set(pb.DESCRIPTOR.message_types_by_name)


def test_a_manifest_keeps_its_bytes_and_the_digest_that_names_the_run() -> None:
    data = (GOLDEN / "manifest.json").read_bytes()
    manifest = decode_manifest(data)
    assert (manifest.encoded, manifest.digest) == (data, MANIFEST_DIGEST)
    assert (manifest.run_id, manifest.blocks, manifest.shard_blocks) == ("run1", MANIFEST.blocks, MANIFEST.shard_blocks)


def test_a_contribution_and_a_round_keep_their_bytes_and_their_meaning() -> None:
    header, round = bytes.fromhex(CONTRIBUTION), bytes.fromhex(ROUND)
    assert open_envelope(pb.Envelope(header=header)) == HEADER
    assert seal(HEADER).header == header
    assert published_from_proto(parse(pb.PublishedHeader, round, len(round)), MANIFEST) == PUBLISHED
    assert published_to_proto(PUBLISHED).SerializeToString(deterministic=True) == round
