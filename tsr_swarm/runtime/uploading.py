"""Send one contribution: an envelope and its sections for every shard of the round."""

import asyncio
from collections.abc import Sequence

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.runtime.contribution import pack
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.messages import Shard, seal


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
    header, data = await asyncio.to_thread(pack, manifest, peer_id, work, index, shard.blocks)
    reply = await client.submit(seal(header), data)
    return "" if reply.counted else reply.reason[:200]
