"""Measure what it costs a peer to catch up after 20 missed rounds: replaying them, or the whole state.

    python -m tests.bench.catch_up    writes examples/results/catch-up.md

The shapes are those of the 60M model unless --model says otherwise. Nothing is trained: contributions are random
cores, averaged, published, kept in round logs and applied by the code of real runs; downloads are real gRPC on
loopback.
"""

import argparse
import asyncio
import copy
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.bench.tables import MODELS, RESULTS, table, write_page
from tests.node_context import make_node
from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.run import ModelConfig, OptimizerConfig, PeriodsConfig, RunConfig, WireConfig
from tsr_swarm.errors import RunError
from tsr_swarm.exchange.reduction import Published, WeightedPayload, open_published, reduce_round
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.service import NodeService
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.downloader import Downloader
from tsr_swarm.node.weights import PlainWeights, WeightsThread
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.quantise import quantise_slot
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.run_folder import RunFolder, record_of
from tsr_swarm.storage.state_store import STATE_ROUNDS, StateStore, is_agreed
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.telemetry.events import CatchingUp, Event
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.train.trainer import fresh_consensus
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.gate import shard_slots
from tsr_swarm.wire.messages import published_to_proto

RANK, BITS = "d/8", 4
K_X, K_R = 20, 200  # local steps a round and between two refreshes
PEERS = 2
DONORS = 3
NODES = [f"{number:032x}" for number in range(1, DONORS + 1)]  # the leader first
PEER = "0" * 32
AIMS = {
    "seed": "drawn from the seed (the default)",
    "dct": "chosen by energies",
    "gradient": "aimed by gradients, and published",
}


def manifest_of(aim: str, model: ModelConfig) -> Manifest:
    config = RunConfig(
        model=model,
        optimizer=OptimizerConfig(aim=aim, rank=RANK, embedding_rank=RANK),
        periods=PeriodsConfig(k_x=K_X, k_r=K_R, k_r_embedding=K_R),
        wire=WireConfig(core_bits=BITS, published_bits=BITS, sketch_bits=8),
    )
    config = replace(config, data=replace(config.data, sequence_length=128))
    return make_manifest("catch-up", config, parameter_shapes(model))


def published_round(manifest: Manifest, consensus: Consensus, round: int, parent: str) -> Published:
    """The average of random contributions, as the reducer publishes it."""
    plan = plan_round(manifest.config, manifest.blocks, round, parent)
    contributions: list[dict[str, WeightedPayload]] = [{} for _ in manifest.shard_blocks]
    for number in range(1, PEERS + 1):
        slots = upload_slots(manifest.blocks, plan.due, manifest.config.wire)
        numbers = {slot: 1e-3 * torch.randn(slot.rows, slot.cols) for slot in slots}
        grids = {slot: quantise_slot(x, slot) for slot, x in numbers.items()}
        for shard, blocks in zip(contributions, manifest.shard_blocks, strict=True):
            of_shard = {slot: grids[slot] for slot in shard_slots(slots, blocks)}
            shard[f"{number:032x}"] = WeightedPayload(number, 1000, of_shard)
    header, data, _ = reduce_round(manifest, plan, contributions, consensus.bases, {})
    return open_published(manifest, published_to_proto(header), data, parent)


@dataclass(frozen=True)
class History:
    """The missed rounds at the donors, and the weights before and after them."""

    donors: list[StateStore]
    before: Consensus
    after: Consensus
    records: list[RoundRecord]  # by round, from 0
    refreshes: int
    seconds_to_keep: float  # a state, beside training


async def make_history(manifest: Manifest, missed: int, folder: Path) -> History:
    torch.manual_seed(0)
    consensus = fresh_consensus(manifest)
    before = copy.copy(consensus)
    donors = []
    for index in range(DONORS):
        place = folder / f"donor-{index}"
        donor = StateStore(manifest, place / "states", RunFolder(place).round_log(manifest))
        donor.open()
        donor.round_log.open()
        donors.append(donor)
    records, refreshes, keeping = [RoundRecord()], 0, 0.0
    for round in range(1, missed + 1):
        published = published_round(manifest, consensus, round, records[-1].chain)
        refreshes += bool(consensus.apply(published.header.plan, published.grids, published.void))
        records.append(record_of(published.header))
        for donor in donors:
            donor.round_log.store(published_to_proto(published.header), published.data)
            donor.round_log.commit(round, published.header.chain)
            donor.round_log.checkpointed(round)
            if is_agreed(round):
                started = time.perf_counter()
                await donor.keep_state(consensus, round, published.header.chain)
                keeping = time.perf_counter() - started
    return History(donors, before, consensus, records, refreshes, keeping)


