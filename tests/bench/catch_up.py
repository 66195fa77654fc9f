"""Measure what it costs a peer to catch up after 20 missed rounds: replaying them, or the whole state.

    python -m tests.bench.catch_up    writes examples/results/catch-up.md

The shapes are those of the 60M preset. Nothing is trained: contributions are random cores, averaged by the reducer,
published, kept in delta logs and applied by the code of real runs; downloads are real gRPC on loopback.
"""

import argparse
import asyncio
import copy
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.bench.tables import RESULTS, header
from tests.node_context import make_context
from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.run import OptimizerConfig, PeriodsConfig, RunConfig, WireConfig
from tsr_swarm.errors import RunError
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.exchange.reduction import Published, Reduction
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.round_cache import Headers
from tsr_swarm.node.service import DonorService
from tsr_swarm.node.sync.catch_up import Fetcher
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.state import StateDownload
from tsr_swarm.node.weights import PlainWeights, WeightsThread
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.quantise import quantise_slot
from tsr_swarm.plan.presets import PRESETS
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.run_folder import RunFolder, fresh_consensus, record_of
from tsr_swarm.storage.state_store import STATE_ROUNDS, StateStore, is_agreed
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.telemetry.events import CatchingUp, Event
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.transport.server import serve
from tsr_swarm.transport.tcp_info import KernelBytes
from tsr_swarm.wire.gate import shard_slots
from tsr_swarm.wire.messages import published_to_proto

PRESET, RANK, BITS = "60M", "d/8", 4
MISSED, K_X, K_R = 20, 20, 200  # rounds; local steps a round and between two refreshes
PEERS = 2
DONORS = 3
NODES = [f"{number:032x}" for number in range(1, DONORS + 1)]  # the leader first
PEER = "0" * 32
AIMS = {
    "seed": "drawn from the seed (the default)",
    "dct": "chosen by energies",
    "gradient": "aimed by gradients, and published",
}


def manifest_of(aim: str) -> Manifest:
    model = PRESETS[PRESET].model
    config = RunConfig(
        model=model,
        optimizer=OptimizerConfig(aim=aim, rank=RANK, embedding_rank=RANK),
        periods=PeriodsConfig(k_x=K_X, k_r=K_R, k_r_embedding=K_R),
        wire=WireConfig(core_bits=BITS, published_bits=BITS, sketch_bits=8),
    )
    config = replace(config, data=replace(config.data, sequence_length=128))
    return make_manifest("catch-up", config, parameter_shapes(model))


def published_round(manifest: Manifest, consensus: Consensus, round: int, parent: str) -> Published:
    """What the reducer makes of random contributions."""
    plan = plan_round(manifest.config, manifest.blocks, round, parent)
    reduction = Reduction(manifest, plan, manifest.shard_blocks)
    for number in range(1, PEERS + 1):
        slots = upload_slots(manifest.blocks, plan.due, manifest.config.wire)
        numbers = {slot: 1e-3 * torch.randn(slot.rows, slot.cols) for slot in slots}
        grids = {slot: quantise_slot(x, slot) for slot, x in numbers.items()}
        work = RoundWork(plan, plan.steps, 1000, 1.0, grids)
        for shard, blocks in enumerate(manifest.shard_blocks):
            contribution, _ = pack(manifest, f"{number:032x}", work, shard, blocks)
            reduction.offer(contribution, number, {slot: grids[slot] for slot in shard_slots(slots, blocks)})
    reduction.close()
    return reduction.result(consensus.bases, 1)


@dataclass(frozen=True)
class History:
    """The missed rounds at the donors, and the weights before and after them."""

    donors: list[StateStore]
    before: Consensus
    after: Consensus
    records: list[RoundRecord]  # by round, from 0
    refreshes: int
    seconds_to_keep: float  # a state, beside training


async def make_history(manifest: Manifest, folder: Path) -> History:
    torch.manual_seed(0)
    consensus = fresh_consensus(manifest)
    before = copy.copy(consensus)
    donors = []
    for index in range(DONORS):
        place = folder / f"donor-{index}"
        donor = StateStore(manifest, place / "states", RunFolder(place).delta_log(manifest))
        donor.open()
        donor.delta_log.open()
        donors.append(donor)
    records, refreshes, keeping = [RoundRecord()], 0, 0.0
    for round in range(1, MISSED + 1):
        published = published_round(manifest, consensus, round, records[-1].chain)
        refreshes += bool(consensus.apply(published.header.plan, published.grids, published.void))
        records.append(record_of(published.header))
        for donor in donors:
            await donor.keep_round(published_to_proto(published.header), published.data)
            if is_agreed(round):
                started = time.perf_counter()
                await donor.keep_state(consensus, round, published.header.chain)
                keeping = time.perf_counter() - started
    return History(donors, before, consensus, records, refreshes, keeping)


@dataclass(frozen=True)
class Downloader:
    """A node that can only dial out, and what it received and was told."""

    fetcher: Fetcher
    ledger: ByteCounter
    events: list[Event]

    @property
    def received(self) -> int:
        return sum(self.ledger.totals(Direction.RECEIVED).values())

    async def round(self, history: History, round: int, newest: int) -> Published:
        """Raises RunError where it would rather have a state."""
        records = history.records
        fetched = await self.fetcher.round(round, records[newest], records[round - 1].chain, (), NODES)
        if fetched is None:
            raise RunError(f"Round {round} was not to be had; a state was to be fetched instead.")
        return fetched[2]


