"""What happens to a payload between a peer and the reducer, and its bytes: everything but the sockets."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.exchange.reduction import WeightedPayload, publish_shard, seal
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.wire import messages
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.gate import check_header
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader, published_to_proto


def send(
    manifest: Manifest, peer_id: str, numbers: Mapping[str, int], work: RoundWork
) -> Iterator[tuple[ContributionHeader, WeightedPayload, Counter[str]]]:
    """Encode ``work``, pass it through the gate and decode it: shard by shard, with its wire bytes by payload kind.

    ``numbers`` gives each known peer's place in the sums. Raises PeerError or RunError for what cannot be sent.
    """
    for shard, blocks in enumerate(manifest.shard_blocks):
        header, data = pack(manifest, peer_id, work, shard, blocks)
        envelope = messages.seal(header)
        received = messages.open_envelope(envelope)
        contribution = check_header(received, manifest=manifest, plan=work.plan, is_known=numbers.__contains__)
        payload = WeightedPayload(numbers[peer_id], header.tokens, contribution.decode(data))
        yield contribution.header, payload, _by_kind(header.sections, envelope.ByteSize())


def reduce_round(
    manifest: Manifest,
    plan: RoundPlan,
    contributions: Sequence[Mapping[str, WeightedPayload]],
    bases: Mapping[int, Basis],
    outer: OuterState,
) -> tuple[PublishedHeader, bytes, OuterState]:
    """Average and publish every shard, and seal the round. ``contributions``: by shard, then by peer.

    Returns the round and the outer state after it, in the bases of before it. Blocks of a void shard keep theirs.
    """
    results, data, after = [], b"", dict(outer)
    for blocks, of_shard in zip(manifest.shard_blocks, contributions, strict=True):
        result, frames, kept = publish_shard(manifest, plan, blocks, of_shard, bases, outer)
        results.append(result)
        data += frames
        after |= kept
    return seal(plan, manifest.shard_blocks, results), data, after


def published_bytes(header: PublishedHeader) -> Counter[str]:
    """Wire bytes of a round's result by payload kind."""
    sections = [section for result in header.shards for section in result.sections]
    return _by_kind(sections, published_to_proto(header).ByteSize())


def _by_kind(sections: Iterable[Section], control: int) -> Counter[str]:
    counts = Counter({PayloadKind.CONTROL.value: control})
    for section in sections:
        counts[section.kind] += section.wire_bytes
    return counts
