"""What happens to a payload between a peer and the reducer, and its bytes: everything but the sockets."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.exchange.reduction import Published, Reduction
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.gate import check_contribution
from tsr_swarm.wire.messages import published_to_proto, seal


def send(
    manifest: Manifest, reduction: Reduction, peer_id: str, numbers: Mapping[str, int], work: RoundWork
) -> Counter[str]:
    """Encode ``work``, pass it through the gate, decode and offer it. Returns its wire bytes by payload kind.

    ``numbers`` gives each known peer's place in the sums. Raises PeerError or RunError for what cannot be sent.
    """
    sent = Counter[str]()
    for shard, blocks in enumerate(reduction.shard_blocks):
        header, data = pack(manifest, peer_id, work, shard, blocks)
        envelope = seal(header)
        contribution = check_contribution(
            envelope,
            manifest=manifest,
            plan=work.plan,
            is_known=numbers.__contains__,
        )
        reduction.offer(contribution.header, numbers[peer_id], contribution.decode(data))
        sent += _by_kind(header.sections, envelope.ByteSize())
    return sent


def published_bytes(published: Published) -> Counter[str]:
    """Wire bytes of a round's result by payload kind."""
    sections = [section for result in published.header.shards for section in result.sections]
    return _by_kind(sections, published_to_proto(published.header).ByteSize())


def _by_kind(sections: Iterable[Section], control: int) -> Counter[str]:
    counts = Counter({PayloadKind.CONTROL.value: control})
    for section in sections:
        counts[section.kind] += section.wire_bytes
    return counts
