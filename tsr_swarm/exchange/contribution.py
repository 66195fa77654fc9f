"""A peer's work on one shard as it is sent: a header and bytes, the same over the wire and in a simulation."""

import math
from collections.abc import Sequence

from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.wire.codec import encode
from tsr_swarm.wire.gate import shard_slots
from tsr_swarm.wire.messages import ContributionHeader


def pack(
    manifest: Manifest, peer_id: str, work: RoundWork, shard: int, blocks: Sequence[int], term: int = 0
) -> tuple[ContributionHeader, bytes]:
    """Encode the contribution of ``peer_id`` to shard number ``shard``, which has ``blocks``. Heavy: it compresses.

    term: of the leader whose plan was followed; 0 where nobody was elected.
    """
    plan, wire = work.plan, manifest.config.wire
    slots = shard_slots(upload_slots(manifest.blocks, plan.due, wire), blocks)
    sections, data = encode(slots, work.grids, wire.zstd_level)
    captured = [work.captured[index] for index in sorted(blocks) if index in work.captured]
    header = ContributionHeader(
        protocol=PROTOCOL_VERSION,
        manifest_digest=bytes.fromhex(manifest.digest),
        round=plan.round,
        parent=bytes.fromhex(plan.parent),
        peer_id=peer_id,
        shard=shard,
        tokens=work.tokens,
        steps=work.steps,
        local_loss=work.local_loss if math.isfinite(work.local_loss) else 0.0,
        sections=sections,
        kappas=tuple(seen.kappa for seen in captured),
        energies=tuple(seen.energy for seen in captured),
        term=term,
    )
    return header, data


def captured_of(header: ContributionHeader, manifest: Manifest, blocks: Sequence[int]) -> dict[int, Captured]:
    """Read what a header that passed the gate says of its shard's ``blocks``; empty if its peer did not measure."""
    if not header.kappas:
        return {}
    low_rank = [index for index in sorted(blocks) if manifest.blocks[index].is_low_rank]
    return {
        index: Captured(kappa, energy)
        for index, kappa, energy in zip(low_rank, header.kappas, header.energies, strict=True)
    }
