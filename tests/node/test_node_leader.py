"""Who takes part, as a leader knows it."""

from tests.steady import steady
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.node.leader import Leader, Seams
from tsr_swarm.node.round_cache import RoundCache
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.wire.v1 import swarm_pb2 as pb

CONFIG = RunConfig(optimizer=steady(rank=4, embedding_rank=4))
MANIFEST = make_manifest("run", CONFIG, {"a.weight": (40, 30)})


def joining(letter: str, name: str) -> pb.JoinRequest:
    digest = bytes.fromhex(MANIFEST.digest)
    return pb.JoinRequest(manifest_digest=digest, peer_id=letter * 32, name=name, local_space="core", trains=True)


def test_no_number_is_that_of_two_though_one_of_them_has_gone() -> None:
    """A list of members with one number twice would be refused by every reducer."""
    seams = Seams(config=lambda: CONFIG, emit=lambda event: None, clock=lambda: 0.0)
    leading = Leader(MANIFEST, RoundCache(), RoundRecord(voters=("f" * 32,)), {}, seams)
    for letter in "cb":
        leading.admit(joining(letter, letter))
    assert leading.numbers == {"c" * 32: 1, "b" * 32: 2}
    gone = leading.roster.get("c" * 32)
    assert gone is not None
    gone.is_here = False
    assert leading.numbers == {"c" * 32: 1, "b" * 32: 2}, "what it sent before it went counts"
    assert leading.admit(joining("a", "a")).number == 1
    assert leading.numbers == {"a" * 32: 1, "b" * 32: 2}
    assert [leading.has_trained(letter * 32) for letter in "abcd"] == [True, True, True, False]
