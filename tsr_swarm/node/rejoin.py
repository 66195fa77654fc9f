"""A node that has lost everybody it knew finds others of its run in the DHT."""

import asyncio
import time
from dataclasses import replace
from functools import partial

from tsr_swarm.discovery.announcer import Announcer
from tsr_swarm.discovery.runs import dial_order
from tsr_swarm.errors import RefusedError, SwarmError
from tsr_swarm.node.calls import Handshake, greet
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.find_run import first_result
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.wire.v1 import swarm_pb2 as pb

LOST_SECONDS = 10.0  # without an answer from anybody; a leader is found anew in less while others live
LOOK_SECONDS = 3.0


async def keep_announcing(context: NodeContext, announcer: Announcer) -> None:
    """Keep this node's record in the DHT, and what a later start needs to find the DHT again."""

    def note() -> None:
        context.book.run, context.book.multiaddrs = f"{run.name}@{context.manifest.run_id}", announcer.known

    run = context.config.run
    note()
    await announcer.keep_announcing(lambda: context.presence, note)


async def keep_rejoining(context: NodeContext, announcer: Announcer) -> None:
    """While nobody answers, say hello to nodes that the DHT names; whoever answers is asked who leads."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if is_lost(context, time.monotonic()):
            try:
                found = await find_another(context, announcer)
            except SwarmError:
                continue  # there is nobody now
            identity = replace(context.state.identity, known=found.known)
            context.driver.change(partial(replace, identity=identity))
            context.put(pt.Tick())


def is_lost(context: NodeContext, now: float) -> bool:
    """Whether this node follows nobody and none of those it knows has answered for a while. ``now``: monotonic."""
    leads_or_follows = context.state.leader != ""
    return not leads_or_follows and now - context.reached_at > LOST_SECONDS


async def find_another(context: NodeContext, announcer: Announcer) -> Handshake:
    """Say hello to a node of this run whom the DHT names. Raises SwarmError."""

    def accept(hello: pb.HelloReply) -> None:
        if hello.manifest != context.manifest.encoded or hello.peer_id == context.me:
            raise RefusedError("Another run answers, or this node itself.")

    records = await announcer.directory.records(context.manifest.run_id)
    others = [record for record in records if record.peer_id != context.me]
    addresses = dial_order(others, announcer.seen_from, time.time())
    if not addresses:
        raise RefusedError("The DHT names nobody of this run who can be dialled.")
    return await first_result(greet(context.clients, context.book, address, accept) for address in addresses)
