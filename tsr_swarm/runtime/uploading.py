"""Send one contribution: an envelope and its sections for every shard of the round."""

import asyncio
import math
from collections.abc import Sequence

from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.codec import encode
from tsr_swarm.wire.gate import shard_slots
from tsr_swarm.wire.messages import ContributionHeader, Shard, seal


async def submit_all(
    client: SwarmClient, manifest: Manifest, peer_id: str, work: RoundWork, shards: Sequence[Shard]
) -> str:
    """Send ``work``, a call a shard; may be repeated. Returns why a shard did not count, "" if all did.

    Raises UnreachableError or PeerError.
    """
    reasons = [await _submit(client, manifest, peer_id, work, index, shard) for index, shard in enumerate(shards)]
    return next((reason for reason in reasons if reason), "")


async def _submit(
    client: SwarmClient, manifest: Manifest, peer_id: str, work: RoundWork, index: int, shard: Shard
) -> str:
    plan, wire = work.plan, manifest.config.wire
    slots = shard_slots(upload_slots(manifest.blocks, plan.due, wire), shard.blocks)
    sections, data = await asyncio.to_thread(encode, slots, work.grids, wire.zstd_level)
    header = ContributionHeader(
        protocol=PROTOCOL_VERSION,
        manifest_digest=bytes.fromhex(manifest.digest),
        round=plan.round,
        parent=bytes.fromhex(plan.parent),
        peer_id=peer_id,
        shard=index,
        tokens=work.tokens,
        steps=work.steps,
        local_loss=work.local_loss if math.isfinite(work.local_loss) else 0.0,
        sections=sections,
    )
    reply = await client.submit(seal(header), data)
    return "" if reply.counted else reply.reason[:200]