@dataclass(frozen=True)
class DownloadingNode:
    """A node that can only dial out, with its bytes and events."""

    fetcher: Downloader
    counter: ByteCounter
    events: list[Event]

    @property
    def received(self) -> int:
        return sum(self.counter.totals(Direction.RECEIVED).values())

    async def round(self, history: History, round: int, newest: int) -> Published:
        """Fetch a round. Raises RunError where the node would fetch a state instead."""
        records = history.records
        fetched = await self.fetcher.round(round, records[newest], records[round - 1].chain, (), NODES)
        if fetched is None:
            raise RunError(f"Round {round} was not available; a state was to be fetched instead.")
        return fetched[2]


@asynccontextmanager
async def downloader(manifest: Manifest, history: History, folder: Path) -> AsyncIterator[DownloadingNode]:
    """A downloader that knows the leader and the other donors, which listen on ports of their own."""

    async with AsyncExitStack() as stack:
        book, events = AddressBook(PEER), list[Event]()
        for node, donor in zip(NODES, history.donors, strict=True):
            parts = make_node(node, manifest)
            parts.weights = WeightsThread(PlainWeights(history.after), node, history.records[-1])
            stack.callback(parts.weights.close)
            service: Any = NodeService(parts, donor, lambda caller: [])
            port = await stack.enter_async_context(serve(service, "127.0.0.1:0", ByteCounter()))
            book.update(node, f"127.0.0.1:{port}")
        clients = await stack.enter_async_context(ClientPool(book))
        sources = Donors(clients, events.append)
        fetcher = Downloader(donors=sources, manifest=manifest, me=PEER, first=NODES[0], folder=folder, log=None)
        yield DownloadingNode(fetcher, clients.counter, events)


async def measure(aim: str, model: ModelConfig, missed: int, folder: Path) -> dict[str, str]:
    """Return the cells of one column by the names of their rows. Bytes are as received, control included."""
    manifest = manifest_of(aim, model)
    history = await make_history(manifest, missed, folder)
    rounds = range(1, missed + 1)
    async with downloader(manifest, history, folder / "present") as node:
        for round in rounds:
            await node.round(history, round, newest=round)
        present = node.received
    async with downloader(manifest, history, folder / "away") as node:
        started = time.perf_counter()
        fetched = [await node.round(history, round, newest=missed) for round in rounds]
        seconds_fetched, catch_up = time.perf_counter() - started, node.received
        (choice,) = [event for event in node.events if isinstance(event, CatchingUp)]
    consensus = copy.copy(history.before)
    started = time.perf_counter()
    for published in fetched:
        consensus.apply(published.header.plan, published.grids, published.void)
        digest = consensus.digest()
    seconds_applied = time.perf_counter() - started
    async with downloader(manifest, history, folder / "new") as node:
        started = time.perf_counter()
        assembly, _, _ = await node.fetcher.state(NODES, lambda: False)
        seconds_state, state = time.perf_counter() - started, node.received
        is_equal = digest == history.after.digest() == assembly.consensus(manifest).digest()
    return {
        "refreshes among the missed rounds": f"{history.refreshes}",
        "MB that a present peer downloaded in them": f"{present / 1e6:.2f}",
        "MB of the catch-up": f"**{catch_up / 1e6:.2f}**",
        "catch-up / present": f"**{catch_up / present:.4f}**",
        "MB of the state (in the file, before zstd)": (
            f"{state / 1e6:.1f} ({assembly.description.total_bytes / 1e6:.1f})"
        ),
        "state / catch-up": f"**{state / catch_up:.1f}**",
        "what the peer chooses": "the state" if choice.takes_state else "the rounds",
        "seconds to fetch, check and open the rounds, from three donors": f"{seconds_fetched:.1f}",
        "seconds to apply and hash them": f"{seconds_applied:.1f}",
        "seconds to fetch the state, from two donors": f"{seconds_state:.1f}",
        "seconds for a donor to keep a state, beside its training": f"{history.seconds_to_keep:.1f}",
        "weights after both ways equal those of a peer that was there": "yes" if is_equal else "NO",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aims", nargs="+", choices=list(AIMS), default=list(AIMS))
    parser.add_argument("--model", choices=list(MODELS), default="60M")
    parser.add_argument("--missed", type=int, default=20, help="rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    columns = []
    for aim in options.aims:
        with tempfile.TemporaryDirectory() as folder:
            columns.append(asyncio.run(measure(aim, MODELS[options.model], options.missed, Path(folder))))
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    text = (
        f"Shapes of the {options.model} model at rank {RANK}, {BITS} bits up and down, sketches of 8, {K_X} steps a "
        f"round, a refresh every {K_R // K_X} rounds. Nothing was trained: {PEERS} contributions of random cores a "
        "round went through the real reducer, codec, round log and consensus, so bytes are those of cores with no "
        "structure. Bytes are what a peer received over real gRPC on loopback, control messages included. A donor "
        f"keeps states of every {STATE_ROUNDS}th round. Torch has one thread."
    )
    title = f"Catching up after {options.missed} missed rounds"
    table_text = "\n".join(table(["bases", *(AIMS[aim] for aim in options.aims)], rows))
    write_page(options.out / "catch-up.md", title, "python -m tests.bench.catch_up", text, table_text)


if __name__ == "__main__":
    main()
