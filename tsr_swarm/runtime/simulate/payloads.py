"""What happens to a payload between a peer and the reducer, and its bytes: everything but the sockets."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tsr_swarm.config.layout import PayloadKind, upload_slots
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.runtime.reduction import Published, Reduction
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.wire.codec import Section, encode
from tsr_swarm.wire.gate import check_contribution, shard_slots
from tsr_swarm.wire.messages import ContributionHeader, published_to_proto, seal


def send(
    manifest: Manifest, reduction: Reduction, peer_id: str, numbers: Mapping[str, int], work: RoundWork
) -> Counter[str]:
    """Encode ``work``, pass it through the gate, decode and offer it. Returns its wire bytes by payload kind.

    ``numbers`` gives each known peer's place in the sums. Raises PeerError or RunError for what cannot be sent.
    """
    plan, config, sent = work.plan, manifest.config, Counter[str]()
    for shard, blocks in enumerate(reduction.shard_blocks):
        slots = shard_slots(upload_slots(manifest.blocks, plan.due, config.wire), blocks)
        sections, data = encode(slots, work.grids, config.wire.zstd_level)
        header = ContributionHeader(
            protocol=PROTOCOL_VERSION,
            manifest_digest=bytes.fromhex(manifest.digest),
            round=plan.round,
            parent=bytes.fromhex(plan.parent),
            peer_id=peer_id,
            shard=shard,
            tokens=work.tokens,
            steps=work.steps,
            local_loss=work.local_loss if work.local_loss == work.local_loss else 0.0,
            sections=sections,
        )
        envelope = seal(header)
        contribution = check_contribution(
            envelope,
            manifest=manifest,
            plan=plan,
            shard_blocks=reduction.shard_blocks,
            is_known=numbers.__contains__,
        )
        reduction.offer(contribution.header, numbers[peer_id], contribution.decode(data))
        sent += _by_kind(sections, envelope.ByteSize())
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