@asynccontextmanager
async def downloader(manifest: Manifest, history: History, folder: Path) -> AsyncIterator[Downloader]:
    """It knows the leader and the other donors, which listen on ports of their own."""

    async with AsyncExitStack() as stack:
        book, ledger, events = AddressBook(PEER), ByteCounter(), list[Event]()
        for node, donor in zip(NODES, history.donors, strict=True):
            weights = WeightsThread(PlainWeights(history.after), node, history.records[-1])
            stack.callback(weights.close)
            store, context = ContributionStore(manifest, {}), make_context(node, manifest)
            service: Any = DonorService(context, donor, store, Headers(), weights)
            port = await stack.enter_async_context(serve(service, "127.0.0.1:0", ByteCounter()))
            book.update(node, f"127.0.0.1:{port}")
        lines = await stack.enter_async_context(ClientPool(book, ledger, KernelBytes([])))
        sources = Donors(lines, events.append)
        states = StateDownload(sources, manifest, folder)
        fetcher = Fetcher(manifest, me=PEER, first=NODES[0], sources=sources, states=states, log=None)
        yield Downloader(fetcher, ledger, events)


@dataclass(frozen=True)
class Measured:
    """Bytes as received, control included."""

    refreshes: int
    present: int
    catch_up: int
    state: int
    state_raw: int
    takes_state: bool
    seconds_fetched: float
    seconds_applied: float
    seconds_state: float
    seconds_to_keep: float
    is_equal: bool


async def measure(aim: str, folder: Path) -> Measured:
    manifest = manifest_of(aim)
    history = await make_history(manifest, folder)
    rounds = range(1, MISSED + 1)
    async with downloader(manifest, history, folder / "present") as node:
        for round in rounds:
            await node.round(history, round, newest=round)
        present = node.received
    async with downloader(manifest, history, folder / "away") as node:
        started = time.perf_counter()
        fetched = [await node.round(history, round, newest=MISSED) for round in rounds]
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
    return Measured(
        refreshes=history.refreshes,
        present=present,
        catch_up=catch_up,
        state=state,
        state_raw=assembly.description.total_bytes,
        takes_state=choice.takes_state,
        seconds_fetched=seconds_fetched,
        seconds_applied=seconds_applied,
        seconds_state=seconds_state,
        seconds_to_keep=history.seconds_to_keep,
        is_equal=is_equal,
    )


def table(results: dict[str, Measured]) -> Iterator[str]:
    found = list(results.values())
    rows = {
        "refreshes among the missed rounds": [f"{m.refreshes}" for m in found],
        "MB that a present peer downloaded in them": [f"{m.present / 1e6:.2f}" for m in found],
        "MB of the catch-up": [f"**{m.catch_up / 1e6:.2f}**" for m in found],
        "catch-up / present": [f"**{m.catch_up / m.present:.4f}**" for m in found],
        "MB of the state (in the file, before zstd)": [f"{m.state / 1e6:.1f} ({m.state_raw / 1e6:.1f})" for m in found],
        "state / catch-up": [f"**{m.state / m.catch_up:.1f}**" for m in found],
        "what the peer chooses": ["the state" if m.takes_state else "the rounds" for m in found],
        "seconds to fetch, check and open the rounds, from three donors": [f"{m.seconds_fetched:.1f}" for m in found],
        "seconds to apply and hash them": [f"{m.seconds_applied:.1f}" for m in found],
        "seconds to fetch the state, from two donors": [f"{m.seconds_state:.1f}" for m in found],
        "seconds for a donor to keep a state, beside its training": [f"{m.seconds_to_keep:.1f}" for m in found],
        "weights after both ways equal those of who was there": ["yes" if m.is_equal else "NO" for m in found],
    }
    yield "| bases | " + " | ".join(AIMS[aim] for aim in results) + " |"
    yield "|---" * (1 + len(results)) + "|"
    for name, cells in rows.items():
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aims", nargs="+", choices=list(AIMS), default=list(AIMS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Measured] = {}
    for aim in chosen.aims:
        with tempfile.TemporaryDirectory() as folder:
            results[aim] = asyncio.run(measure(aim, Path(folder)))
    text = [
        f"# Catching up after {MISSED} missed rounds",
        "",
        header("python -m tests.bench.catch_up"),
        "",
        f"Shapes of the {PRESET} preset at rank {RANK}, {BITS} bits up and down, sketches of 8, {K_X} steps a round, a "
        f"refresh every {K_R // K_X} rounds. Nothing was trained: {PEERS} contributions of random cores a round went "
        "through the real reducer, codec, delta log and consensus, so bytes are those of cores with no structure. "
        "Bytes are what a peer received over real gRPC on loopback, control messages included. A donor keeps states of "
        f"every {STATE_ROUNDS}th round. Torch has one thread.",
        "",
        *table(results),
    ]
    target = RESULTS / "catch-up.md"
    target.write_text("\n".join(text) + "\n")
    print(target.read_text())


if __name__ == "__main__":
    main()
