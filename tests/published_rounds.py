"""Rounds of a run without anybody who trains: made by the reducer's own code, with voters in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tests.steady import steady, wide
from tsr_swarm.config.layout import Part, Slot, upload_slots
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import PeriodsConfig, RoundConfig, RunConfig
from tsr_swarm.exchange.reduction import Published, WeightedPayload, open_published, reduce_round
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid, dense_grid
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.quantise import quantise_slot
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.run_folder import record_of
from tsr_swarm.wire.gate import shard_slots
from tsr_swarm.wire.messages import published_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

VOTERS = ("a" * 32, "b" * 32, "c" * 32)
FIRST = "f" * 32  # the coordinator
SHAPES = {"a.weight": (40, 30), "b.weight": (48, 24), "c.weight": (36, 20), "norm.weight": (30,)}


def random_grids(slots: Sequence[Slot], generator: torch.Generator, scale: float = 1e-3) -> dict[Slot, Grid]:
    numbers = {slot: scale * torch.randn(slot.rows, slot.cols, generator=generator) for slot in slots}
    return {slot: dense_grid(x) if slot.part is Part.DENSE else quantise_slot(x, slot) for slot, x in numbers.items()}


def publish(
    manifest: Manifest,
    plan: RoundPlan,
    contributions: Sequence[Mapping[str, WeightedPayload]],
    bases: Mapping[int, Basis],
    outer: OuterState,
    voters: Sequence[str] = (),
) -> tuple[Published, OuterState]:
    """A round by one reducer of every shard, and the outer state after it. ``contributions``: by shard, then peer."""
    header, data, after = reduce_round(manifest, plan, contributions, bases, outer, voters)
    return open_published(manifest, published_to_proto(header), data, plan.parent), after


@dataclass
class History:
    """A run's rounds as they were published, in three shards, and the weights after each."""

    manifest: Manifest
    rounds: list[Published] = field(default_factory=list)
    states: list[Consensus] = field(default_factory=list)

    def at(self, round: int) -> Published:
        return self.rounds[round - 1]

    def record(self, round: int) -> RoundRecord:
        return record_of(self.at(round).header) if round else RoundRecord(voters=(FIRST,))

    def message(self, round: int) -> pb.PublishedHeader:
        return published_to_proto(self.at(round).header)

    def shard(self, round: int, shard: int) -> tuple[list[bytes], bytes]:
        """Hashes and frames."""
        results = self.at(round).header.shards
        sizes = [sum(section.wire_bytes for section in result.sections) for result in results]
        data = self.at(round).data[sum(sizes[:shard]) : sum(sizes[: shard + 1])]
        return [section.hash for section in results[shard].sections], data


def make_history(manifest: Manifest, consensus: Consensus, rounds: int, voters: tuple[str, ...] = VOTERS) -> History:
    generator = torch.Generator().manual_seed(0)
    config, history = manifest.config, History(manifest)
    history.states.append(consensus)
    for round in range(1, rounds + 1):
        plan = plan_of(manifest, round, history.record(round - 1).chain)
        slots = upload_slots(manifest.blocks, plan.due, config.wire)
        contributions = [
            {
                f"{number:032x}": WeightedPayload(number, 100, random_grids(shard_slots(slots, blocks), generator))
                for number in (1, 2)
            }
            for blocks in manifest.shard_blocks
        ]
        published, _ = publish(manifest, plan, contributions, consensus.bases, {}, voters)
        consensus = Consensus(manifest.blocks, consensus.weights, consensus.bases, config.optimizer.lift)
        consensus.apply(plan, published.grids, published.void)
        history.rounds.append(published)
        history.states.append(consensus)
    return history


def small_manifest(shards: int = 3) -> Manifest:
    """Of three low-rank blocks and a dense one."""
    optimizer, periods = steady(rank=4, embedding_rank=4), PeriodsConfig(k_x=5, k_r=50)
    config = RunConfig(optimizer=optimizer, wire=wide(), periods=periods, round=RoundConfig(shards=shards))
    return make_manifest("run", config, SHAPES)


def plan_of(manifest: Manifest, round: int = 1, parent: str = "") -> RoundPlan:
    return plan_round(manifest.config, manifest.blocks, round, parent)
